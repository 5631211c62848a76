"""A table of labels beside the files: one path and one class name a row, perhaps with the split.

The one reader of tables: of those that lie in a folder (`--data /data/pets`) and of those that are named
(`--data labels.csv`, `csv:labels.csv?label=breed`). Paths start from the table's folder; names alone, also without
suffix, are searched below it. Which column is which: `tables.py`.
"""

import os
from collections import Counter
from pathlib import Path

import numpy as np

from vitdistill.data.folders import (
    TRAIN_NAMES,
    VAL_NAMES,
    FileSamples,
    Kind,
    as_bytes,
    hold_out,
    in_order,
    some,
)
from vitdistill.data.left_out import say_left_out, say_once
from vitdistill.data.source import DataSource
from vitdistill.data.tables import Row, Table, TableOptions
from vitdistill.errors import MachineError, UserError

SUFFIXES = (".csv", ".tsv")
# What tables of labels are called, the likeliest first; another name will do where it is the only table.
NAMES = ("labels", "label", "annotations", "metadata", "train", "train_labels", "train_list", "index", "data")
HOLD_OUT = 0.1  # of each class, where there is no split


def find_table(folder: Path) -> Path | None:
    """The table of labels in a folder: one of the usual names, or the only one there is."""
    tables = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    by_name = {file.stem.lower(): file for file in reversed(tables)}
    usual = next((by_name[name] for name in NAMES if name in by_name), None)
    return usual or (tables[0] if len(tables) == 1 else None)


def by_table(
    file: Path,
    kind: Kind,
    options: TableOptions = TableOptions(),
    *,
    labels: bool = True,
    share: float | None = None,
    root: Path | None = None,
) -> DataSource:
    """The samples that a table names, in its order, with its class names.

    Without a column that says which rows are for validation, those of a second table are (`val.csv` beside
    `train.csv`, whichever of them is given); without that, a tenth of each class, at least one file: random, but the
    same for the same table.

    Where labels are not needed, they may be missing or anything. The source then has no classes; and of files that
    nothing divides, a share of all is held out, as of folders.

    Args:
        file: the table.
        kind: images, or videos.
        options: which columns are which, and what the column of splits says.
        labels: whether they are needed.
        share: of each class to hold out for validation, whatever the table says of it; None is as above.
        root: what paths start from; None means the table's folder.

    Raises:
        UserError: naming the line or the column that cannot be understood; when files are missing. With labels, when
            files stand in both splits, a file has two labels, or there are fewer than two classes. Without, when there
            are fewer than two files.
    """
    files = _partners(file)
    base = root or files[0].parent
    try:
        return _labelled(_rows(files, base, kind, options, labels=True, share=share), files[0], base, kind, share)
    except UserError as error:
        if labels or isinstance(error, MachineError):
            raise
    # What is wrong with the labels does not matter here; all else is found again.
    rows = _rows(files, base, kind, options, labels=False, share=share)
    val = np.unique(as_bytes(row.path for row in rows if row.split == "val"))
    train = np.unique(as_bytes(row.path for row in rows if row.split != "val"))
    if not len(val):
        train, val = hold_out(train, files[0], kind, share)
    return DataSource(base.resolve().name, kind.make(base, train, None), kind.make(base, val, None), [])


def _labelled(rows: list[Row], file: Path, base: Path, kind: Kind, share: float | None) -> DataSource:
    rows = _same_numbers(rows, file)
    _check_twice(rows, file)
    if not any(row.split == "val" for row in rows):
        rows = _held_out(rows, HOLD_OUT if share is None else share)
    classes = in_order({str(row.label) for row in rows if row.split == "train"})
    if len(classes) < 2:
        raise UserError("Training needs at least two classes", f"only {some(classes)} in {file}")
    in_val = {str(row.label) for row in rows if row.split == "val"}
    if unknown := in_order(in_val - set(classes)):
        rule = f"Classes to validate on must be among those to train on in {file}"
        raise UserError(rule, some(unknown), f"Those are {some(classes)}")
    if not in_val:
        raise UserError(f"{file} must name at least one {kind.word} to validate on", "none")
    if lacking := in_order(set(classes) - in_val):
        say_once(f"{file} has no {kind.word} of {some(lacking)} to validate on: scored on the other classes")
    if classes != sorted(classes):
        say_once(f"Classes of {file} are in the order of their numbers: {', '.join(classes[:12])}, not in that of text")
    train, val = (
        _samples([row for row in rows if row.split == name], classes, base, kind) for name in ("train", "val")
    )
    return DataSource(base.resolve().name, train, val, classes)


def say_unnamed(place: Path, file: Path, kind: Kind, source: DataSource) -> None:
    """One line on the files of a folder that the table does not name."""
    left: Counter[str] = Counter()
    there = len(kind.below(place, (), left))
    unnamed = there - len(source.train) - len(source.val)
    del left[file.suffix.lower()]
    say_left_out(place, kind.word, left, [f"{unnamed} {kind.word}s not in {file.name}"] if unnamed > 0 else [])


def _rows(
    files: tuple[Path, Path | None],
    base: Path,
    kind: Kind,
    options: TableOptions,
    *,
    labels: bool,
    share: float | None,
) -> list[Row]:
    """The rows of a table, and of the one to validate on, each once and with paths that exist; None in place of a
    split where nothing says it."""
    file, second = files
    rows = Table(file, kind.is_sample, options, root=base).rows(labels=labels)
    if share is not None:
        rows = [row._replace(split=None) for row in rows if row.split != "val"]
    elif second is not None and not any(row.split for row in rows):
        try:
            others = Table(second, kind.is_sample, options, root=base).rows(labels=labels)
            rows = [row._replace(split="train") for row in rows] + [row._replace(split="val") for row in others]
        except UserError as error:
            if "test" not in second.stem.lower():
                raise
            say_once(f"Not validated on: {error}")  # tests of competitions come without labels
    return list(dict.fromkeys(_found(rows, base, file, kind)))


def _partners(file: Path) -> tuple[Path, Path | None]:
    """The table to train on and the one to validate on, which has the other word in its name, from either of them."""
    stem = file.stem.lower()
    beside = {other.name.lower(): other for other in file.parent.iterdir()}

    def partner(word: str, others: tuple[str, ...]) -> Path | None:
        names = (f"{stem.replace(word, other, 1)}{file.suffix.lower()}" for other in others)
        return next((beside[name] for name in names if name in beside), None)

    if "train" in stem:
        word = "training" if "training" in stem else "train"
        return file, partner(word, VAL_NAMES)
    for word in sorted(VAL_NAMES, key=len, reverse=True):
        if word in stem and (train := partner(word, TRAIN_NAMES)) is not None:
            return train, file
    return file, None


def _found(rows: list[Row], base: Path, file: Path, kind: Kind) -> list[Row]:
    """The rows with paths of existing files relative to `base`, or absolute."""
    exists = os.path.exists if kind.folders else os.path.isfile
    # Tables that were written on Windows part folders by a backslash.
    slashed = {row.path: row.path.replace("\\", "/") for row in rows if "\\" in row.path}
    slashed = {old: new for old, new in slashed.items() if exists(os.path.join(base, new))}
    rows = [row._replace(path=slashed.get(row.path, row.path)) for row in rows]
    missing = [row.path for row in rows if not exists(os.path.join(base, row.path))]
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


def _same_numbers(rows: list[Row], file: Path) -> list[Row]:
    """Where all classes are whole numbers, those that are written differently (07 and 7) as one.

    Raises:
        UserError: when one is negative, by which a table says that there is no class.
    """
    try:
        numbers = {row.label: int(str(row.label)) for row in rows}
    except ValueError:
        return rows
    if min(numbers.values()) < 0:
        count = sum(numbers[row.label] < 0 for row in rows)
        raise UserError(f"Every row of {file} must have a class", f"{count} of {len(rows)} with a number below 0")
    if len(set(numbers.values())) == len(numbers):
        return rows
    say_once(f"Classes of {file} that are the same number, such as 07 and 7, are taken for one")
    return list(dict.fromkeys(row._replace(label=str(numbers[row.label])) for row in rows))


def _check_twice(rows: list[Row], file: Path) -> None:
    labels: dict[str, Row] = {}
    for row in rows:
        first = labels.setdefault(os.path.normpath(row.path), row)
        if first.label != row.label:
            raise UserError(f"A file must have one label in {file}", f"{row.path}: {first.label} and {row.label}")
        if first.split != row.split:
            raise UserError(f"A file must be in one split of {file}", f"{row.path} in train and val")


def _held_out(rows: list[Row], share: float) -> list[Row]:
    """The rows with a share of each class for validation, at least one; a class of one file is trained on."""
    by_class: dict[str | None, list[Row]] = {}
    for row in sorted(rows):
        by_class.setdefault(row.label, []).append(row)
    held: set[Row] = set()
    for own in by_class.values():
        count = 0 if len(own) < 2 else min(max(1, int(share * len(own) + 1e-9)), len(own) - 1)
        # A stream that never changes.
        held.update(own[number] for number in np.random.RandomState(0).permutation(len(own))[:count].tolist())
    return [row._replace(split="val" if row in held else "train") for row in rows]


def _samples(rows: list[Row], classes: list[str], base: Path, kind: Kind) -> FileSamples:
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[str(row.label)] for row in rows], dtype=np.int64)
    return kind.make(base, as_bytes(row.path for row in rows), labels)
