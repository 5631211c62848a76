"""The test sets by name, the classes that each has, and how a command names them. Needs no torch."""

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NamedTuple

from vitdistill.data.robustness.published import CORRUPTIONS, EXTRA, SEVERITIES
from vitdistill.errors import UserError, near


class Published(NamedTuple):
    """A test set as it was published.

    Attributes:
        title: what it is called in tables.
        images: how many it has; of ImageNet-C in the folder of each severity, of ImageNet-ReaL with a label.
        classes: timm's list of its classes.
        numbered: whether class folders are called by the number of their class.
    """

    title: str
    images: int
    classes: str = "imagenet_synsets.txt"
    numbered: bool = False


CLEAN, REAL, CORRUPTED = "clean", "real", "imagenet-c"
SETS = {
    CLEAN: Published("ImageNet validation", 50_000),
    REAL: Published("ImageNet-ReaL", 46_837),
    "imagenet-a": Published("ImageNet-A", 7_500, "imagenet_a_synsets.txt"),
    "imagenet-r": Published("ImageNet-R", 30_000, "imagenet_r_synsets.txt"),
    CORRUPTED: Published("ImageNet-C", 50_000),
    "sketch": Published("ImageNet-Sketch", 50_889),
    "v2": Published("ImageNet-V2", 10_000, numbered=True),
}
VALIDATION = (CLEAN, REAL)  # the same images, each with the class that it is filed under, and with all that it shows
SUBSETS = ("imagenet-a", "imagenet-r")  # have 200 of the classes, and are scored among these alone

_REMEDY = "For example --sets imagenet-a:/data/imagenet-a,v2:/data/imagenetv2-matched-frequency-format-val"


def classes_of(name: str) -> list[str]:
    """WordNet numbers of a set's classes, in the order of ImageNet's class numbers, which is that of text.

    Example:
        >>> len(classes_of("imagenet-r")), classes_of("v2")[0]
        (200, 'n01440764')
    """
    return _shipped(SETS[name].classes).split()


def real_labels() -> list[list[int]]:
    """Class numbers of all that each validation image shows, ascending, in the order of the files; of some images none.

    Example:
        >>> real_labels()[:3]
        [[], [795, 970], [230, 231]]
    """
    return [sorted(each) for each in json.loads(_shipped("imagenet_real_labels.json"))]


@cache
def _shipped(file: str) -> str:
    """A list that timm ships, read without importing timm, which takes seconds."""
    spec = find_spec("timm")
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / "data" / "_info" / file).read_text()


def sets_of(sets: str | Sequence[str]) -> dict[str, str]:
    """The folders that were given, by the names of the sets.

    Args:
        sets: name:folder with commas between them, or a list of such.

    Raises:
        UserError: for an unknown name, one without a folder, one that is given twice, or none.

    Example:
        >>> sets_of("imagenet-a:/data/a,v2:/data/v2")
        {'imagenet-a': '/data/a', 'v2': '/data/v2'}
    """
    # A comma within a folder's name is no end of it, unless a name and a colon follow.
    parts = re.split(r",(?=\s*[\w-]+:)", sets) if isinstance(sets, str) else list(sets)
    found: dict[str, str] = {}
    for part in parts:
        name, colon, folder = (piece.strip() for piece in str(part).partition(":"))
        if name not in SETS:
            known = near(name, SETS) or f"Those there are: {', '.join(SETS)}"
            raise UserError("--sets must name sets as name:folder, with commas between them", repr(part), known)
        if not colon or not folder:
            raise UserError(f"The set {name} must be given with its folder", repr(part), _REMEDY)
        if name in found:
            raise UserError("Each set may be given once", f"{name} twice: {found[name]} and {folder}")
        found[name] = folder
    if not found:
        raise UserError("--sets must name at least one set", repr(sets), _REMEDY)
    return found


def corruptions_of(corruptions: str | Sequence[str]) -> tuple[str, ...]:
    """Names of corruptions, in ImageNet-C's order.

    Args:
        corruptions: names with commas between them, or a list of them.

    Raises:
        UserError: for an unknown name, or none.
    """
    names = [str(part).strip() for part in (corruptions.split(",") if isinstance(corruptions, str) else corruptions)]
    for name in names or [""]:
        if name not in (*CORRUPTIONS, *EXTRA):
            known = near(name, (*CORRUPTIONS, *EXTRA)) or f"Those there are: {', '.join((*CORRUPTIONS, *EXTRA))}"
            raise UserError("--corruptions must be some of ImageNet-C's", repr(name), known)
    return tuple(name for name in (*CORRUPTIONS, *EXTRA) if name in names)


def severities_of(severities: int | str | Sequence[int]) -> tuple[int, ...]:
    """Severities from 1 to 5, ascending.

    Args:
        severities: one, several with commas between them, or a list of them.

    Raises:
        UserError: for any other.
    """
    parts = severities.split(",") if isinstance(severities, str) else severities
    given = [str(part).strip() for part in ([parts] if isinstance(parts, int) else parts)]
    if not given or not set(given) <= set(map(str, SEVERITIES)):
        raise UserError("--severities must be some of 1, 2, 3, 4, 5", ", ".join(given) or "none")
    return tuple(severity for severity in SEVERITIES if str(severity) in given)


Sets = Annotated[str | list[str], sets_of]
Corruptions = Annotated[str | list[str], corruptions_of]
Severities = Annotated[int | str | list[int], severities_of]
