"""From what `--data` names to images with masks: the bundled scenes, or a folder."""

from pathlib import Path
from typing import Any

from vitdistill.data.open import SCENES
from vitdistill.data.segments.files import SegmentFiles
from vitdistill.data.segments.folder import segment_folder
from vitdistill.data.segments.scenes import scene_segments
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError


def open_segments(data: Any, files: SegmentFiles = SegmentFiles()) -> DataSource:
    """Images with masks to train and to validate on.

    Args:
        data: scenes (bundled), a folder of images and masks, or a source that was opened already.
        files: what the masks mean.

    Raises:
        UserError: when it is none of these, or as `segment_folder`.

    Example:
        >>> source = open_segments("/data/ADEChallengeData2016")
        >>> image, mask = source.val.load(0)[0]
    """
    if isinstance(data, DataSource):
        return data
    if data == SCENES:
        return scene_segments(files)
    if not isinstance(data, str | Path):
        raise UserError("Images with masks lie in a folder", type(data).__name__, f"Give a folder, or {SCENES}")
    return segment_folder(data, files)
