"""Rows of a container as a set of images."""

import io
from abc import abstractmethod

import numpy as np
from PIL import Image

from vitdistill.data.images.decode import open_image, read_image
from vitdistill.data.images.samples import ImageSamples
from vitdistill.data.samples import digest_of


class RowImages(ImageSamples):
    """Some rows of a container of images, in order."""

    def __init__(self, rows: np.ndarray, labels: np.ndarray | None) -> None:
        """
        Args:
            rows: which rows of the container belong to this set, (samples,).
            labels: their class numbers, (samples,); None where there are none.
        """
        self.rows, self._labels = rows, labels

    @abstractmethod
    def picture(self, row: int) -> Image.Image:
        """Read a row's picture.

        Raises:
            OSError, SyntaxError, ValueError: when it is unreadable.
        """

    @abstractmethod
    def row_name(self, row: int) -> str:
        """What to call a row in messages."""

    @abstractmethod
    def keys(self) -> bytes:
        """What tells the rows of this set apart wherever the container lies, for the digest."""

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> tuple[Image.Image, int | None]:
        label = None if self._labels is None else int(self._labels[index])
        return self.picture(int(self.rows[index])), label

    def path(self, index: int) -> str:
        return self.row_name(int(self.rows[index]))

    @property
    def labels(self) -> list[int] | None:
        return None if self._labels is None else self._labels.tolist()

    def digest(self) -> str | None:
        """Which samples these are and what their classes are, wherever the container lies."""
        return digest_of(self.keys(), b"" if self._labels is None else self._labels.astype("<i8").tobytes())


class EncodedImages(RowImages):
    """Rows that hold encoded images."""

    @abstractmethod
    def content(self, row: int) -> bytes:
        """The encoded image of a row.

        Raises:
            OSError, ValueError: when it cannot be read.
        """

    def picture(self, row: int) -> Image.Image:
        return read_image(io.BytesIO(self.content(row)))

    def short_side(self, index: int) -> int | None:
        with open_image(io.BytesIO(self.content(int(self.rows[index])))) as image:
            return min(image.size)
