"""The devkit of PASCAL VOC: VOCdevkit/VOC2012 with JPEGImages, Annotations and ImageSets/Main."""

import math
import os
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError, parse

from vitdistill.data.boxes.annotations import UNKNOWN, Boxes, Gathering
from vitdistill.data.folders import some
from vitdistill.errors import UserError, near

DEVKIT = "VOCdevkit"
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# What to train and to validate on: years and their lists of images.
SPLITS: dict[str, tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]] = {
    "VOC2012": ((("2012", "train"),), (("2012", "val"),)),
    "VOC2007": ((("2007", "train"),), (("2007", "val"),)),
    "07+12": ((("2007", "trainval"), ("2012", "trainval")), (("2007", "test"),)),
}


def devkit_of(data: Path) -> Path | None:
    """The folder of the years: the data itself, VOCdevkit in it, or that above one year; None where it is no devkit."""
    for folder in (data / DEVKIT, data):
        if folder.is_dir() and any((each / "JPEGImages").is_dir() for each in folder.glob("VOC*")):
            return folder
    year = data.resolve() if data.name in ("", "..") else data  # "." has no name
    return year.parent if (year / "JPEGImages").is_dir() and year.name.startswith("VOC") else None


def read_voc(devkit: Path, year: str, part: str, *, lenient: bool = False) -> Boxes:
    """The boxes of one list of images of a year.

    Args:
        devkit: the folder of the years.
        year: 2007 or 2012.
        part: train, val, trainval or test.
        lenient: note objects of unknown classes instead of refusing them.

    Raises:
        UserError: when the year or the list is missing or empty, images or annotations are, or an annotation cannot be
            read, lacks something, or is of a class that VOC has not.
    """
    folder = devkit / f"VOC{year}"
    if not folder.is_dir():
        there = sorted(each.name for each in devkit.glob("VOC*") if each.is_dir())
        raise UserError(f"{devkit} must hold VOC{year}", f"{some(there)} alone", "Choose another --boxes.split")
    listed = folder / "ImageSets" / "Main" / f"{part}.txt"
    try:
        names = [line.split()[0] for line in listed.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise UserError(f"The list {part} of VOC{year} must be readable", f"{listed} ({reason})") from error
    if not names:
        raise UserError(f"{listed} must list at least one image", "none")
    for place, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        files = {entry.name for entry in os.scandir(folder / place)} if (folder / place).is_dir() else set()
        missing = [file for file in (name + suffix for name in names) if file not in files]
        if missing:
            rule = f"All images of {listed} must have a file in {folder / place}"
            raise UserError(rule, f"{len(missing)} of {len(names)} missing: {some(missing)}")
    gathering = Gathering()
    for name in names:
        _read_xml(gathering, folder, name, lenient)
    return gathering.finish()


def _read_xml(gathering: Gathering, folder: Path, name: str, lenient: bool) -> None:
    from torchvision.datasets import VOCDetection

    path = folder / "Annotations" / f"{name}.xml"
    try:
        content: Any = VOCDetection.parse_voc_xml(parse(path).getroot())["annotation"]
    except (ParseError, KeyError, OSError, LookupError, ValueError) as error:
        raise UserError("Annotations of VOC are xml with an <annotation>", f"{path} ({error})") from error
    try:
        size = int(content["size"]["height"]), int(content["size"]["width"])
    except (KeyError, TypeError, ValueError):
        size = (0, 0)
    if min(size) < 1:
        raise UserError("The <size> of an annotation must say width and height", f"{_size_words(content)} in {path}")
    gathering.image(str(folder / "JPEGImages" / f"{name}.jpg"), name, size)
    for number, each in enumerate(content.get("object", ()), 1):
        if not isinstance(each, dict):  # text in place of parts
            raise UserError("An <object> must have a <name> and a <bndbox>", f"{each!r} in {path}")
        label = str(each.get("name", "")).strip()
        words = f"object {number}, {label}"
        if label not in CLASSES:
            if not lenient:
                rule = "The <name> of an object must be one of VOC's 20 classes"
                raise UserError(rule, f"{label!r} in {path}", near(label, CLASSES))
            gathering.problem(UNKNOWN, words)
            continue
        try:
            x1, y1, x2, y2 = (float(each["bndbox"][corner]) for corner in ("xmin", "ymin", "xmax", "ymax"))
        except (KeyError, TypeError, ValueError):
            x1 = y1 = x2 = y2 = math.nan
        if not all(map(math.isfinite, (x1, y1, x2, y2))):
            raise UserError("The <bndbox> of an object must say xmin, ymin, xmax and ymax", f"{words} in {path}")
        difficult = str(each.get("difficult", "0")).strip() == "1"
        # Numbers of pixels, counted from 1, both ends among them.
        gathering.box((x1 - 1, y1 - 1, x2, y2), CLASSES.index(label), ignored=difficult, name=words)


def _size_words(content: Any) -> str:
    size = content.get("size") if isinstance(content, dict) else None
    return (
        f"{size['width']} by {size['height']}"
        if isinstance(size, dict) and {"width", "height"} <= set(size)
        else "none"
    )
