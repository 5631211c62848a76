"""Images on disk: `train/` and `val/`, one folder per class in each, as ImageNet and torchvision have them.

What trains without labels takes any folder of images.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets.folder import is_image_file, make_dataset, pil_loader

from vitdistill.data.source import DataSource, ImageSet
from vitdistill.errors import UserError

TRAIN_NAMES = ("train",)
VAL_NAMES = ("val", "validation", "test")
LAYOUT = "Expected <data>/train/<class>/*.jpg and <data>/val/<class>/*.jpg"
FORMATS = "JPEG, PNG, WebP, TIFF, BMP and PPM files are read"

UNLABELLED = ["image"]  # the classes of images without labels
HOLD_OUT_EVERY = 100  # one image in so many is held out for validation where there is no folder for it
HOLD_OUT_MOST = 5000


class FolderImages(ImageSet):
    """The images of one split.

    Paths are held in one array of bytes and not in a list of strings: workers share the pages of an array after a
    fork, while counting references would copy those of a list, once per worker.
    """

    def __init__(self, root: Path, names: np.ndarray, labels: np.ndarray) -> None:
        """
        Args:
            root: the folder that holds the images.
            names: paths below `root`, bytes as the file system has them, (images,).
            labels: class numbers, int64, (images,).
        """
        self.root = str(root)
        self._names, self._labels = names, labels

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


def image_folder(path: str | Path, *, labels: bool = True) -> DataSource:
    """Open a folder with `train/` and `val/` (or `validation/`, `test/`), one folder per class in each.

    Files and folders whose names start with a dot are ignored; images may lie deeper inside a class folder.

    Without labels, a folder as above is opened as ever, and any other folder with at least two images is good as
    well. All images then have label 0 of the one class `image`:

    - Those anywhere below `train/` are for training; without a `train/`, all below the folder except the other splits.
    - Those anywhere below `val/` (or `validation/`, `test/`) are for validation. Without such a folder, a share of
      the training images is held out: 1% of them, at least 1, at most 5000. Which ones is random but fixed: the same
      for the same files at every opening.

    Args:
        path: the folder that holds both splits, or, without labels, any images.
        labels: whether the classes are needed.

    Raises:
        UserError: when the folder is missing. With labels, when a split is missing, a class is empty, there are
            fewer than two classes, or the classes of the two splits differ. Without, when there are fewer than two
            images, or none in a split.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        layout = LAYOUT if labels else "Any folder with at least two images in it will do"
        raise UserError("The data folder must exist and be a folder", f"'{path}'", layout)
    return _labelled(root) if labels else _labelled_if_possible(root) or _unlabelled(root)


def _labelled(root: Path) -> DataSource:
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


def _labelled_if_possible(root: Path) -> DataSource | None:
    """The labelled source, or None where the folder is not laid out as one."""
    splits = (_first(root, TRAIN_NAMES), _first(root, VAL_NAMES))
    # An image beside the class folders has no class: reading the folder as a labelled one would leave it out.
    if any(split is None or any(map(_is_image, os.listdir(split))) for split in splits):
        return None
    try:
        return _labelled(root)
    except UserError:
        return None


def _unlabelled(root: Path) -> DataSource:
    train_root, val_root = _first(root, TRAIN_NAMES) or root, _first(root, VAL_NAMES)
    # Without train/, the other splits lie among the training images, and must not be trained on.
    train = _names_below(train_root, leave_out=VAL_NAMES if train_root == root else ())
    if val_root is None:
        val_root = train_root
        train, val = _hold_out(train, train_root)
    else:
        val = _names_below(val_root)
        outside = f" outside {val_root.name}/" if train_root == root else ""
        _check_not_empty(train, f"{train_root} must hold at least one image{outside} to train on")
        _check_not_empty(val, f"{val_root} must hold at least one image to validate on")
    return DataSource(
        root.resolve().name, _without_labels(train_root, train), _without_labels(val_root, val), UNLABELLED.copy()
    )


def _without_labels(root: Path, names: np.ndarray) -> FolderImages:
    return FolderImages(root, names, np.zeros(len(names), dtype=np.int64))


def _hold_out(names: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The names of the training images, and of those held out for validation."""
    if len(names) < 2:
        found = "none" if not len(names) else f"only '{os.fsdecode(bytes(names[0]))}'"
        raise UserError("At least two images are needed, one to validate on", f"{found} in {folder}", FORMATS)
    count = min(max(len(names) // HOLD_OUT_EVERY, 1), HOLD_OUT_MOST)
    # RandomState's streams are frozen, so the split is the same under every version of numpy.
    held_out = np.zeros(len(names), dtype=bool)
    held_out[np.random.RandomState(0).permutation(len(names))[:count]] = True
    return names[~held_out], names[held_out]


def _names_below(root: Path, leave_out: tuple[str, ...] = ()) -> np.ndarray:
    """Paths of all images below a folder, relative to it, as sorted bytes.

    Args:
        root: the folder.
        leave_out: folders directly in it that are not entered.
    """
    return np.sort(np.array(list(_walk(root, leave_out)), dtype=np.bytes_))


def _walk(root: Path, leave_out: tuple[str, ...]) -> Iterator[bytes]:
    entered: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:  # links may lead round in a circle
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        below = "" if folder == str(root) else os.path.relpath(folder, root)
        not_wanted = () if below else leave_out
        # Sorted, so that of two links to one folder the same is followed each time.
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in not_wanted)
        yield from (os.fsencode(os.path.join(below, name)) for name in files if _is_image(name))


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
        raise UserError("At least one image is needed", f"none in '{path}'", FORMATS)
    return images


def _is_image(path: str) -> bool:
    # Names with a leading dot are other programs' files, such as the "._photo.jpg" that macOS leaves behind.
    return is_image_file(path) and not os.path.basename(path).startswith(".")


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the names that is a folder in `root`."""
    return next((root / name for name in names if (root / name).is_dir()), None)


def _check_not_empty(names: np.ndarray, rule: str) -> None:
    if not len(names):
        raise UserError(rule, "none", FORMATS)


def _split_folder(root: Path, names: tuple[str, ...]) -> Path:
    if (folder := _first(root, names)) is not None:
        return folder
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
    numbers = {name: number for number, name in enumerate(classes)}
    # allow_empty, so that all classes that are empty can be named.
    samples = make_dataset(split, numbers, is_valid_file=_is_image, allow_empty=True)
    names = np.array([os.fsencode(os.path.relpath(path, split)) for path, _ in samples], dtype=np.bytes_)
    labels = np.array([label for _, label in samples], dtype=np.int64)
    counts = np.bincount(labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise UserError(
            f"Every class folder in {split} must hold at least one image",
            f"none in {_some(empty)}",
            FORMATS,
        )
    return FolderImages(split, names, labels)


def _some(names: Iterable[str], shown: int = 3) -> str:
    """Up to three names, e.g. "'a', 'b', 'c' and 2 more"."""
    ordered = sorted(names)
    text = ", ".join(repr(name) for name in ordered[:shown]) or "none"
    return text if len(ordered) <= shown else f"{text} and {len(ordered) - shown} more"
