"""COCO's format: a json file of images, annotations and categories beside folders of images."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdistill.data.boxes.annotations import UNKNOWN, Boxes, Gathering
from vitdistill.data.folders import some
from vitdistill.errors import UserError

PUBLISHED = 91  # classes of networks that were published for COCO: its ids 0 to 90, of which ten and 0 name nothing
LARGEST = 2**31 - 1  # of ids of categories and lengths of sides
PARTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Categories:
    """How ids of categories become class numbers.

    Attributes:
        ids: of each class, which may be one that names nothing.
        names: of each class.
    """

    ids: list[int]
    names: list[str]

    @property
    def numbers(self) -> dict[int, int]:
        """Class number of each id."""
        return {number: index for index, number in enumerate(self.ids)}


def read_json(path: Path) -> dict[str, Any]:
    """A file in COCO's format, of which its three lists are there.

    Raises:
        UserError: naming the file and what it lacks.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError("Annotations must be readable", f"{path} ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError("Annotations in COCO's format are json", f"{path} ({error})") from error
    lacking = [part for part in PARTS if not isinstance(content, dict) or not isinstance(content.get(part), list)]
    if lacking or not content["categories"]:
        what = f"{path} without {' and '.join(lacking)}" if lacking else f"{path} with no category"
        raise UserError(f"COCO's format has lists of {', '.join(PARTS[:-1])} and {PARTS[-1]}", what)
    return content


def categories_of(content: Mapping[str, Any], path: Path, *, published: bool) -> Categories:
    """The classes of a file: in the order of their ids, or under the ids themselves.

    Args:
        content: of the file.
        path: of the file, for messages.
        published: whether ids are class numbers.

    Raises:
        UserError: when ids or names are not distinct, or an id is beyond the published classes.
    """
    try:
        found = {_whole(each["id"]): _name(each["name"]) for each in content["categories"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError("Every category must have a number `id` and a `name`", f"{path}, categories") from error
    count = len(content["categories"])
    if len(found) < count or len(set(found.values())) < count:
        raise UserError("Ids and names of categories must be distinct", f"{path}, {count} categories")
    if not published:
        return Categories(sorted(found), [found[number] for number in sorted(found)])
    if beyond := sorted(number for number in found if not 0 <= number < PUBLISHED):
        what = f"{beyond[0]} ({found[beyond[0]]}) in {path}"
        what += f", the number of 'no object' among {PUBLISHED} classes" if beyond[0] == PUBLISHED else ""
        remedy = "Leave out --boxes.ids published, which numbers the classes by the order of their ids"
        raise UserError(f"With --boxes.ids published, ids of categories must lie in 0..{PUBLISHED - 1}", what, remedy)
    return Categories(list(range(PUBLISHED)), [found.get(number, f"unused {number}") for number in range(PUBLISHED)])


def read_coco(
    content: Mapping[str, Any], path: Path, folder: Path, categories: Categories, *, lenient: bool = False
) -> Boxes:
    """The boxes of a file.

    Args:
        content: of the file.
        path: of the file, for messages.
        folder: of the images.
        categories: whose numbers the classes get.
        lenient: note annotations of unknown categories instead of refusing them.

    Raises:
        UserError: when images are not on disk, an image or annotation lacks something, or an annotation is of an
            image or category that is not listed.
    """
    if not content["images"]:
        raise UserError(f"{path} must list at least one image", "none")
    gathering, numbers = Gathering(), categories.numbers
    of_image = _by_image(content, path)
    for number, image in enumerate(content["images"]):
        try:
            name, file, size = image["id"], str(image["file_name"]), (_whole(image["height"]), _whole(image["width"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            rule = "Every image must have id, file_name, width and height"
            raise UserError(rule, f"{path}, image {number} without {_words(error)}") from error
        if min(size) < 1:
            raise UserError("Width and height of an image must be above 0", f"{size[1]}x{size[0]} of {file} in {path}")
        gathering.image(os.path.join(folder, file), name, size)
        for annotation in of_image.get(name, ()):
            words = f"annotation {annotation.get('id', '?')}"
            category, (x, y, width, height) = annotation.get("category_id"), _box(annotation, words, path)
            if not isinstance(category, int | float) or category not in numbers:
                what = f"{category} of {words} in {path}"
                if not lenient:
                    ids = f"They are {some(categories.ids)}" if len(numbers) < PUBLISHED else ""
                    raise UserError("The category_id of an annotation must be that of a category", what, ids)
                gathering.problem(UNKNOWN, f"{words}, category {category}")
                continue
            crowd, area = _crowd_and_area(annotation, words, path)
            corners = (x, y, x + width, y + height)
            gathering.box(corners, numbers[int(category)], ignored=crowd, area=area, name=words)
    _check_files(gathering.paths, folder, path)
    return gathering.finish()


def _by_image(content: Mapping[str, Any], path: Path) -> dict[Any, list[Any]]:
    """The annotations of each image.

    Raises:
        UserError: when two images have one id, or an annotation is of an image that is not there.
    """
    images = content["images"]
    names = [image.get("id") for image in images if isinstance(image, dict)]
    found: dict[Any, list[Any]] = {name: [] for name in names if isinstance(name, int | float | str)}
    if len(found) < len(images):
        raise UserError("Every image must have an id of its own", f"{path}, {len(images)} images")
    for annotation in content["annotations"]:
        try:
            found[annotation["image_id"]].append(annotation)
        except (KeyError, TypeError) as error:
            what = annotation.get("image_id") if isinstance(annotation, dict) else annotation
            raise UserError("The image_id of an annotation must be that of an image", f"{what} in {path}") from error
    return found


def _box(annotation: Mapping[str, Any], words: str, path: Path) -> tuple[float, float, float, float]:
    try:
        x, y, width, height = map(float, _list(annotation["bbox"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        x = y = width = height = math.nan
    if not all(map(math.isfinite, (x, y, width, height))):
        rule = "The bbox of an annotation must be four numbers: x, y, width, height"
        raise UserError(rule, f"{annotation.get('bbox')} of {words} in {path}")
    return x, y, width, height


def _list(value: Any) -> list[Any]:
    """
    Raises:
        TypeError: when it is none: a text of four digits is no box.
    """
    if not isinstance(value, list):
        raise TypeError(value)
    return value


def _crowd_and_area(annotation: Mapping[str, Any], words: str, path: Path) -> tuple[bool, float | None]:
    """Whether it is a crowd, and its area where it says one.

    Raises:
        UserError: when one is no number that can be meant.
    """
    crowd, area = annotation.get("iscrowd"), annotation.get("area")
    try:
        number = 0.0 if crowd is None else float(crowd)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if number not in (0, 1):
        raise UserError("The iscrowd of an annotation must be 0 or 1", f"{crowd!r} of {words} in {path}")
    try:
        pixels = None if area is None else float(area)
    except (TypeError, ValueError, OverflowError):
        pixels = math.nan
    if pixels is not None and not 0 <= pixels < math.inf:
        raise UserError("The area of an annotation must be a number from 0 on", f"{area!r} of {words} in {path}")
    return bool(number), pixels


def _whole(value: Any) -> int:
    """
    Raises:
        TypeError, ValueError, OverflowError: when it is no whole number, or one beyond what is counted in pixels.
    """
    number = int(value)
    if (isinstance(value, float) and number != value) or abs(number) > LARGEST:
        raise ValueError(value)
    return number


def _name(value: Any) -> str:
    """
    Raises:
        ValueError: when it names nothing.
    """
    if value is None or not str(value).strip():
        raise ValueError(value)
    return str(value)


def _check_files(paths: Sequence[str], folder: Path, annotations: Path) -> None:
    """
    Raises:
        UserError: naming images that are not on disk.
    """
    if not folder.is_dir():
        remedy = "Name it with --boxes.train_images or --boxes.val_images"
        raise UserError(f"The images of {annotations} must be in an existing folder", f"'{folder}'", remedy)
    # One listing of each folder: asking for each of a hundred thousand files would take minutes on a network drive.
    there: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        parent, name = os.path.split(path)
        if parent not in there:
            there[parent] = {entry.name for entry in os.scandir(parent)} if os.path.isdir(parent) else set()
        if name not in there[parent]:
            missing.append(os.path.relpath(path, folder))
    if missing:
        rule = f"All images of {annotations} must be in {folder}"
        raise UserError(rule, f"{len(missing)} of {len(paths)} missing: {some(missing)}")


def _words(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, KeyError) else "numbers"
