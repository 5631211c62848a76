"""The interface of a data source: a set of samples, and a source of two sets."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from PIL import Image


class ImageSet(ABC):
    """Labelled images, read one at a time. Must be picklable: loader workers receive a copy.

    Attributes:
        in_memory: whether `load` is a memory read; such sets are loaded without workers, and what a
            transform without randomness makes of them is kept.
    """

    in_memory = False

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def load(self, index: int) -> tuple[Image.Image, int]:
        """Decode one image.

        Returns:
            The whole image as RGB, and its class number.

        Raises:
            OSError, SyntaxError, ValueError: when the image is unreadable; `loading.UNREADABLE` has the full list.
        """

    @abstractmethod
    def path(self, index: int) -> str:
        """What to call the image in messages: its file, where it has one."""

    @property
    @abstractmethod
    def labels(self) -> list[int]:
        """Class number of every image, without loading any."""


@dataclass(frozen=True)
class DataSource:
    """Images to train and validate on.

    Attributes:
        name: short name for tables and file names.
        train: training images.
        val: validation images.
        classes: class names, in the order of the class numbers; `["image"]` where the images have no labels.
        image_size: native height and width in pixels of a bundled source; None means the model's.
        frames: native frames of a clip of a bundled source of videos; None means the model's.
    """

    name: str
    train: ImageSet
    val: ImageSet
    classes: list[str]
    image_size: int | None = None
    frames: int | None = None
