"""The interface of a video: it reads the frames that are asked of it.

Which frames are asked for is a matter of sampling and augmentation (`sampling.py`, `transforms.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

Picture = UInt8[np.ndarray, "height width 3"]


class Video(ABC):
    """One video. Reading may raise what `samples.UNREADABLE` lists; the loader then skips and counts it."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Frames in it, counted."""

    @abstractmethod
    def read(self, frames: Sequence[int], short_side: int | None = None) -> UInt8[np.ndarray, "t height width 3"]:
        """Decode some frames, each once, in the order asked for.

        Args:
            frames: numbers from 0 to `length` - 1; repeats are allowed.
            short_side: resize to this shorter edge in pixels while decoding; None keeps the size.
        """


def distinct(frames: Sequence[int], length: int, path: str) -> tuple[list[int], list[int]]:
    """The distinct numbers in ascending order, and where among them each frame is.

    Raises:
        IndexError: when a number is out of range, or there is none.
    """
    if not len(frames) or min(frames) < 0 or max(frames) >= length:
        raise IndexError(f"{path}: frames must be among 0 to {length - 1}; got {list(frames)}")
    numbers, places = np.unique(np.asarray(frames), return_inverse=True)
    return numbers.tolist(), places.tolist()


def scaled(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height with the given shorter edge."""
    if short_side is None:
        return width, height
    shorter = min(width, height)
    return max(1, round(width * short_side / shorter)), max(1, round(height * short_side / shorter))
