"""Images on disk: `train/` and `val/`, one folder per class in each, as ImageNet and torchvision have them.

What trains without labels takes any folder of images.
"""

import os
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from vitdistill.data.folders import (
    FileSamples,
    Kind,
    has_classes,
    is_image,
    labelled,
    labelled_if_possible,
    listing,
    unlabelled,
)
from vitdistill.data.images.decode import (
    HEIF_EXTRA,
    HEIF_SUFFIXES,
    has_heif,
    highest_of_16_bit,
    image_suffixes,
    open_image,
    read_image,
)
from vitdistill.data.images.samples import ImageSamples
from vitdistill.data.labels_csv import by_table, find_table, say_unnamed
from vitdistill.data.left_out import say_left_out, say_once, suffix
from vitdistill.data.media import walk
from vitdistill.data.samples import UNREADABLE, ViewOptions, reason_of
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.types import InputSpec

LOOKED_AT = 8  # images that `check` opens
DARK = 2**13  # an eighth of the range of 16 bits
FORMATS = "JPEG, PNG, WebP, TIFF, GIF, AVIF, HEIC and all else that Pillow reads"


class FolderImages(FileSamples, ImageSamples):
    """The images of one split."""

    def load(self, index: int) -> tuple[Image.Image, int | None]:
        return read_image(self.path(index)), self.label(index)

    def short_side(self, index: int) -> int | None:
        with open_image(self.path(index)) as image:
            return min(image.size)

    def check(self, spec: InputSpec, options: ViewOptions) -> None:
        """Warn of 16-bit images that hardly use their range, such as 12-bit numbers of a camera: they come out dark."""
        highest: list[int] = []
        for index in np.unique(np.linspace(0, len(self) - 1, min(LOOKED_AT, len(self))).astype(int)).tolist():
            try:
                found = highest_of_16_bit(self.path(index))
            except UNREADABLE as error:
                reason_of(error, self.path(index))  # raises what is no fault of the file
                continue
            highest += [] if found is None else [found]
        if highest and max(highest) < DARK:
            say_once(
                f"The 16-bit images of {self.root} are nearly black: the highest number in {len(highest)} of them is "
                f"{max(highest)}, and 65535 is white. Stretch them to their range, all alike"
            )


def image_folder(path: str | Path, *, labels: bool = True) -> DataSource:
    """Open a folder with `train/` and `val/` (or `validation/`, `valid/`, `test/`), one folder per class in each.

    Other programs' files and folders (names that start with a dot, `@eaDir`, `__MACOSX`) are ignored; images may lie
    deeper inside a class folder. Without class folders, a table of labels such as `labels.csv` names images and their
    classes, see `labels_csv.by_table`. What is not read is counted and named once.

    Without labels, a folder as above is opened as ever, and any other folder with at least two images is good as
    well. Its images have no labels, and the source no classes:

    - Those anywhere below `train/` are for training; without a `train/`, all below the folder except the other splits.
    - Those anywhere below `val/` (or `validation/`, `test/`) are for validation. Without such a folder, a share of
      the training images is held out: 1% of them, at least 1, at most 5000. Which ones is random but fixed: the same
      for the same files at every opening.

    Args:
        path: the folder that holds both splits, or, without labels, any images.
        labels: whether the classes are needed.

    Raises:
        UserError: when the folder is missing. With labels, when a split is missing, a class is empty, there are
            fewer than two classes, or validation has classes that training lacks. Without, when there are fewer than
            two images, or none in a split. When there are HEIC pictures and pillow-heif is not installed.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        layout = IMAGES.layout if labels else "Any folder with at least two images in it will do"
        raise UserError("The data folder must exist and be a folder", f"'{path}'", layout)
    if not labels:
        return labelled_if_possible(root, IMAGES) or unlabelled(root, IMAGES)
    table = None if has_classes(root) else find_table(root)
    if table is None:
        return labelled(root, IMAGES)
    source = by_table(table, IMAGES)
    say_unnamed(root, table, IMAGES, source)
    return source


def list_images(path: str | Path) -> list[Path]:
    """An image file, or all images below a folder, in sorted order.

    Raises:
        UserError: when there is no such path, or no image.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise UserError("An image or a folder of images must exist", f"'{path}'")
    left: Counter[str] = Counter()
    if root.is_dir():
        with listing(root):
            images = sorted(root / name for name in _images_below(root, (), left))
        say_left_out(root, "image", left)
    else:
        images = [root] if is_image(str(root)) else []
    if not images:
        raise UserError("At least one image is needed", f"none in '{path}'", FORMATS)
    return images


def _images_below(root: Path, leave_out: tuple[str, ...], left: Counter[str]) -> list[str]:
    """Paths of all images below a folder, relative to it, folder by folder; counts the other files."""
    suffixes, found = image_suffixes(), []
    for below, _, files in walk(root, leave_out):
        endings = [suffix(name) for name in files]
        images = [name for name, ending in zip(files, endings, strict=True) if ending in suffixes]
        if len(images) < len(files):
            left.update(ending for ending in endings if ending not in suffixes)
        if not HEIF_SUFFIXES.isdisjoint(endings) and not has_heif():
            raise UserError(f"{root} holds HEIC pictures, which need pillow-heif", remedy=HEIF_EXTRA)
        found.append((below, images))
    return [os.path.join(below, name) for below, images in sorted(found) for name in images]


IMAGES = Kind(
    word="image",
    is_sample=is_image,
    below=_images_below,
    make=FolderImages,
    layout="Expected <data>/train/<class>/*.jpg and <data>/val/<class>/*.jpg",
    formats=FORMATS,
)
