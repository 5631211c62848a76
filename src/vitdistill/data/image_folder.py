"""Images on disk: `train/` and `val/`, one folder per class in each, as ImageNet and torchvision have them."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets.folder import is_image_file, make_dataset, pil_loader

from vitdistill.data.source import DataSource, ImageSet
from vitdistill.errors import UserError

TRAIN_NAMES = ("train",)
VAL_NAMES = ("val", "validation", "test")
LAYOUT = "Expected <data>/train/<class>/*.jpg and <data>/val/<class>/*.jpg"


class FolderImages(ImageSet):
    """The images of one split.

    Paths are held in one array of bytes and not in a list of strings: workers share the pages of an array after a
    fork, while counting references would copy those of a list, once per worker.
    """

    def __init__(self, root: Path, classes: list[str]) -> None:
        """
        Args:
            root: the folder that holds one folder per class.
            classes: class names; the place in the list is the class number.
        """
        numbers = {name: number for number, name in enumerate(classes)}
        # allow_empty, so that the caller can say which classes are empty.
        samples = make_dataset(root, numbers, is_valid_file=_is_image, allow_empty=True)
        self.root = str(root)
        self._names = np.array([os.fsencode(os.path.relpath(path, root)) for path, _ in samples], dtype=np.bytes_)
        self._labels = np.array([label for _, label in samples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def load(self, index: int) -> tuple[Image.Image, int]:
        # Converting decodes the whole file, so a truncated one fails here.
        return pil_loader(self.path(index)), int(self._labels[index])

    def path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self._names[index])))

    @property
    def labels(self) -> list[int]:
        return self._labels.tolist()


def image_folder(path: str | Path) -> DataSource:
    """Open a folder with `train/` and `val/` (or `validation/`, `test/`), one folder per class in each.

    Files and folders whose names start with a dot are ignored; images may lie deeper inside a class folder.

    Args:
        path: the folder that holds both splits.

    Raises:
        UserError: when a split is missing, a class is empty, there are fewer than two classes, or the classes of
            the two splits differ.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError("The data folder must exist and be a folder", f"'{path}'", LAYOUT)
    train, val = _split_folder(root, TRAIN_NAMES), _split_folder(root, VAL_NAMES)
    classes, val_classes = _class_names(train), _class_names(val)
    if len(classes) < 2:
        raise UserError("Training needs at least two classes", f"only '{classes[0]}' in {train}", LAYOUT)
    if classes != val_classes:
        only_train, only_val = set(classes) - set(val_classes), set(val_classes) - set(classes)
        raise UserError(
            f"{train} and {val} must have the same class folders",
            f"{_some(only_train)} only in {train.name}, {_some(only_val)} only in {val.name}",
            "Remove or rename the folders that differ",
        )
    return DataSource(root.resolve().name, _images(train, classes), _images(val, classes), classes)


def list_images(path: str | Path) -> list[Path]:
    """An image file, or all images below a folder, in sorted order.

    Raises:
        UserError: when there is no such path, or no image.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise UserError("An image or a folder of images must exist", f"'{path}'")
    candidates = sorted(root.rglob("*")) if root.is_dir() else [root]
    images = [file for file in candidates if file.is_file() and _is_image(str(file))]
    if not images:
        raise UserError("At least one image is needed", f"none in '{path}'", "JPEG, PNG, WebP, TIFF, BMP are read")
    return images


def _is_image(path: str) -> bool:
    # Names with a leading dot are other programs' files, such as the "._photo.jpg" that macOS leaves behind.
    return is_image_file(path) and not os.path.basename(path).startswith(".")


def _split_folder(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    found = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    raise UserError(
        f"The data folder {root} must hold a folder {' or '.join(repr(name) for name in names)}",
        f"the folders {_some(found)}" if found else "no folder in it",
        LAYOUT,
    )


def _class_names(split: Path) -> list[str]:
    names = sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{split} must hold one folder per class", "no folder in it", LAYOUT)
    return names


def _images(split: Path, classes: list[str]) -> FolderImages:
    images = FolderImages(split, classes)
    counts = np.bincount(images._labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise UserError(
            f"Every class folder in {split} must hold at least one image",
            f"none in {_some(empty)}",
            "JPEG, PNG, WebP, TIFF, BMP and PPM files are read",
        )
    return images


def _some(names: Iterable[str], shown: int = 3) -> str:
    """Up to three names, e.g. "'a', 'b', 'c' and 2 more"."""
    ordered = sorted(names)
    text = ", ".join(repr(name) for name in ordered[:shown]) or "none"
    return text if len(ordered) <= shown else f"{text} and {len(ordered) - shown} more"
