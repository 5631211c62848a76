"""Tables of files and their classes as text: which lines, which columns, and what says the split.

As competitions and annotation tools write them: with or without a header, separated by commas, semicolons, tabs or
bars, in any order of columns. What the rows become is in `labels_csv.py`.
"""

import codecs
import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from vitdistill.data.clips.lists import names_any
from vitdistill.data.containers.splits import TRAIN_WORDS, VAL_WORDS, split_word
from vitdistill.data.folders import some
from vitdistill.data.left_out import say_once
from vitdistill.errors import UserError, near

# Usual headings, the likeliest first.
PATHS: tuple[str, ...] = (
    *("path", "filepath", "file_path", "file", "filename", "file_name", "image_path", "image", "image_name", "img"),
    *("img_path", "video_path", "video", "video_name", "clip", "name", "image_id", "video_id", "id"),
)
LABELS: tuple[str, ...] = (
    *("label", "labels", "class", "class_name", "classname", "label_name", "category", "target", "cls"),
    *("species", "breed", "diagnosis"),
)
SPLITS = ("split", "set", "subset", "partition", "phase", "dataset")
IS_VAL = ("is_valid", "is_val", "is_test")  # a column of yes and no
TEST_WORDS = ("test", "testing")
YES: tuple[str, ...] = ("true", "1", "yes")
NO: tuple[str, ...] = ("false", "0", "no", "")
DELIMITERS = ",;\t|"
LOOKED_AT = 20  # rows that tell which column is which


class Row(NamedTuple):
    """One row: the path as it is written, the class name, and train or val; None where the table does not say."""

    path: str
    label: str | None
    split: str | None


@dataclass(frozen=True)
class TableOptions:
    """What users say of a table.

    Attributes:
        path: the column of paths, by its heading, or its number from 1; None finds it.
        label: the column of classes.
        split: the column that says the split.
        train: what that column says of training samples.
        val: what it says of those to validate on.
    """

    path: str | None = None
    label: str | None = None
    split: str | None = None
    train: str | None = None
    val: str | None = None


class Columns(NamedTuple):
    """The number of each column; None where there is none."""

    path: int
    label: int | None
    split: int | None
    is_val: int | None


class Table:
    """The cells of a table, and which of its columns is which."""

    def __init__(
        self,
        file: Path,
        is_sample: Callable[[str], bool],
        options: TableOptions = TableOptions(),
        *,
        root: Path | None = None,
        most: int | None = None,
    ) -> None:
        """
        Args:
            file: UTF-8, or UTF-16 with a byte order mark.
            is_sample: whether a path is one, by its name; tells a header from a row.
            options: what is known of it.
            root: what paths start from; None means the table's folder.
            most: rows to read; None reads all.

        Raises:
            UserError: when it holds nothing, a row has more cells than the first, or paths are in no column.
        """
        self.file, self.options = file, options
        self._root, self._is_sample = root or file.parent, is_sample
        lines = list(islice(_lines(file), most))
        if not lines:
            raise UserError(f"The table {file} must have at least one row", "none")
        width = len(lines[0][1])
        for number, cells in lines:
            if any(cells[width:]):
                what = f"{len(cells)} in line {number}, {width} in the first"
                raise UserError(
                    f"All rows of {file} must have the same columns", what, "Put paths with commas in quotes"
                )
        # Spreadsheets leave empty cells out at the end of a row, or add some.
        lines = [(number, (cells + [""] * width)[:width]) for number, cells in lines]
        first = lines[0][1]
        self.has_header = self._is_header([cells for _, cells in lines[:2]])
        self.header = first if self.has_header else [str(number) for number in range(1, width + 1)]
        self.lines = lines[self.has_header :]
        if not self.lines:
            raise UserError(f"The table {file} must have at least one row", "only a header")
        self.columns = self._columns()

    def rows(self, *, labels: bool = True) -> list[Row]:
        """The rows that are trained or validated on. How many others there are is said in one line.

        Args:
            labels: whether each needs a class.

        Raises:
            UserError: naming the line or the column that cannot be understood.
        """
        path, label, _, _ = self.columns
        if labels and label is None:
            raise UserError(
                f"{self.file} must have a column of paths and one of class names",
                f"the columns {some(self.header)}" if self.has_header else f"the row {self.lines[0][1]}",
                "Call them path and label (and split, if there is one), or name them: labels.csv?path=...&label=...",
            )
        rows = []
        for (number, cells), split in zip(self.lines, self._splits(), strict=True):
            if split == "neither":
                continue
            name = None if label is None else cells[label] or None
            if not cells[path] or (labels and name is None):
                raise UserError(f"Every row of {self.file} must name a file and its class", f"line {number}: {cells}")
            rows.append(Row(cells[path], name, split))
        return rows

    def _is_header(self, rows: Sequence[list[str]]) -> bool:
        first = rows[0]
        if any(map(self._is_sample, first)):
            return False
        words = {cell.lower() for cell in first}
        asked = {word.lower() for word in (self.options.path, self.options.label, self.options.split) if word}
        if words & {*PATHS, *LABELS, *SPLITS, *IS_VAL, *(word for word in asked if not word.isdecimal())}:
            return True
        if any(map(self._exists, first)):
            return False
        return len(rows) > 1 and any(self._is_sample(cell) or self._exists(cell) for cell in rows[1])

    def _exists(self, cell: str) -> bool:
        return bool(cell) and os.path.exists(os.path.join(self._root, cell))

    def _is_file(self, cell: str) -> bool:
        return bool(cell) and os.path.isfile(os.path.join(self._root, cell))

    def _columns(self) -> Columns:
        """By what the user says, by headings, and by what the first rows look like."""
        options = self.options
        label = self._asked("label", options.label, LABELS)
        split, is_val = self._asked("split", options.split, SPLITS), self._headed(IS_VAL)
        if split is not None and self.header[split].lower() in IS_VAL:
            split, is_val = None, split
        path = self._asked("path", options.path, ()) if options.path else self._path(label)
        rest = [number for number in range(len(self.header)) if number not in (path, split, is_val)]
        if split is None and is_val is None and len(rest) > 1:
            maybe = [number for number in rest if number != label and self._says_splits(number)]
            split = maybe[-1] if maybe else None
            rest = [number for number in rest if number != split]
        if label is None and len(rest) == 1:
            label = rest[0]
        if path is None or path == label:
            what = f"the columns {some(self.header)}" if self.has_header else f"the row {self.lines[0][1]}"
            raise UserError(f"A column of {self.file} must name files, from its folder on", what, "Name it: ?path=")
        return Columns(path, label, split, is_val)

    def _asked(self, option: str, wanted: str | None, usual: Sequence[str]) -> int | None:
        """The column that an option names, else the first with a usual heading.

        Raises:
            UserError: when there is no column of that name.
        """
        if wanted is None:
            return self._headed(usual)
        names = [name.lower() for name in self.header]
        if wanted.lower() in names:
            return names.index(wanted.lower())
        if wanted.isdecimal() and 1 <= int(wanted) <= len(names):
            return int(wanted) - 1
        what = f"'{wanted}' of {', '.join(self.header)}"
        raise UserError(f"{self.file} must have the column that ?{option}= names", what, near(wanted, self.header))

    def _headed(self, usual: Sequence[str], among: Sequence[int] | None = None) -> int | None:
        """The first column with one of these headings, the likeliest first."""
        names = [name.lower() for name in self.header] if self.has_header else []
        found = (names.index(name) for name in usual if name in names)
        return next((column for column in found if among is None or column in among), None)

    def _path(self, label: int | None) -> int | None:
        """The column whose cells look like samples, or are files, or folders; of several, the one with a heading."""
        cells = [cells for _, cells in self.lines[:LOOKED_AT]]
        candidates = [number for number in range(len(self.header)) if number != label]
        for fits in (self._is_sample, self._is_file, self._exists):
            if found := [number for number in candidates if any(fits(row[number]) for row in cells)]:
                named = self._headed(PATHS, found)
                return found[0] if named is None else named
        return self._headed(PATHS) if self.has_header else 0

    def _says_splits(self, column: int) -> bool:
        words = {split_word(cells[column]) for _, cells in self.lines}
        return None not in words and bool(words & {*TRAIN_WORDS})

    def _splits(self) -> list[str | None]:
        """Of every row train, val or neither; None where no column says it.

        Raises:
            UserError: when none is for training, or yes and no are neither.
        """
        _, _, split, is_val = self.columns
        if is_val is not None:
            for number, cells in self.lines:
                if cells[is_val].lower() not in (*YES, *NO):
                    rule = f"The column {self.header[is_val]} of {self.file} must say true or false"
                    raise UserError(rule, f"'{cells[is_val]}' in line {number}")
            return ["val" if cells[is_val].lower() in YES else "train" for _, cells in self.lines]
        if split is None:
            return [None] * len(self.lines)
        cells_of = [cells[split] for _, cells in self.lines]
        words = {cell: split_word(cell) for cell in set(cells_of)}
        train, val = self.options.train, self.options.val
        # Validation has several names; a test is another thing, on which is validated where there is nothing else.
        chosen = {*VAL_WORDS} - {*TEST_WORDS} if {*words.values()} & ({*VAL_WORDS} - {*TEST_WORDS}) else {*TEST_WORDS}
        means: dict[str, str | None] = {}
        for cell, word in words.items():
            is_train = cell == train if train else word in TRAIN_WORDS
            is_chosen = cell == val if val else word in chosen
            means[cell] = "train" if is_train else "val" if is_chosen else "neither"
        if "train" not in means.values():
            rule = f"The column {self.header[split]} of {self.file} must name training samples"
            raise UserError(rule, some(sorted(words)), "Name them: ?train=")
        if val and val not in words:
            rule = f"The column {self.header[split]} of {self.file} must name the samples that ?val= does"
            raise UserError(rule, f"'{val}' of {some(sorted(words))}", near(val, words))
        if others := sorted(cell for cell, meaning in means.items() if meaning == "neither"):
            count = sum(cell in others for cell in cells_of)
            say_once(f"Neither trained nor validated on: {count} rows of {self.file} ({some(others)})")
        return [means[cell] for cell in cells_of]


def is_table(file: Path, is_video: Callable[[str], bool]) -> bool:
    """Whether a file is a table of labels rather than a list of videos as Kinetics has them.

    A list names videos or folders of frames, with numbers for classes, and has no header.
    """
    return not names_any(file, is_video, folders=True) or begins_as_table(file, is_video)


def begins_as_table(file: Path, is_video: Callable[[str], bool]) -> bool:
    """Whether the first line of what is a table or a list of videos is a header, or ends in a name."""
    with open(file, encoding="utf-8-sig", errors="surrogateescape") as opened:
        first = next((line.strip() for line in opened if line.strip()), "")
    cells = [cell.strip().strip('"').lower() for cell in first.split(max(DELIMITERS, key=first.count))]
    number_last = re.search(r"(^|\s)[+-]?\d+$", cells[-1]) is not None
    if not any(map(is_video, cells)):
        return bool({*cells} & {*PATHS, *LABELS}) or (len(cells) > 1 and not number_last)
    return len(cells) > 1 and not number_last and " " not in cells[-1]


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows with content, with their line numbers."""
    with open(file, "rb") as raw:
        wide = raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as Excel writes "Unicode text"
    errors = "strict" if wide else "surrogateescape"  # names of files are bytes
    with open(file, newline="", encoding="utf-16" if wide else "utf-8-sig", errors=errors) as opened:
        first = next((line for line in opened if line.strip()), "")
        opened.seek(0)
        reader = csv.reader(opened, delimiter=max(DELIMITERS, key=first.count), skipinitialspace=True)
        try:
            for cells in reader:
                if any(cells := [cell.strip() for cell in cells]):
                    yield reader.line_num, cells
        except (csv.Error, UnicodeError) as error:
            raise UserError(f"{file} must be a table in text", str(error)) from error
