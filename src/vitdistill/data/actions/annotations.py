"""From AVA's files to key frames to train and test on, and what they are scored against."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitdistill.data.actions.ava import (
    KeyFrameName,
    Numbers,
    Rows,
    read_detections,
    read_excluded,
    read_labels,
    read_truth,
)
from vitdistill.data.actions.key_frames import KeyFrames, Movies
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, refuse_unused


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The files of one data set, and how its boxes are chosen.

    Args:
        val: annotations to validate on.
        train: annotations to train on; None where nothing is trained.
        labels: label map of all actions; None numbers them from 1 to the highest annotated.
        evaluated: label map of the actions that count in the score (60 of AVA's 80); None means all.
        detections: boxes to validate on; None means the annotated ones.
        excluded: key frames that count neither in training nor in validation.
        threshold: lowest score of a detection.
        classes: of a trained network, where there is no label map; None counts what is annotated.
    """

    val: str
    train: str | None = None
    labels: str | None = None
    evaluated: str | None = None
    detections: str | None = None
    excluded: str | None = None
    threshold: float = 0.8
    classes: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError("The threshold of detections must lie in [0, 1]", self.threshold)


@dataclass(frozen=True)
class ActionData:
    """Key frames, and what predictions for those to validate on are scored against.

    Attributes:
        train: key frames to train on, where there are any.
        val: key frames to validate on, with annotated or detected boxes.
        truth: all annotated boxes of the key frames that count, also of those without a detection.
        labels: names of the classes by action id, in the order of the classes.
        evaluated: action ids that count in the score.
        names: of key frames, in the order of their numbers.
    """

    train: KeyFrames | None
    val: KeyFrames
    truth: Rows
    labels: dict[int, str]
    evaluated: list[int]
    names: list[KeyFrameName]

    def source(self, name: str) -> DataSource:
        """As the training engine sees it."""
        assert self.train is not None
        return DataSource(name, self.train, self.val, list(self.labels.values()))


def open_annotations(files: Annotations, movies: Movies) -> ActionData:
    """Read the files and find the videos.

    Args:
        files: in AVA's formats.
        movies: where the videos are.

    Raises:
        UserError: naming file and line of a malformed row or an unknown action; when nothing is left to train or
            validate on; when videos are missing, or their times do not fit.
    """
    goes_with = "--detections"
    refuse_unused(threshold=(files.detections is None and files.threshold != Annotations.threshold, goes_with))
    labels = None if files.labels is None else read_labels(files.labels)
    if labels is None and files.classes is not None:
        labels = {number: str(number) for number in range(1, files.classes + 1)}
    numbers: Numbers = {}
    excluded = read_excluded(files.excluded) if files.excluded else set()
    truth = read_truth(files.val, numbers, labels)
    train = read_truth(files.train, numbers, labels) if files.train else None
    boxes = _boxes_to_test(files, numbers, truth)
    names = list(numbers)
    left_out = [number for number, name in enumerate(names) if name in excluded]
    truth, boxes = truth.without(left_out), boxes.without(left_out)
    train = None if train is None else train.without(left_out)
    for path, rows in ((files.train, train), (files.val, truth), (files.detections or files.val, boxes)):
        if rows is not None and not len(rows):
            raise UserError(f"{path} must have at least one box in a key frame that counts", "none")
    if labels is None:
        highest = max(int(rows.action.max()) for rows in (truth, train) if rows is not None)
        labels = {number: str(number) for number in range(1, highest + 1)}
    ids = list(labels)
    evaluated = _evaluated(files.evaluated, ids)
    if not np.isin(truth.action, evaluated).any():
        raise UserError(f"{files.val} must have a box of an action that counts", "none", "Check --evaluated")
    return ActionData(
        None if train is None else KeyFrames(train, names, movies, ids, annotated=True),
        KeyFrames(boxes, names, movies, ids, annotated=files.detections is None),
        truth,
        labels,
        evaluated,
        names,
    )


def _boxes_to_test(files: Annotations, numbers: Numbers, truth: Rows) -> Rows:
    """The annotated boxes, or the detected ones in the videos that are annotated."""
    if files.detections is None:
        return truth
    names = list(numbers)
    videos = {names[number][0] for number in np.unique(truth.frame).tolist()}
    found = read_detections(files.detections, numbers, files.threshold)
    others = [number for (video, _), number in numbers.items() if video not in videos]
    return found.without(others)


def _evaluated(path: str | None, ids: Sequence[int]) -> list[int]:
    if path is None:
        return list(ids)
    evaluated = list(read_labels(path))
    if unknown := sorted(set(evaluated) - set(ids)):
        raise UserError(
            "Actions that count must be among those of the label map", f"id {unknown[0]} of {path}", "Check --labels"
        )
    return evaluated
