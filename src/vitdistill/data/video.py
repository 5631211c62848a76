"""The interface of videos as data: a set hands out videos by number, and a video reads the frames that are asked of it.

Which frames are asked for is a matter of sampling and augmentation (`clips.py`), so a set never decodes on its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from vitdistill.data.source import ImageSet


class Video(ABC):
    """One video. Reading may raise what `loading.UNREADABLE` lists; the loader then skips and counts it."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Frames in it (an estimate from its duration where the container does not say)."""

    @abstractmethod
    def read(self, frames: Sequence[int], short_side: int | None = None) -> UInt8[np.ndarray, "t height width 3"]:
        """Decode some frames, each once, in the order asked for.

        Args:
            frames: numbers from 0 to `length` - 1; repeats are allowed.
            short_side: resize to this shorter edge in pixels while decoding; None keeps the size.
        """


class VideoSet(ImageSet):
    """Labelled videos. `load` opens a video and decodes nothing; `labels` and `path` are as in every set."""

    @abstractmethod
    def load(self, index: int) -> tuple[Video, int]:  # type: ignore[override]
        """A video and its class number."""
