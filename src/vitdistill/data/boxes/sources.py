"""From what `--data` names to images with boxes: the bundled scenes, a VOC devkit, or files in COCO's format."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from vitdistill.data.boxes.annotations import Boxes, Gathering
from vitdistill.data.boxes.coco import Categories, categories_of, read_coco, read_json
from vitdistill.data.boxes.files import BoxFiles
from vitdistill.data.boxes.resizing import Resizing, resizing_of
from vitdistill.data.boxes.samples import BoxImages, SceneImages
from vitdistill.data.boxes.voc import CLASSES, SPLITS, devkit_of, read_voc
from vitdistill.data.bundled import scenes
from vitdistill.data.folders import some
from vitdistill.data.open import SCENES
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, refuse_without_effect

# Where files in COCO's format lie below the data, by split: of COCO 2017, and of VOC as it is usually converted.
JSON = {
    split: (f"annotations/instances_{split}2017.json", f"annotations/voc_{split}.json") for split in ("train", "val")
}
PURPOSES = {"train": "train", "val": "validate"}  # of the splits, in words
FOLDERS = {split: (f"{split}2017", f"images/{split}", split) for split in ("train", "val")}
LAYOUT = (
    "Expected VOCdevkit/VOC2012/..., annotations/instances_train2017.json and train2017/, or --boxes.train and .val"
)


@dataclass(frozen=True)
class _Read:
    """Boxes by split, and their classes."""

    sets: dict[str, Boxes]
    classes: list[str]
    category_ids: list[int]


def open_boxes(data: Any, files: BoxFiles = BoxFiles(), *, lenient: bool = False, tested: bool = False) -> DataSource:
    """Images with boxes to train and to validate on, whose sets are `BoxImages`.

    Args:
        data: scenes (bundled), a folder that holds a VOC devkit or is one, a folder with files in COCO's format, or a
            source that `open_boxes` has opened.
        files: which of them, and how they are resized.
        lenient: note annotations of unknown classes instead of refusing them, for `vitdistill check`.
        tested: read what is validated on alone, as COCO's file to train on takes minutes; that set is then empty.

    Raises:
        UserError: when it is none of these, files are missing or cannot be read, there is no box to train or to
            validate on, or an option has no effect.

    Example:
        >>> source = open_boxes("/data/VOCdevkit", BoxFiles(split="07+12"))
        >>> source.val.load(0)[0].corners  # x1, y1, x2, y2 in pixels
    """
    if isinstance(data, DataSource) and isinstance(data.train, BoxImages):
        return data
    if not isinstance(data, str | Path):
        what = f"the source {data.name}" if isinstance(data, DataSource) else type(data).__name__
        raise UserError("Boxes are annotated in files", what, f"Give a folder, or {SCENES}. {LAYOUT}")
    if data == SCENES:
        _refuse(files, ("split", "ids", "train", "val", "train_images", "val_images"), "on bundled scenes")
        resizing = resizing_for(data, scenes.CLASSES, files)
        scene_train, scene_val = (SceneImages(part, count, resizing) for part, count in _counts().items())
        return DataSource(SCENES, scene_train, scene_val, scenes.CLASSES, scenes.CANVAS if resizing is None else None)
    root = Path(data).expanduser()
    if not root.is_dir():
        raise UserError(f"--data must be an existing folder of images with boxes, or {SCENES}", f"'{data}'", LAYOUT)
    devkit = devkit_of(root) if files.train is None and files.val is None else None
    splits = ("val",) if tested else tuple(PURPOSES)
    read = _of_json(root, files, splits, lenient) if devkit is None else _of_devkit(devkit, files, splits, lenient)
    resizing = resizing_for(str(data), read.classes, files)
    for split, boxes in read.sets.items():
        boxes.say_problems(root.name)
        if boxes.ignored.all():  # also when there is none
            purpose = PURPOSES[split]
            raise UserError(f"There must be at least one box to {purpose} on", f"none in {len(boxes)} images of {root}")
    train, val = (
        BoxImages(
            read.sets[split] if split in splits else Gathering().finish(),
            read.category_ids,
            resizing,
            trains=split == "train",
        )
        for split in PURPOSES
    )
    name = f"{root.name} {files.split or 'VOC2012'}" if devkit is not None else root.name
    return DataSource(name, train, val, read.classes)


def has_annotations(data: object) -> bool:
    """Whether a path is a VOC devkit, or a folder with a file of boxes where COCO has it."""
    if not isinstance(data, str | Path) or not (root := Path(data).expanduser()).is_dir():
        return False
    return devkit_of(root) is not None or any((root / name).is_file() for names in JSON.values() for name in names)


def resizing_for(data: str, classes: Sequence[str], files: BoxFiles) -> Resizing | None:
    """How images of some data are resized; None brings all to the network's size.

    Args:
        data: what `--data` names.
        classes: names of the classes.
        files: the options, of which `resize` may leave it to the data.

    Raises:
        UserError: when sizes are given where there is one size only.
    """
    auto = "fixed" if data == SCENES else "voc" if set(classes) == set(CLASSES) else "coco"
    return resizing_of(files, auto)


def _counts() -> dict[scenes.Part, int]:
    return {"train": scenes.TRAIN, "val": scenes.VAL}


def _of_devkit(devkit: Path, files: BoxFiles, splits: Sequence[str], lenient: bool) -> _Read:
    _refuse(files, ("ids", "train_images", "val_images"), "on a VOC devkit")

    def together(parts: Iterable[tuple[str, str]]) -> Boxes:
        return reduce(Boxes.joined, (read_voc(devkit, year, part, lenient=lenient) for year, part in parts))

    parts = dict(zip(PURPOSES, SPLITS[files.split or "VOC2012"], strict=True))
    sets = {split: together(parts[split]) for split in splits}
    return _Read(sets, list(CLASSES), list(range(1, len(CLASSES) + 1)))


def _of_json(root: Path, files: BoxFiles, splits: Sequence[str], lenient: bool) -> _Read:
    _refuse(files, ("split",), "on files in COCO's format")
    paths = {split: _json(root, split, getattr(files, split)) for split in splits}
    contents = {split: read_json(path) for split, path in paths.items()}
    published = files.ids == "published"
    categories = {split: categories_of(contents[split], paths[split], published=published) for split in splits}
    if len(splits) > 1 and categories["train"] != categories["val"]:
        raise UserError("Both files must list the same categories", _difference(categories), "Make them one list")
    found = {
        split: read_coco(
            contents[split],
            paths[split],
            _images(root, split, getattr(files, f"{split}_images")),
            categories[split],
            lenient=lenient,
        )
        for split in splits
    }
    return _Read(found, categories["val"].names, categories["val"].ids)


def _json(root: Path, split: str, given: str | None) -> Path:
    """The file of a split: as named, from here or from the data's folder, or where it lies by default."""
    places = [root / name for name in JSON[split]] if given is None else [Path(given).expanduser(), root / given]
    for place in places:
        if place.is_file():
            return place
    if given is not None:
        raise UserError(f"--boxes.{split} must be an existing file", f"'{given}'")
    raise UserError(f"{root} must hold images with boxes", f"no {' nor '.join(JSON[split])} in it", LAYOUT)


def _images(root: Path, split: str, given: str | None) -> Path:
    places = [root / name for name in FOLDERS[split]] if given is None else [Path(given).expanduser(), root / given]
    return next((place for place in places if place.is_dir()), places[0])


def _difference(categories: dict[str, Categories]) -> str:
    names = {split: set(zip(each.ids, each.names, strict=True)) for split, each in categories.items()}
    lone = names["train"] ^ names["val"]
    return f"{some(f'{number} {name}' for number, name in sorted(lone))} in one of them alone"


def _refuse(files: BoxFiles, options: tuple[str, ...], why: str) -> None:
    values = {f"boxes.{name}": getattr(files, name) for name in options}
    refuse_without_effect(values, {}, values, why)
