"""The interface of a data source, and how `--data` becomes one.

To add a bundled source: write one file with a function that returns a `DataSource`, and name it in `bundled`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from vitdistill.errors import UserError, near


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


BUNDLED = ("digits", "moving_digits", "moving_digits:motion")


def bundled() -> dict[str, Callable[[], DataSource]]:
    """Sources that need no download, by the name that `--data` takes."""
    from vitdistill.data.digits import digits
    from vitdistill.data.moving_digits import moving_digits

    return dict(zip(BUNDLED, (digits, moving_digits, partial(moving_digits, "motion")), strict=True))


def check_there(data: str | Path) -> None:
    """Quick, and without loading torch.

    Raises:
        UserError: when `--data` names neither a bundled source nor anything that exists.
    """
    if data not in BUNDLED and not Path(data).expanduser().exists():
        raise UserError(
            f"--data must be an existing folder or a bundled source ({', '.join(BUNDLED)})",
            f"'{data}'",
            near(str(data), BUNDLED),
        )


def open_source(data: str | Path | DataSource, *, labels: bool = True) -> DataSource:
    """Open what `--data` names.

    Args:
        data: the name of a bundled source, a folder with `train/` and `val/`, or a source that is already open.
            A bundled name wins over a folder of the same name; write `./digits` to mean the folder.
        labels: False opens any folder of images, see `image_folder`; all else is opened as ever.

    Raises:
        UserError: when it is neither, or when the source itself is unusable.
    """
    if isinstance(data, DataSource):
        return data
    check_there(data)
    if isinstance(data, str) and data in BUNDLED:
        return bundled()[data]()
    from vitdistill.data.image_folder import image_folder
    from vitdistill.data.video_files import has_videos, video_files

    if has_videos(data):
        return video_files(data, labels=labels)
    return image_folder(data, labels=labels)
