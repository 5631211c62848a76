"""Miniature data sets with boxes, in the layouts of VOC's devkit and of COCO."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"cat": (220, 40, 40), "dog": (40, 200, 40), "person": (60, 60, 230)}
IDS = {"cat": 17, "dog": 18, "person": 1}  # COCO's

Object = tuple[str, tuple[int, int, int, int]]  # class, and x1, y1, x2, y2 behind the last column and row


def objects(number: int, size: tuple[int, int]) -> list[Object]:
    """One or two coloured boxes in an image of so many columns and rows; every fifth image has none."""
    chance = np.random.RandomState(number)
    if number % 5 == 4:
        return []
    found: list[Object] = []
    for half in range(1 + number % 2):
        width, height = (int(chance.randint(side // 4, side // 2)) for side in size)
        left = int(chance.randint(0, size[0] // 2 - width + 1)) + half * (size[0] // 2)
        top = int(chance.randint(0, size[1] - height))
        found.append((sorted(COLOURS)[chance.randint(3)], (left, top, left + width, top + height)))
    return found


def size_of(number: int) -> tuple[int, int]:
    """Columns and rows: images differ in size."""
    return ((64, 48), (48, 64), (80, 48))[number % 3]


def write_image(path: Path, number: int, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], 3), 20, dtype=np.uint8)
    for label, (x1, y1, x2, y2) in objects(number, size):
        pixels[y1:y2, x1:x2] = COLOURS[label]
    Image.fromarray(pixels).save(path)


def xml(size: tuple[int, int], found: list[Object], difficult: int = 0) -> str:
    """As VOC has it: numbers of pixels, counted from 1, both ends among them."""
    boxes = "".join(
        f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1 + 1}</xmin>"
        f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, (x1, y1, x2, y2) in found
    )
    whole = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation>{whole}{boxes}</annotation>"


def voc(root: Path, counts: dict[str, dict[str, int]] | None = None) -> Path:
    """A devkit; images of a year are numbered over its lists.

    Args:
        root: the folder that holds VOCdevkit.
        counts: images in each list of each year.
    """
    counts = counts or {"2012": {"train": 10, "val": 6}}
    for year, lists in counts.items():
        folder, number = root / "VOCdevkit" / f"VOC{year}", 0
        for part, count in lists.items():
            names = [f"{year}_{number + each:06d}" for each in range(count)]
            listed = folder / "ImageSets" / "Main" / f"{part}.txt"
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text("".join(f"{name}\n" for name in names))
            for name in names:
                write_image(folder / "JPEGImages" / f"{name}.jpg", number, size_of(number))
                place = folder / "Annotations" / f"{name}.xml"
                place.parent.mkdir(exist_ok=True)
                place.write_text(xml(size_of(number), objects(number, size_of(number))))
                number += 1
    return root


def coco_json(first: int, count: int) -> dict[str, Any]:
    """Images and annotations; ids have gaps and are in no order."""
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for name, number in IDS.items()],
    }
    for number in range(first, first + count):
        width, height = size_of(number)
        name = f"{number:012d}.png"
        content["images"].append({"id": 100 + number, "file_name": name, "width": width, "height": height})
        for label, (x1, y1, x2, y2) in objects(number, (width, height)):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": 100 + number,
                    "category_id": IDS[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    return content


def coco(root: Path, train: int = 10, val: int = 6, *, as_voc: bool = False) -> Path:
    """COCO 2017's layout, or that of VOC in COCO's format."""
    first = 0
    for split, count in (("train", train), ("val", val)):
        folder = root / ("images/" + split if as_voc else f"{split}2017")
        content = coco_json(first, count)
        for image in content["images"]:
            number = image["id"] - 100
            write_image(folder / image["file_name"], number, size_of(number))
        file = root / "annotations" / (f"voc_{split}.json" if as_voc else f"instances_{split}2017.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
        first += count
    return root
