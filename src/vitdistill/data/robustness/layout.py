"""Whether a folder is one of the test sets: class folders by name, corruptions and severities; what is missing.

Folders are looked at, and no files, so that wrong ones are refused before anything is computed. Needs no torch.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitdistill.data.folders import is_image, listing
from vitdistill.data.left_out import of_other_program
from vitdistill.data.robustness.published import CORRUPTIONS, EXTRA, GROUPS, SEVERITIES
from vitdistill.data.robustness.sets import CLEAN, CORRUPTED, REAL, SETS, VALIDATION, classes_of
from vitdistill.errors import UserError, near

NAMED = 3  # how many of the names that are missing a message shows
# A validation image; on the hub the class that it is filed under stands behind its number.
IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})(_n\d{8})?\.\w+")
PARTIAL = "--allow_partial scores what is there, and marks it as partial"


@dataclass(frozen=True)
class Part:
    """What is scored at once: a whole set, or one severity of one corruption of ImageNet-C.

    Attributes:
        name: of the set.
        root: holds the class folders.
        folders: the folder of each class, in the order of the classes, whether it is there or not.
        missing: what of it is not there, in words.
        corruption: of ImageNet-C; else empty.
        severity: of ImageNet-C; else 0.
        unlabelled: how many images of ImageNet-ReaL are left out since they have no label, once they are listed.
    """

    name: str
    root: Path
    folders: tuple[str, ...]
    missing: tuple[str, ...] = ()
    corruption: str = ""
    severity: int = 0
    unlabelled: int = 0

    @property
    def words(self) -> str:
        """What it is called in messages."""
        return " ".join(map(str, filter(None, (self.name, self.corruption, self.severity))))


@dataclass(frozen=True)
class Layout:
    """A test set as its folders show it.

    Attributes:
        name: of the set.
        root: the folder that was given.
        parts: what is scored.
        missing: corruptions and severities that are not there, in words.
    """

    name: str
    root: Path
    parts: tuple[Part, ...]
    missing: tuple[str, ...] = ()


def layouts(
    sets: Mapping[str, str],
    *,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    allow_partial: bool = False,
) -> list[Layout]:
    """The test sets in these folders.

    Args:
        sets: folders, by the names of the sets.
        corruptions: of ImageNet-C; None for the fifteen, and those of the four extra ones that are there.
        severities: of ImageNet-C.
        allow_partial: whether classes, corruptions and severities may be missing.

    Raises:
        UserError: when a folder is not there or holds something else, or something of a set is missing.

    Example:
        >>> layouts({"v2": "/data/imagenetv2-matched-frequency-format-val"})[0].parts[0].folders[:3]
        ('0', '1', '2')
    """
    found = []
    for name, folder in sets.items():
        root = Path(folder).expanduser()
        if not root.is_dir():
            raise UserError(f"The folder of {name} must exist and be a folder", repr(folder))
        with listing(root):
            if name == CORRUPTED:
                layout = _corrupted(root, corruptions, severities)
            else:
                layout = Layout(name, root, (_classes(name, root),))
        missing = [*layout.missing, *(words for part in layout.parts for words in _named(part))]
        if missing and not allow_partial:
            listed = "; ".join(missing[:NAMED]) + (f" and {len(missing) - NAMED} more" if len(missing) > NAMED else "")
            raise UserError(f"{name} must be complete", f"{root} without {listed}", PARTIAL)
        found.append(layout)
    return found


def some(names: Sequence[object]) -> str:
    """Up to three names, and how many more there are."""
    text = ", ".join(map(str, names[:NAMED]))
    return text if len(names) <= NAMED else f"{text} and {len(names) - NAMED} more"


def image_numbers(root: Path, names: Iterable[str]) -> list[int]:
    """The place of each validation image in `real_labels`, by its file name.

    Args:
        root: where they are, for messages.
        names: paths below it.

    Raises:
        UserError: for a name that is no validation image's, or an image that is there twice.

    Example:
        >>> image_numbers(Path("val"), ["n01440764/ILSVRC2012_val_00000293.JPEG"])
        [292]
    """
    images, found = SETS[CLEAN].images, dict[int, str]()
    for name in names:
        match = IMAGE.fullmatch(os.path.basename(name))
        number = int(match[1]) if match else 0
        if not 1 <= number <= images:
            rule = f"The images of {REAL} must have their names, ILSVRC2012_val_00000001.JPEG to ..._{images:08d}.JPEG"
            remedy = "The names say which labels are whose: give the folder as it was published"
            raise UserError(rule, os.path.join(root, name), remedy)
        if number - 1 in found:
            raise UserError(f"Each image of {REAL} must be there once", f"{found[number - 1]} and {name} in {root}")
        found[number - 1] = name
    return list(found)


def _named(part: Part) -> list[str]:
    """What a part lacks, with its corruption and severity."""
    where = f" of {part.corruption}/{part.severity}" if part.corruption else ""
    return [f"{words}{where}" for words in part.missing]


def _classes(name: str, root: Path, corruption: str = "", severity: int = 0) -> Part:
    """A folder of class folders, by name.

    Raises:
        UserError: when there are none, or others than the set's.
    """
    classes = classes_of(name)
    found = _folders(root)
    if name in VALIDATION and found and not set(found) & set(classes) and (root / "val").is_dir():
        root, found = root / "val", _folders(root / "val")
    if SETS[name].numbered:
        # Numbers are compared as such: sorted as text (0, 1, 10, 100, ...) they would be other classes.
        numbers = {int(folder): folder for folder in found if folder.isascii() and folder.isdecimal()}
        folders = tuple(numbers.get(number, str(number)) for number in range(len(classes)))
        called = f"the class numbers 0 to {len(classes) - 1}"
    else:
        folders = tuple(classes)
        called = f"the {len(classes)} WordNet numbers {classes[0]} to {classes[-1]}"
    remedy = f"Give the folder that holds {folders[0]} and the others"
    if not found:
        raise UserError(f"{root} must hold the class folders of {name}", "no folder in it", remedy)
    if unknown := [folder for folder in found if folder not in set(folders)]:
        raise UserError(f"The class folders of {name} must be {called}", f"{some(unknown)} in {root}", remedy)
    lacking = [folder for folder in folders if folder not in set(found)]
    missing = (f"{len(lacking)} of {len(folders)} classes ({some(lacking)})",) if lacking else ()
    if name == REAL:  # other names are mostly all of them, so that one folder shows it
        image_numbers(root, (f"{found[0]}/{file}" for file in sorted(os.listdir(root / found[0])) if is_image(file)))
    return Part(name, root, folders, missing, corruption, severity)


def _corrupted(root: Path, corruptions: Sequence[str] | None, severities: Sequence[int]) -> Layout:
    """ImageNet-C: the folders of corruptions, directly in the folder or in those that they are distributed in.

    Raises:
        UserError: when one is none of its corruptions, or has folders that are none of its severities.
    """
    known = (*CORRUPTIONS, *EXTRA)
    places: dict[str, Path] = {}
    for folder in _folders(root):
        for corruption in _folders(root / folder) if folder in GROUPS else [folder]:
            place = root / folder / corruption if folder in GROUPS else root / corruption
            if corruption not in known:
                remedy = near(corruption, known) or f"They are {', '.join(known)}, directly or in {', '.join(GROUPS)}"
                raise UserError(
                    f"The folders of {CORRUPTED} must be its corruptions", f"{corruption!r} in {root}", remedy
                )
            if corruption in places:
                both = f"{places[corruption].parent} and {place.parent}"
                raise UserError(f"Each corruption of {CORRUPTED} must be there once", f"{corruption} in {both}")
            places[corruption] = place
    if not places:
        raise UserError(f"{root} must hold the corruptions of {CORRUPTED}", "none of them", f"Such as {CORRUPTIONS[0]}")
    wanted = [*CORRUPTIONS, *(name for name in EXTRA if name in places)] if corruptions is None else corruptions
    lacking = [name for name in wanted if name not in places]
    missing = [f"the corruption{'s' * (len(lacking) > 1)} {some(lacking)}"] if lacking else []
    parts = []
    for name in (name for name in wanted if name in places):
        there = _folders(places[name])
        if strange := [folder for folder in there if folder not in map(str, SEVERITIES)]:
            remedy = f"Expected {places[name]}/1/{classes_of(CORRUPTED)[0]}/*.JPEG"
            rule = "The folder of a corruption must hold those of its severities, 1 to 5"
            raise UserError(rule, f"{some(strange)} in {places[name]}", remedy)
        if not there:
            raise UserError("A corruption must have at least one severity, 1 to 5", f"none in {places[name]}")
        if absent := [severity for severity in severities if str(severity) not in there]:
            missing.append(f"severity {some(absent)} of {name}")
        for severity in (severity for severity in severities if str(severity) in there):
            parts.append(_classes(CORRUPTED, places[name] / str(severity), name, severity))
    if not parts:
        raise UserError(f"{CORRUPTED} must have something of what is asked for", f"nothing in {root}")
    return Layout(CORRUPTED, root, tuple(parts), tuple(missing))


def _folders(root: Path) -> list[str]:
    """Names of the folders in a folder, without other programs'."""
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not of_other_program(entry.name))
