"""A csv of paths and labels: `--data labels.csv`, or `csv:labels.csv?path=file&label=breed`.

One image (or video) a line, with its class as a number or a name; perhaps a header, perhaps a column that says which
split a line belongs to. Paths start from the folder of the file.
"""

import csv
import logging
import os
import re
from pathlib import Path

import numpy as np

from vitdistill.data.clips.files import VIDEOS, is_video
from vitdistill.data.clips.lists import find_lists, names_any
from vitdistill.data.containers.address import Address
from vitdistill.data.containers.labels import Part, source_of
from vitdistill.data.containers.splits import TRAIN_WORDS, VAL_WORDS, split_word
from vitdistill.data.folders import as_bytes
from vitdistill.data.images.folder import IMAGES
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, near

logger = logging.getLogger(__name__)

PATH_NAMES = (
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image",
    "image_path",
    "img",
    "id",
    "name",
)
LABEL_NAMES = ("label", "class", "target", "category", "cls", "class_name", "label_name", "labels", "breed", "species")
SPLIT_NAMES = ("split", "set", "subset", "partition", "dataset")
DELIMITERS = ",;\t|"


class Table:
    """The lines of a csv file, by columns."""

    def __init__(self, file: Path) -> None:
        """
        Args:
            file: a text file in UTF-8, with or without a byte order mark.

        Raises:
            UserError: when it holds nothing, or lines have different numbers of columns.
        """
        self.file = file
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
        first = next((line for line in text.splitlines() if line.strip()), "")
        delimiter = max(DELIMITERS, key=first.count)
        lines = csv.reader(text.splitlines(), delimiter=delimiter, skipinitialspace=True)
        rows = [(lines.line_num, [cell.strip() for cell in row]) for row in lines if any(cell.strip() for cell in row)]
        if not rows:
            raise UserError("A csv of labels must hold one sample a line", f"{file}, which is empty")
        width = len(rows[0][1])
        if ragged := next(((number, row) for number, row in rows if len(row) != width), None):
            what = f"{len(ragged[1])} in line {ragged[0]}, {width} in the first"
            raise UserError(f"All lines of {file} must have the same columns", what, "Put paths with commas in quotes")
        header = [cell.lower() for cell in rows[0][1]]
        # A first line of which no cell is a file, with a word that names a column, or above lines that name files.
        self.has_header = not any(self.is_file(cell) for cell in rows[0][1]) and (
            bool({*header} & {*PATH_NAMES, *LABEL_NAMES}) or any(map(self.is_file, rows[min(1, len(rows) - 1)][1]))
        )
        self.header = rows[0][1] if self.has_header else [str(number) for number in range(1, width + 1)]
        self.rows = [row for _, row in rows[self.has_header :]]
        if not self.rows:
            raise UserError("A csv of labels must hold one sample a line", f"{file}, which has a header only")

    def is_file(self, cell: str) -> bool:
        """Whether a cell names a file, or a folder of frames."""
        return bool(cell) and (self.file.parent / cell).exists()

    def column(self, number: int) -> list[str]:
        """The cells of a column."""
        return [row[number] for row in self.rows]

    def named(self, option: str, wanted: str | None, usual: tuple[str, ...]) -> int | None:
        """The number of the column that an option names, else of the first with a usual name; None where none has.

        Raises:
            UserError: when there is no column of that name.
        """
        lower = [name.lower() for name in self.header]
        if wanted is None:
            return next((lower.index(name) for name in usual if name in lower), None) if self.has_header else None
        if wanted.lower() not in lower:
            there = ", ".join(self.header)
            remedy = near(wanted, self.header)
            raise UserError(f"{self.file} must have the column that ?{option}= names", f"'{wanted}' of {there}", remedy)
        return lower.index(wanted.lower())


def is_labels(file: Path) -> bool:
    """Whether a file is a csv of labels rather than a list of videos as Kinetics has them.

    A list names videos or folders of frames, with numbers for classes, and has no header.
    """
    if not names_any(file, is_video, folders=True):
        return True
    with open(file, encoding="utf-8-sig", errors="surrogateescape") as opened:
        first = next((line.strip() for line in opened if line.strip()), "")
    cells = [cell.strip().strip('"').lower() for cell in first.split(max(DELIMITERS, key=first.count))]
    if not any(map(is_video, cells)):
        return bool({*cells} & {*PATH_NAMES, *LABEL_NAMES})
    return len(cells) > 1 and not re.fullmatch(r"[+-]?\d+", cells[-1]) and " " not in cells[-1]


def open_csv(address: Address, *, labels: bool) -> DataSource:
    """Open a csv of paths and labels.

    Options: `path`, `label`, `split` (columns, by name or by number from 1), `train` and `val` (what the column `split`
    says of them; or for `val` the share to hold out). Without a column of splits, a file with `train` in its name has
    one with `val` (or `validation`, `test`) beside it, or a share is held out.

    Raises:
        UserError: when columns cannot be told apart, files are missing, or labels are needed and not there.
    """
    file = Path(address.name).expanduser()
    table = Table(file)
    path, label, split = _columns(table, address)
    remedy = "Name the column that says the class: ?label=" if label is None else ""
    name = file.resolve().parent.name
    if split is not None:
        train_rows, val_rows = _by_split(table, split, address)
        train = _part(table, path, label, train_rows, f"{file} ({address.options.get('train') or 'train'})")
        val = _part(table, path, label, val_rows, f"{file} (val)") if val_rows else None
        return source_of(name, train, val, names=None, labels=labels, share=address.share, remedy=remedy)
    rows = list(range(len(table.rows)))
    lists = find_lists(file)
    val = None
    if lists.val is not None and lists.train == file and address.share is None:
        other = Table(lists.val)
        val_path, val_label, _ = _columns(other, address)
        val = _part(other, val_path, val_label, list(range(len(other.rows))), str(lists.val))
    elif lists.train is not None and lists.val == file:  # the list to validate on was named: its partner is the other
        return open_csv(Address(address.scheme, str(lists.train), address.options), labels=labels)
    train = _part(table, path, label, rows, str(file))
    return source_of(name, train, val, names=None, labels=labels, share=address.share, remedy=remedy)


def _columns(table: Table, address: Address) -> tuple[int, int | None, int | None]:
    """The numbers of the columns of paths, labels and splits."""
    options = address.options
    path = table.named("path", options.get("path"), PATH_NAMES)
    label = table.named("label", options.get("label"), LABEL_NAMES)
    split = table.named("split", options.get("split"), SPLIT_NAMES)
    width = len(table.header)
    if path is None or not any(table.is_file(row[path]) for row in table.rows[:20]):
        found = [
            one for one in range(width) if one != label and any(table.is_file(row[one]) for row in table.rows[:20])
        ]
        path = found[0] if found and "path" not in options else path
    if path is None:
        what = ", ".join(f"'{cell}'" for cell in table.rows[0])
        raise UserError(f"A column of {table.file} must name files, from its folder on", what, "Name it: ?path=")
    if label is None:
        others = [one for one in range(width) if one not in (path, split)]
        splits = [one for one in others if split is None and _says_splits(table, one)]
        split = splits[0] if splits and len(others) > 1 else split
        others = [one for one in others if one != split]
        label = others[0] if len(others) == 1 else None
    return path, label, split


def _says_splits(table: Table, number: int) -> bool:
    return all(split_word(cell) is not None for cell in table.column(number))


def _by_split(table: Table, split: int, address: Address) -> tuple[list[int], list[int]]:
    """The rows to train on and those to validate on."""
    cells = table.column(split)
    words = [split_word(cell) for cell in cells]
    train, val = address.options.get("train"), address.val
    train_rows = [row for row, cell in enumerate(cells) if (cell == train if train else words[row] in TRAIN_WORDS)]
    if not train_rows:
        there = ", ".join(sorted(set(cells))[:5])
        raise UserError(
            f"The column {table.header[split]} of {table.file} must name training samples", there, "Name them: ?train="
        )
    chosen = next((word for word in VAL_WORDS if word in words), None)
    val_rows = [row for row, cell in enumerate(cells) if (cell == val if val else chosen and words[row] == chosen)]
    if address.share is not None:
        val_rows = []
    if left_out := len(cells) - len(train_rows) - len(val_rows):
        logger.warning("Neither trained nor validated on: %d lines of %s", left_out, table.file)
    return train_rows, val_rows


def _part(table: Table, path: int, label: int | None, rows: list[int], where: str) -> Part:
    """Some lines as a split.

    Raises:
        UserError: when files are missing.
    """
    names = [table.rows[row][path] for row in rows]
    missing = [name for name in names if not table.is_file(name)]
    if missing:
        some = ", ".join(missing[:3])
        what = f"{len(missing)} of {len(names)} missing in {table.file.parent}, such as {some}"
        raise UserError(f"All files that {table.file} names must exist", what, "Paths start from the folder of the csv")
    kind = VIDEOS if is_video(names[0]) or os.path.isdir(table.file.parent / names[0]) else IMAGES
    values = None if label is None else _numbers_or_names([table.rows[row][label] for row in rows])
    made = as_bytes(names)
    return Part(where, len(rows), values, lambda taken, labels: kind.make(table.file.parent, made[taken], labels))


def _numbers_or_names(cells: list[str]) -> np.ndarray:
    try:
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    except ValueError:
        return np.array(cells, dtype=object)
