"""From AVA's files to key frames to train and test on, and what they are scored against."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
from vitdistill.data.actions.files import ANNOTATED, FRAME_RATE, THRESHOLD, ActionFiles
from vitdistill.data.actions.key_frames import KeyFrames, Movies
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, refuse_given


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
        """As the training engine sees it; what is only validated on stands in for training data."""
        return DataSource(name, self.train or self.val, self.val, list(self.labels.values()))


def open_actions(folder: str | Path, files: ActionFiles, *, classes: int | None = None) -> ActionData:
    """Read the files and find the videos.

    Args:
        folder: of the videos: `<video id>.mp4` (or with another suffix of videos), or folders `<video id>/` of frames.
        files: in AVA's formats.
        classes: of a trained network, where there is no label map; None counts what is annotated.

    Raises:
        UserError: naming file and line of a malformed row or an unknown action; when there is nothing to validate on,
            or nothing is left to train or validate on; when videos are missing, or their times do not fit.

    Example:
        >>> data = open_actions("/data/ava/videos_15min", ActionFiles(val="ava_val_v2.2.csv", start=900))
        >>> data.val.load(0)[0].boxes  # x1, y1, x2, y2 as shares of width and height
    """
    if files.val is None:
        raise UserError("--actions.val is required", remedy="Give the annotations to validate on, in AVA's csv format")
    detections = None if files.detections == ANNOTATED else files.detections
    if detections is None:
        refuse_given({"actions.threshold": files.threshold is not None}, "without --actions.detections")
    movies = Movies(Path(folder), files.start or 0.0, FRAME_RATE if files.frame_rate is None else files.frame_rate)
    labels = None if files.labels is None else read_labels(files.labels)
    if labels is None and classes is not None:
        labels = {number: str(number) for number in range(1, classes + 1)}
    numbers: Numbers = {}
    excluded = read_excluded(files.excluded) if files.excluded else set()
    truth = read_truth(files.val, numbers, labels)
    train = read_truth(files.train, numbers, labels) if files.train else None
    boxes = truth
    if detections is not None:
        threshold = THRESHOLD if files.threshold is None else files.threshold
        boxes = _detected(read_detections(detections, numbers, threshold), numbers, truth)
    names = list(numbers)
    left_out = [number for number, name in enumerate(names) if name in excluded]
    truth, boxes = truth.without(left_out), boxes.without(left_out)
    train = None if train is None else train.without(left_out)
    for path, rows in ((files.train, train), (files.val, truth), (detections or files.val, boxes)):
        if rows is not None and not len(rows):
            raise UserError(f"{path} must have at least one box in a key frame that counts", "none")
    if labels is None:
        highest = max(int(rows.action.max()) for rows in (truth, train) if rows is not None)
        labels = {number: str(number) for number in range(1, highest + 1)}
    ids = list(labels)
    evaluated = _evaluated(files.evaluated, ids)
    if not np.isin(truth.action, evaluated).any():
        raise UserError(f"{files.val} must have a box of an action that counts", "none", "Check --actions.evaluated")
    return ActionData(
        None if train is None else KeyFrames(train, names, movies, ids, annotated=True),
        KeyFrames(boxes, names, movies, ids, annotated=detections is None),
        truth,
        labels,
        evaluated,
        names,
    )


def _detected(found: Rows, numbers: Numbers, truth: Rows) -> Rows:
    """The detected boxes in the videos that are annotated."""
    names = list(numbers)
    videos = {names[number][0] for number in np.unique(truth.frame).tolist()}
    others = [number for (video, _), number in numbers.items() if video not in videos]
    return found.without(others)


def _evaluated(path: str | None, ids: Sequence[int]) -> list[int]:
    if path is None:
        return list(ids)
    evaluated = list(read_labels(path))
    if unknown := sorted(set(evaluated) - set(ids)):
        raise UserError(
            "Actions that count must be among those of the label map",
            f"id {unknown[0]} of {path}",
            "Check --actions.labels",
        )
    return evaluated
