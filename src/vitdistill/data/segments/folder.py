"""Folder pairs on disk: `images/<split>/` and `annotations/<split>/` (or `masks/`), as ADE20K has them.

Every image has a mask of the same name, but for the ending, at the same place below its split.
"""

import os
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitdistill.data.folders import TRAIN_NAMES, VAL_NAMES, FileSamples, as_bytes, first_folder, listing, some
from vitdistill.data.images.decode import open_image, read_image
from vitdistill.data.images.folder import IMAGES
from vitdistill.data.left_out import say_left_out, say_once
from vitdistill.data.samples import UNREADABLE, ViewOptions, digest_of, reason_of
from vitdistill.data.segments.files import SegmentFiles
from vitdistill.data.segments.masks import IGNORED, MaskError, read_mask
from vitdistill.data.segments.names import read_names
from vitdistill.data.segments.samples import Segmented, SegmentSamples
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.types import InputSpec

IMAGE_FOLDERS, MASK_FOLDERS = ("images",), ("annotations", "masks", "labels")
NAME_FILES = ("objectInfo150.txt", "classes.txt")  # beside the images, or a folder above
ADE, ADE_CLASSES = "ADEChallengeData2016", 150
LAYOUT = (
    "Expected <data>/images/{training,validation}/*.jpg and <data>/annotations/{training,validation}/*.png (or train "
    "and val, and masks in place of annotations)"
)
LOOKED_AT = 8  # pairs that `check` opens


class SegmentFolder(FileSamples, SegmentSamples):
    """The images and masks of one split."""

    def __init__(
        self, root: Path, names: np.ndarray, masks_root: Path, masks: np.ndarray, classes: int, files: SegmentFiles
    ) -> None:
        """
        Args:
            root: the folder of images.
            names: paths of images below it, as bytes.
            masks_root: the folder of masks.
            masks: paths of their masks below that, as bytes.
            classes: how many there are.
            files: what the masks mean.
        """
        super().__init__(root, names)
        self.masks_root, self._masks = str(masks_root), masks
        self.classes, self.reduced = classes, bool(files.reduce_zero_label)
        self.ratio = files.ratio or SegmentSamples.ratio

    @property
    def labels(self) -> None:
        return None

    def mask_path(self, index: int) -> str:
        """The file of a mask."""
        return os.path.join(self.masks_root, os.fsdecode(bytes(self._masks[index])))

    def load(self, index: int) -> tuple[Segmented, None]:
        image, place = read_image(self.path(index)), self.mask_path(index)
        try:
            mask = read_mask(place, self.classes, reduce_zero_label=self.reduced)
        except MaskError:
            raise
        except UNREADABLE as error:
            raise OSError(f"mask {place}: {reason_of(error, place)}") from error
        if mask.shape != (image.height, image.width):
            sizes = f"{mask.shape[1]}x{mask.shape[0]} pixels, where its image has {image.width}x{image.height}"
            raise MaskError(f"mask {place}: {sizes}")
        return Segmented(image, mask), None

    def short_side(self, index: int) -> int | None:
        with open_image(self.path(index)) as image:
            return min(image.size)

    def digest(self) -> str:
        return digest_of(super().digest().encode(), str(self.classes).encode(), str(self.reduced).encode())

    def check(self, spec: InputSpec, options: ViewOptions) -> None:
        """
        Raises:
            UserError: when most masks that are looked at mean nothing: a single one is left out and counted.
        """
        wrong: list[str] = []
        blank: list[str] = []
        looked_at = np.unique(np.linspace(0, len(self) - 1, min(LOOKED_AT, len(self))).astype(int)).tolist()
        for index in looked_at:
            try:
                if (self.load(index)[0].mask == IGNORED).all():
                    blank.append(self.mask_path(index))
            except MaskError as error:
                wrong.append(str(error))
            except UNREADABLE as error:
                reason_of(error, self.path(index))  # raises what is no fault of the file
        if 2 * len(wrong) > len(looked_at):
            remedy = "Check --segments.classes and --segments.reduce_zero_label"
            raise UserError("Masks must hold the number of a class in each pixel", wrong[0], remedy)
        if len(blank) == len(looked_at):
            remedy = "Check --segments.reduce_zero_label"
            raise UserError("Masks must have pixels of some class", f"{blank[0]}, all of which is ignored", remedy)


def is_pair_folder(path: object) -> bool:
    """Whether a path is a folder of images and one of masks."""
    if not isinstance(path, str | Path) or not (root := Path(path).expanduser()).is_dir():
        return False
    return first_folder(root, IMAGE_FOLDERS) is not None and first_folder(root, MASK_FOLDERS) is not None


def segment_folder(path: str | Path, files: SegmentFiles = SegmentFiles()) -> DataSource:
    """Open a folder of images and masks.

    Args:
        path: holds `images/` and `annotations/` (or `masks/`, `labels/`), each with the folders `training/` and
            `validation/` (or `train/`, `val/`, ...).
        files: what the masks mean.

    Raises:
        UserError: when the folder or a split is missing or empty, an image has no mask, or the classes are not known.

    Example:
        >>> source = segment_folder("/data/ADEChallengeData2016")
        >>> image, mask = source.train.load(0)[0]
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError("The data folder must exist and be a folder", f"'{path}'", LAYOUT)
    with listing(root):
        places = [first_folder(root, names) for names in (IMAGE_FOLDERS, MASK_FOLDERS)]
        if places[0] is None or places[1] is None:
            missing = "images" if places[0] is None else " or ".join(MASK_FOLDERS)
            raise UserError(f"{root} must have folders of images and of masks", f"no {missing}", LAYOUT)
        is_ade = ADE in (root.name, root.resolve().name)
        if is_ade and files.reduce_zero_label is None:
            files = replace(files, reduce_zero_label=True)
            say_once(f"{root}: masks count classes from 1, and 0 is ignored (--segments.reduce_zero_label true)")
        classes = _classes(root, files, is_ade)
        train, val = (
            _split(root, (places[0], places[1]), names, len(classes), files) for names in (TRAIN_NAMES, VAL_NAMES)
        )
    return DataSource(root.resolve().name, train, val, classes)


def _classes(root: Path, files: SegmentFiles, is_ade: bool) -> list[str]:
    if isinstance(files.classes, int):
        return [str(number) for number in range(files.classes)]
    if files.classes is not None:
        return read_names(files.classes)
    for place in (root / name for name in NAME_FILES):
        if place.is_file():
            return read_names(place)
    if is_ade:
        return [str(number) for number in range(ADE_CLASSES)]
    raise UserError(
        "The classes of masks must be known",
        f"no {' or '.join(NAME_FILES)} in {root}",
        "Give --segments.classes: a file with a name on each line, or how many there are",
    )


def _split(
    root: Path, places: tuple[Path, Path], names: tuple[str, ...], classes: int, files: SegmentFiles
) -> SegmentFolder:
    """One split: every image with its mask."""
    folders = [first_folder(place, names) for place in places]
    for place, folder in zip(places, folders, strict=True):
        if folder is None:
            raise UserError(f"{place} must have a folder {' or '.join(names[:2])}", "none", LAYOUT)
    images_in, masks_in = folders
    assert images_in is not None and masks_in is not None
    left: Counter[str] = Counter()
    images = sorted(IMAGES.below(images_in, (), left))
    if not images:
        raise UserError(f"{images_in} must hold at least one image", "none", IMAGES.formats)
    listed = IMAGES.below(masks_in, (), left)
    for place, names_there in ((images_in, images), (masks_in, listed)):
        stems = Counter(map(_stem, names_there))
        if twice := [name for name in names_there if stems[_stem(name)] > 1]:
            rule = f"Images and masks belong together by their names without the ending, which must differ in {place}"
            raise UserError(rule, some(sorted(twice)), "Remove or rename those that are there twice")
    masks = {_stem(name): name for name in listed}
    if missing := [name for name in images if _stem(name) not in masks]:
        got = f"{len(missing)} of {len(images)} images of {images_in} without one: {some(missing)}"
        raise UserError(f"Every image must have a mask of its name in {masks_in}", got, LAYOUT)
    if (others := len(masks) - len({_stem(name) for name in images})) > 0:
        say_once(f"Left out of {masks_in}: {others} mask{'s' if others > 1 else ''} without an image")
    say_left_out(root, "image", left)
    paired = [masks[_stem(name)] for name in images]
    return SegmentFolder(images_in, as_bytes(images), masks_in, as_bytes(paired), classes, files)


def _stem(name: str) -> str:
    """Of a path without its ending, letters with marks as one sign each (some file systems part them)."""
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])
