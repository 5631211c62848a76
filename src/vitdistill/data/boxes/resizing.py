"""How images with boxes are resized: the sizes of the published recipes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vitdistill.data.boxes.files import BoxFiles
from vitdistill.errors import refuse_given

Size = tuple[int, int]


@dataclass(frozen=True)
class Resizing:
    """Sizes in pixels; every resize rounds both sides down to whole patches.

    Attributes:
        sides: of the shorter side in training, of which one is drawn.
        longest: of the longer side.
        before: of the shorter side before a random crop, of which one is drawn.
        crop: least and greatest side of a random crop.
        eval_side: of the shorter side in validation.
        eval_longest: of the longer side in validation.
    """

    sides: tuple[int, ...]
    longest: int
    before: tuple[int, ...]
    crop: tuple[int, int]
    eval_side: int
    eval_longest: int


# Those of YOLOS on COCO and of YOLOS and ViDT on VOC.
BEFORE = (400, 500, 600)
RESIZINGS = {
    "coco_tiny": Resizing(tuple(range(256, 609, 16)), 1013, BEFORE, (384, 600), 512, 853),
    "coco": Resizing(tuple(range(480, 801, 16)), 1333, BEFORE, (384, 600), 800, 1333),
    "voc": Resizing(tuple(range(416, 609, 16)), 800, BEFORE, (384, 512), 512, 800),
}


def resizing_of(files: BoxFiles, auto: str) -> Resizing | None:
    """The recipe that the options name, with their changes; None where all images get the network's size.

    Other `sides` scale the crops along: they stay the same share of the greatest side.

    Args:
        files: the options.
        auto: the recipe where they name none.

    Raises:
        UserError: when sizes are given where there is one size only.
    """
    name = auto if files.resize in (None, "auto") else files.resize
    given = {"boxes.sides": files.sides, "boxes.longest": files.longest, "boxes.eval_side": files.eval_side}
    if name == "fixed":
        why = "where all images get the network's size (--boxes.resize fixed)"
        refuse_given({option: value is not None for option, value in given.items()}, why)
        return None
    found = RESIZINGS[str(name)]
    if files.sides is not None:
        share = max(files.sides) / max(found.sides)
        before = tuple(max(1, round(share * side)) for side in found.before)
        crop = (max(1, round(share * found.crop[0])), max(1, round(share * found.crop[1])))
        longest = max(1, round(share * found.longest))
        found = replace(found, sides=tuple(files.sides), before=before, crop=crop, longest=longest)
    if files.eval_side is not None:
        eval_longest = max(1, round(found.eval_longest * files.eval_side / found.eval_side))
        found = replace(found, eval_side=files.eval_side, eval_longest=eval_longest)
    if files.longest is not None:
        found = replace(found, longest=files.longest, eval_longest=files.longest)
    return found


def sizes_of(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """The options that resize images as the record of a network says, where it says so.

    Args:
        preprocessing: as `BoxImages.preprocessing` wrote it.

    Example:
        >>> sizes_of({"crop_mode": "border", "short_side": 512, "long_side": 800})
        {'eval_side': 512, 'longest': 800}
    """
    if preprocessing.get("crop_mode") == "squash":
        return {"resize": "fixed"}
    known = {"eval_side": preprocessing.get("short_side"), "longest": preprocessing.get("long_side")}
    return {} if None in known.values() else known


def resized(size: Size, side: int, longest: int, patch: Size) -> Size:
    """Height and width of an image whose shorter side is brought to `side`, or its longer one to `longest`.

    Both are rounded down to whole patches, at least one.

    Args:
        size: height and width of the image.
        side: wanted of the shorter side.
        longest: that the longer side may have.
        patch: height and width of a patch.

    Example:
        >>> resized((375, 500), 512, 800, (16, 16))
        (512, 672)
    """
    height, width = size
    if max(size) / min(size) * side > longest:
        side = round(longest * min(size) / max(size))
    scaled = (side, side * width // height) if height <= width else (side * height // width, side)
    rows, columns = (max(length // of_patch, 1) * of_patch for length, of_patch in zip(scaled, patch, strict=True))
    return rows, columns
