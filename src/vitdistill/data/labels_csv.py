"""A table of labels beside the files: one path and one class name a row, perhaps with the split.

As competitions and annotation tools write them: with or without a header, separated by commas, semicolons or tabs,
in any order of columns. Paths start from the table's folder; names alone, also without suffix, are searched below it.
"""

import codecs
import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitdistill.data.folders import (
    TRAIN_NAMES,
    VAL_NAMES,
    FileSamples,
    Kind,
    as_bytes,
    in_order,
    some,
)
from vitdistill.data.left_out import say_left_out, say_once
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError

SUFFIXES = (".csv", ".tsv")
# What tables of labels are called, the likeliest first; another name will do where it is the only table.
NAMES = ("labels", "label", "annotations", "metadata", "train", "train_labels", "train_list", "index", "data")
PATHS: tuple[str, ...] = (
    "path",
    "filepath",
    "file_path",
    "file",
    "filename",
    "file_name",
    "image_path",
    "image",
    "image_name",
    "img",
)
PATHS += ("img_path", "name", "image_id", "id")
LABELS = ("label", "labels", "class", "class_name", "classname", "category", "target", "species", "breed", "diagnosis")
SPLITS = ("split", "set", "subset", "partition", "phase")
IS_VAL = ("is_valid", "is_val", "is_test")  # a column of yes and no
YES: tuple[str, ...] = ("true", "1", "yes")
NO: tuple[str, ...] = ("false", "0", "no", "")
DELIMITERS = ",;\t"
HOLD_OUT_EVERY = 10  # of each class, one file in so many is held out where there is no split


class Row(NamedTuple):
    """One row: the path as it is written, the class name, and train or val, None where the table does not say."""

    path: str
    label: str
    split: str | None


def find_table(folder: Path) -> Path | None:
    """The table of labels in a folder: one of the usual names, or the only one there is."""
    tables = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    by_name = {file.stem.lower(): file for file in reversed(tables)}
    usual = next((by_name[name] for name in NAMES if name in by_name), None)
    return usual or (tables[0] if len(tables) == 1 else None)


def labelled_by_table(file: Path, kind: Kind, *, root: Path | None = None) -> DataSource:
    """The samples that a table names, with its class names.

    Without a column that says which rows are for validation, those of a second table are (`val.csv` beside
    `train.csv`); without that, a tenth of each class, at least one file: random, but the same for the same table.

    Args:
        file: the table.
        kind: images, or videos.
        root: what paths start from; None means the table's folder.

    Raises:
        UserError: naming the line or the column that cannot be understood; when files are missing or stand in both
            splits, a file has two labels, or there are fewer than two classes.
    """
    base = root or file.parent
    rows, second = read_table(file, kind), _partner(file)
    if second is not None and not any(row.split for row in rows):
        rows = [row._replace(split="train") for row in rows]
        rows += [row._replace(split="val") for row in read_table(second, kind)]
    found = _found(rows, base, file, kind)
    _check_twice(found, file)
    found = list(dict.fromkeys(found))
    if not any(row.split for row in found):
        found = _held_out(found)
    splits = {name: [row for row in found if row.split == name] for name in ("train", "val")}
    classes = in_order({row.label for row in splits["train"]})
    if len(classes) < 2:
        raise UserError("Training needs at least two classes", f"{some(classes)} in {file}")
    if unknown := in_order({row.label for row in splits["val"]} - set(classes)):
        raise UserError(f"Classes to validate on must be among those to train on in {file}", some(unknown))
    if not splits["val"]:
        raise UserError(f"{file} must name at least one {kind.word} to validate on", "none")
    if lacking := in_order(set(classes) - {row.label for row in splits["val"]}):
        say_once(f"{file} has no {kind.word} of {some(lacking)} to validate on: scored on the other classes")
    train, val = (_samples(splits[name], classes, base, kind) for name in ("train", "val"))
    return DataSource(base.resolve().name, train, val, classes)


def say_unnamed(place: Path, file: Path, kind: Kind, source: DataSource) -> None:
    """One line on the files of a folder that the table does not name."""
    left: Counter[str] = Counter()
    there = len(kind.below(place, (), left))
    unnamed = there - len(source.train) - len(source.val)
    del left[file.suffix.lower()]
    say_left_out(place, kind.word, left, [f"{unnamed} {kind.word}s not in {file.name}"] if unnamed > 0 else [])


def read_table(file: Path, kind: Kind) -> list[Row]:
    """The rows of a table.

    Args:
        file: the table; UTF-8, or UTF-16 with a byte order mark.
        kind: what paths look like, to tell a header from a row.

    Raises:
        UserError: naming the line or the column that cannot be understood.

    Example:
        >>> read_table(Path("labels.csv"), IMAGES)[0]
        Row(path='0001.jpg', label='cat', split=None)
    """
    lines = list(_lines(file))
    if not lines:
        raise UserError(f"The table {file} must have at least one row", "none")
    header = _is_header([cells for _, cells in lines[:2]], kind)
    columns = _columns(file, [cells for _, cells in lines[:2]], kind, header=header)
    rows = []
    for number, cells in lines[header:]:
        if len(cells) <= max(column for column in columns if column is not None):
            raise UserError(f"Every row of {file} must have all columns", f"line {number}: {cells}")
        path, label = cells[columns.path], cells[columns.label]
        if not path or not label:
            raise UserError(f"Every row of {file} must name a file and its class", f"line {number}: {cells}")
        rows.append(Row(path, label, _split(cells, columns, file, number)))
    if not rows:
        raise UserError(f"The table {file} must have at least one row", "only a header")
    return rows


class _Columns(NamedTuple):
    path: int
    label: int
    split: int | None
    is_val: int | None


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows with content, with their line numbers."""
    with open(file, "rb") as raw:
        wide = raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as Excel writes "Unicode text"
    errors = "strict" if wide else "surrogateescape"  # names of files are bytes
    with open(file, newline="", encoding="utf-16" if wide else "utf-8-sig", errors=errors) as opened:
        first = opened.readline()
        opened.seek(0)
        reader = csv.reader(opened, delimiter=max(DELIMITERS, key=first.count))
        try:
            for cells in reader:
                if any(cells := [cell.strip() for cell in cells]):
                    yield reader.line_num, cells
        except (csv.Error, UnicodeError) as error:
            raise UserError(f"{file} must be a table in text", str(error)) from error


def _is_header(rows: Sequence[list[str]], kind: Kind) -> bool:
    if any(map(kind.is_sample, rows[0])):
        return False
    known = {cell.lower() for cell in rows[0]} & {*PATHS, *LABELS, *SPLITS, *IS_VAL}
    return bool(known) or (len(rows) > 1 and any(map(kind.is_sample, rows[1])))


def _columns(file: Path, rows: Sequence[list[str]], kind: Kind, *, header: bool) -> _Columns:
    """Which column is which: by its heading where there is one, else by what the first row looks like."""
    names = [cell.lower() for cell in rows[0]] if header else [""] * len(rows[0])
    cells = rows[-1] if header else rows[0]
    split, is_val = _named(names, SPLITS), _named(names, IS_VAL)
    samples = [number for number, cell in enumerate(cells) if kind.is_sample(cell)]
    path = samples[0] if samples else _named(names, PATHS) if header else 0
    rest = [number for number in range(len(names)) if number not in (path, split, is_val)]
    if not header and len(rest) == 2:
        maybe = [number for number in rest if cells[number].lower() in (*TRAIN_NAMES, *VAL_NAMES)]
        split = maybe[-1] if maybe else None
        rest = [number for number in rest if number != split]
    label = _named(names, LABELS)
    if label is None and len(rest) == 1:
        label = rest[0]
    if path is None or label is None or path == label:
        raise UserError(
            f"{file} must have a column of paths and one of class names",
            f"the columns {some(rows[0])}" if header else f"the row {rows[0]}",
            "Call them path and label (and split, where the table says it)",
        )
    return _Columns(path, label, split, is_val)


def _named(names: list[str], wanted: Sequence[str]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def _split(cells: list[str], columns: _Columns, file: Path, number: int) -> str | None:
    """train, val, or None where no column says it."""
    if columns.split is not None:
        word, train, val = cells[columns.split].lower(), TRAIN_NAMES, VAL_NAMES
    elif columns.is_val is not None:
        word, train, val = cells[columns.is_val].lower(), NO, YES
    else:
        return None
    if word not in train and word not in val:
        words = ", ".join(word for word in (*train, *val) if word)
        raise UserError(f"A split in {file} must be one of {words}", f"'{word}' in line {number}")
    return "train" if word in train else "val"


def _partner(file: Path) -> Path | None:
    """The table to validate on beside one to train on, which has the other word in its name."""
    if "train" not in file.stem.lower():
        return None
    at = file.stem.lower().index("train")
    others = (f"{file.stem[:at]}{word}{file.stem[at + len('train') :]}{file.suffix}" for word in VAL_NAMES[:-1])
    return next((file.with_name(name) for name in others if file.with_name(name).is_file()), None)


def _found(rows: list[Row], base: Path, file: Path, kind: Kind) -> list[Row]:
    """The rows with paths of existing files relative to `base`, or absolute."""
    missing = [row.path for row in rows if not os.path.isfile(os.path.join(base, row.path))]
    if not missing:
        return rows
    by_name: dict[str, list[str]] = {}
    for path in kind.below(base, (), Counter()):
        for name in {os.path.basename(path), os.path.splitext(os.path.basename(path))[0]}:
            by_name.setdefault(name, []).append(path)
    for name, paths in by_name.items():  # the same name may be in the folder of another split
        in_train = [path for path in paths if path.partition(os.sep)[0].lower() in TRAIN_NAMES]
        by_name[name] = in_train if len(paths) > 1 and in_train else paths
    lost = [path for path in missing if len(by_name.get(path, ())) != 1]
    if lost:
        several = [path for path in lost if len(by_name.get(path, ())) > 1]
        raise UserError(
            f"All files that {file} names must exist" if not several else f"{file} must name files by their paths",
            f"{len(lost)} of {len(rows)} missing: {some(lost)}"
            if not several
            else f"{some(several)}, found repeatedly",
            f"Paths start from {base}",
        )
    replaced = set(missing)
    return [row._replace(path=by_name[row.path][0]) if row.path in replaced else row for row in rows]


def _check_twice(rows: list[Row], file: Path) -> None:
    labels: dict[str, Row] = {}
    for row in rows:
        first = labels.setdefault(os.path.normpath(row.path), row)
        if first.label != row.label:
            raise UserError(f"A file must have one label in {file}", f"{row.path}: {first.label} and {row.label}")
        if first.split != row.split:
            raise UserError(f"A file must be in one split of {file}", f"{row.path} in train and val")


def _held_out(rows: list[Row]) -> list[Row]:
    """The rows with a tenth of each class for validation; a class of one file is trained on."""
    by_class: dict[str, list[Row]] = {}
    for row in sorted(rows):
        by_class.setdefault(row.label, []).append(row)
    divided = []
    for label in sorted(by_class):
        own = by_class[label]
        count = 0 if len(own) < 2 else max(1, len(own) // HOLD_OUT_EVERY)
        held = set(np.random.RandomState(0).permutation(len(own))[:count].tolist())  # a stream that never changes
        divided += [row._replace(split="val" if number in held else "train") for number, row in enumerate(own)]
    return divided


def _samples(rows: list[Row], classes: list[str], base: Path, kind: Kind) -> FileSamples:
    numbers = {name: number for number, name in enumerate(classes)}
    rows = sorted(rows, key=lambda row: (numbers[row.label], row.path))
    labels = np.array([numbers[row.label] for row in rows], dtype=np.int64)
    return kind.make(base, as_bytes(row.path for row in rows), labels)
