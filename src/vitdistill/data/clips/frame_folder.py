"""A video as a folder of images, one per frame: how Something-Something is often kept."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitdistill.data.clips.video import Picture, Video, distinct, scaled
from vitdistill.data.folders import is_image
from vitdistill.data.images.decode import open_image, read_image
from vitdistill.data.samples import UNREADABLE, reason_of


class FrameFolder(Video):
    """A video as a folder of image files, in natural order (`img_2.jpg` before `img_10.jpg`)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """
        Args:
            path: the folder; listed when it is first needed.
        """
        self.path = os.fspath(path)
        self._names: list[str] = []

    @property
    def length(self) -> int:
        """Images in the folder.

        Raises:
            OSError: when the folder is missing or holds no image.
        """
        return len(self._list())

    @property
    def short_side(self) -> int:
        """Shorter edge in pixels, of the first image.

        Raises:
            OSError: as `length`, and when that image is unreadable.
        """
        with open_image(os.path.join(self.path, self._list()[0])) as image:
            return min(image.size)

    def read(self, frames: Sequence[int], short_side: int | None = None) -> UInt8[np.ndarray, "t height width 3"]:
        """Decode some images, each once, in the order asked for; all get the size of the first.

        Args:
            frames: numbers from 0 to `length` - 1; repeats are allowed.
            short_side: resize to this shorter edge in pixels; None keeps the size.

        Raises:
            OSError, SyntaxError, ValueError: when an image is unreadable; `samples.UNREADABLE` has the full list.
            IndexError: when a number is out of range, or there is none.
        """
        names = self._list()
        numbers, places = distinct(frames, len(names), self.path)
        pictures: list[Picture] = []
        size: tuple[int, int] | None = None
        for number in numbers:
            path = os.path.join(self.path, names[number])
            try:
                rgb = read_image(path)
            except UNREADABLE as error:
                raise OSError(f"{names[number]}: {reason_of(error, path)}") from error
            size = size or scaled(*rgb.size, short_side)
            pictures.append(np.asarray(rgb if rgb.size == size else rgb.resize(size, Image.Resampling.BILINEAR)))
        return np.stack([pictures[place] for place in places])

    def _list(self) -> list[str]:
        if not self._names:
            self._names = sorted(filter(is_image, os.listdir(self.path)), key=_natural)
            if not self._names:
                raise OSError(f"{self.path}: no image in this folder of frames")
        return self._names


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts the numbers within names by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", Path(name).name)]
