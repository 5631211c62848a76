"""Which files an AVA-like data set consists of; a group of options, read without loading anything heavy."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vitdistill.errors import UserError

THRESHOLD, FRAME_RATE = 0.8, 30.0
ANNOTATED = "none"  # in place of a file of detections


@dataclass(frozen=True, kw_only=True)
class ActionFiles:
    """Annotations of who does what, where and when, in AVA's csv formats.

    Args:
        train: annotations to train on.
        val: annotations to validate on.
        labels: label map of all actions (pbtxt or csv); by default they are numbered from 1 to the highest annotated.
        evaluated: label map of the actions that count in the score (60 of AVA's 80); by default all.
        detections: boxes of a person detector to validate on; by default, and for "none", the annotated boxes.
        excluded: csv file of key frames that count neither in training nor in validation.
        threshold: lowest score of a detection, 0 to 1; by default 0.8.
        start: second of the movie at which the files begin; by default 0 (900 for AVA's files of a quarter of an hour).
        frame_rate: frames per second of folders of frames, by default 30; video files say theirs.
    """

    train: str | None = None
    val: str | None = None
    labels: str | None = None
    evaluated: str | None = None
    detections: str | None = None
    excluded: str | None = None
    threshold: float | None = None
    start: float | None = None
    frame_rate: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError("--actions.threshold must lie in [0, 1]", self.threshold)
        if self.start is not None and not math.isfinite(self.start):
            raise UserError("--actions.start must be a second of the movie", self.start)
        if self.frame_rate is not None and not (math.isfinite(self.frame_rate) and self.frame_rate > 0):
            raise UserError("--actions.frame_rate must be above 0", self.frame_rate)

    def over(self, recorded: Mapping[str, Any]) -> "ActionFiles":
        """These files, and for what is not given those of a run's configuration."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if given.get("detections") == ANNOTATED:
            recorded = {**recorded, "threshold": None}  # that of detections
        return ActionFiles(**{**recorded, **given})
