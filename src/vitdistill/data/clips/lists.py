"""Lists of videos, as Kinetics, Something-Something and VideoMAE have them: one video and its class number per line."""

import os
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitdistill.data.folders import NAMED, TRAIN_NAMES, VAL_NAMES, FileSamples, Kind, as_bytes, hold_out, some
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError

LIST_SUFFIXES = (".csv", ".txt")
LINE = "A line is 'path label', 'path,label' or 'folder-of-frames count label', with a whole number as label"
COLUMN = re.compile(
    r"(.*?\S)(?:\s*,\s*|\s+)([+-]?\d{1,18})"
)  # what stands before the last whole number, and the number
LOOKED_AT = 1000  # lines that `names_any` looks at


class Lists(NamedTuple):
    """The lists to train and to validate on; None where there is none."""

    train: Path | None
    val: Path | None


def find_lists(place: Path) -> Lists:
    """The lists in a folder, or a list and its partner, which has the other split's word in its name.

    Args:
        place: a folder, or one of the two lists; need not exist.
    """
    if place.is_dir():
        return Lists(_list_in(place, TRAIN_NAMES), _list_in(place, VAL_NAMES))
    if place.suffix.lower() not in LIST_SUFFIXES or not place.is_file():
        return Lists(None, None)
    if "train" in place.stem:
        return Lists(place, _partner(place, "train", VAL_NAMES))
    word = next((name for name in sorted(VAL_NAMES, key=len, reverse=True) if name in place.stem), None)
    partner = None if word is None else _partner(place, word, TRAIN_NAMES)
    return Lists(place, None) if partner is None else Lists(partner, place)


def labelled_lists(lists: Lists, root: Path | None, kind: Kind) -> DataSource:
    """The videos of two lists with their labels.

    Args:
        lists: both.
        root: what relative paths start from; None means each list's folder.
        kind: videos.

    Raises:
        UserError: when there is no list to validate on, a line cannot be read, videos are missing, or the labels do
            not run from 0 without gaps.
    """
    train_file, val_file = lists
    assert train_file is not None
    if val_file is None:
        raise UserError(f"Next to {train_file} there must be a list to validate on", "none", kind.layout)
    train, val = _labelled_list(train_file, root, kind), _labelled_list(val_file, root, kind)
    classes = sorted(set(train.labels or ()))
    if classes != list(range(len(classes))):
        problem = f"the label {classes[0]}" if classes[0] < 0 else f"no label {_gaps(classes)} below {classes[-1]}"
        raise UserError(f"Labels in {train_file} must run from 0 without gaps", problem, "Number the classes anew")
    if len(classes) < 2:
        raise UserError("Training needs at least two classes", f"only label 0 in {train_file}")
    if unknown := sorted(set(val.labels or ()) - set(classes)):
        raise UserError(
            f"Labels in {val_file} must be among the 0 to {classes[-1]} of {train_file.name}",
            some(unknown),
            "Number the classes alike in both lists",
        )
    return DataSource(_name(train_file), train, val, [str(label) for label in classes])


def unlabelled_lists(lists: Lists, root: Path | None, kind: Kind) -> DataSource:
    """The same where labels are not needed: they may be missing or anything, and videos are held out for validation.

    Raises:
        UserError: when videos are missing, or there are too few.
    """
    try:
        return labelled_lists(lists, root, kind)
    except UserError:
        pass  # what is wrong with the labels does not matter here; all else is found again
    train_file, val_file = lists
    assert train_file is not None
    train = _names_in(train_file, root or train_file.parent, kind)
    if val_file is None:
        train, val = hold_out(train, train_file, kind)
    else:
        val = _names_in(val_file, root or val_file.parent, kind)
    roots = (root or train_file.parent, root or (val_file or train_file).parent)
    return DataSource(_name(train_file), kind.make(roots[0], train, None), kind.make(roots[1], val, None), [])


def names_any(file: Path, wanted: Callable[[str], bool], *, folders: bool = False) -> bool:
    """Whether one of the first 1000 lines of a list names a wanted file.

    Args:
        file: the list.
        wanted: of a file's name.
        folders: whether an existing folder is wanted as well.
    """
    return any(
        wanted(path) or (folders and (file.parent / path).is_dir())
        for _, line in islice(_lines(file), LOOKED_AT)
        for path in _paths_in(line)
    )


def _list_in(folder: Path, names: tuple[str, ...]) -> Path | None:
    candidates = (
        folder / f"{name}{end}{suffix}" for name in names for end in ("", "_list") for suffix in LIST_SUFFIXES
    )
    return next((file for file in candidates if file.is_file()), None)


def _partner(place: Path, word: str, others: tuple[str, ...]) -> Path | None:
    """The list of the same name with another word in place of this one."""
    candidates = (place.with_name(place.name.replace(word, other)) for other in others)
    return next((file for file in candidates if file.is_file()), None)


def _gaps(classes: list[int]) -> str:
    """The first missing numbers; labels may be as large as anything, so their range is not gone through."""
    known = set(classes)
    first = list(islice((number for number in range(classes[-1]) if number not in known), NAMED))
    more = classes[-1] + 1 - len(classes) - len(first)
    return some(first) + (f" and {more} more" if more else "")


def _name(file: Path) -> str:
    return file.parent.resolve().name


def _labelled_list(file: Path, root: Path | None, kind: Kind) -> FileSamples:
    base = root or file.parent
    names, labels = [], []
    for number, line in _lines(file):
        if (match := COLUMN.fullmatch(line)) is None:
            raise UserError(f"Every line of {file} must name a video and its label", f"line {number}: '{line}'", LINE)
        names.append(_existing(base, [match[1], *_without_last_number(match[1])], kind))
        labels.append(int(match[2]))
    _check_names(names, file, base)
    return kind.make(base, as_bytes(path for path, _ in names), np.array(labels, dtype=np.int64))


def _names_in(file: Path, base: Path, kind: Kind) -> np.ndarray:
    """The paths of a list, labels or not, as sorted bytes."""
    names = [_existing(base, list(_paths_in(line)), kind) for _, line in _lines(file)]
    _check_names(names, file, base)
    return np.unique(as_bytes(path for path, _ in names))


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    return ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def _paths_in(line: str) -> Iterator[str]:
    """What may be the path in a line: all of it, or what comes before one or two whole numbers."""
    yield line
    for path in _without_last_number(line):
        yield path
        yield from _without_last_number(path)


def _without_last_number(text: str) -> list[str]:
    match = COLUMN.fullmatch(text)
    return [] if match is None else [match[1]]


def _existing(base: Path, candidates: list[str], kind: Kind) -> tuple[str, bool]:
    """The first candidate that exists, else the one that looks most like a path, and whether it exists."""
    candidates = [path.strip("\"'") for path in candidates]
    for path in candidates:
        if os.path.exists(os.path.join(base, path)):
            return path, True
    return next((path for path in candidates if kind.is_sample(path)), candidates[-1]), False


def _check_names(names: list[tuple[str, bool]], file: Path, base: Path) -> None:
    if not names:
        raise UserError(f"The list {file} must name at least one video", "none", LINE)
    missing = [path for path, exists in names if not exists]
    if missing:
        shown = ", ".join(repr(path) for path in missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
        raise UserError(
            f"All videos that {file} names must exist",
            f"{len(missing)} of {len(names)} missing: {shown}",
            f"Relative paths start from {base}",
        )
