"""ESC-50's folder: `audio/` with 2000 clips of 5 s, `meta/esc50.csv` with the class and the fold (1 to 5) of each.

One fold is for validation and the others for training: `--data ESC-50-master?fold=1`.
"""

import csv
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitdistill.data.audio.decode import require_soundfile
from vitdistill.data.audio.files import FileSounds
from vitdistill.data.containers.address import Address
from vitdistill.data.containers.checks import ESC50_LAYOUT, ESC50_TABLE
from vitdistill.data.folders import as_bytes, some
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, error_words, near

AUDIO = "audio"
DIGITS = 9  # of a fold or a target
COLUMNS = ("filename", "fold", "target", "category")


class Clip(NamedTuple):
    """One row of the table: a file below `audio/`, the fold it is in, and its class by number and name."""

    file: str
    fold: int
    target: int
    category: str


def open_esc50(address: Address, *, labels: bool = True) -> DataSource:
    """Open ESC-50, or any data in its layout.

    Class numbers are those of the column `target`, where it counts from 0 on without gaps, else their order.

    Args:
        address: of the folder, with the option `fold`.
        labels: without effect; there are labels.

    Raises:
        UserError: when the table lacks a column or a row cannot be read, files of it are missing, there is no such
            fold, or soundfile is not installed.
    """
    require_soundfile()
    root = Path(address.name).expanduser()
    clips = read_table(root / ESC50_TABLE)
    missing = [clip.file for clip in clips if not (root / AUDIO / clip.file).is_file()]
    if missing:
        rule = f"Every clip of {ESC50_TABLE} must be in {root / AUDIO}"
        raise UserError(rule, f"{len(missing)} of {len(clips)} are missing: {some(missing)}", "Download the data anew")
    folds = sorted({clip.fold for clip in clips})
    fold = address.options["fold"]
    if not fold.isdecimal() or int(fold) not in folds:
        raise UserError(f"The fold must be one of {', '.join(map(str, folds))}", f"'{fold}'")
    if len(folds) < 2:
        raise UserError(f"{root / ESC50_TABLE} must have at least two folds", f"{len(folds)}")
    numbers = {target: number for number, target in enumerate(sorted({clip.target for clip in clips}))}
    names = {numbers[clip.target]: clip.category for clip in clips}
    train, val = (
        _samples(root, [clip for clip in clips if (clip.fold == int(fold)) == held], numbers) for held in (False, True)
    )
    classes = [names[number] for number in range(len(names))]
    if len(classes) < 2:
        raise UserError("Training needs at least two classes", f"only {some(classes)} in {root / ESC50_TABLE}")
    if unknown := sorted(set(val.labels or ()) - set(train.labels or ())):
        rule = f"Classes of fold {fold} must be among those of the other folds"
        raise UserError(rule, some(classes[number] for number in unknown))
    return DataSource(f"{root.resolve().name}-fold{fold}", train, val, classes)


def _samples(root: Path, clips: list[Clip], numbers: dict[int, int]) -> FileSounds:
    labels = np.array([numbers[clip.target] for clip in clips], dtype=np.int64)
    return FileSounds(root, as_bytes(os.path.join(AUDIO, clip.file) for clip in clips), labels)


def read_table(file: Path) -> list[Clip]:
    """The rows of the table, in the order of their files.

    Raises:
        UserError: naming a column that is missing, or the line that cannot be read.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            rows = csv.DictReader(opened)
            header = rows.fieldnames or []
            lacking = [name for name in COLUMNS if name not in header]
            if lacking:
                remedy = near(lacking[0], header) or ESC50_LAYOUT
                rule = f"{file} must have the columns {', '.join(COLUMNS)}"
                raise UserError(rule, f"no {', '.join(lacking)}", remedy)
            clips = [_clip(row, file, number) for number, row in enumerate(rows, start=2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} must be a readable table in UTF-8", error_words(error)) from error
    if not clips:
        raise UserError(f"{file} must name clips", "no row")
    if len({clip.file for clip in clips}) < len(clips):
        twice = next(name for name, count in Counter(clip.file for clip in clips).items() if count > 1)
        raise UserError(f"Each clip of {file} must have one row", f"'{twice}' in several")
    known: dict[int, str] = {}
    for clip in clips:
        if known.setdefault(clip.target, clip.category) != clip.category:
            both = f"'{known[clip.target]}' and '{clip.category}'"
            raise UserError(f"Every target of {file} must have one category", f"{both} for {clip.target}")
    if len(set(known.values())) < len(known):
        raise UserError(f"Every category of {file} must have one target", "one with several")
    return sorted(clips)


def _clip(row: dict[str, str], file: Path, line: int) -> Clip:
    texts = [(row.get(name) or "").strip() for name in COLUMNS]
    name, fold, target, category = texts
    numbers = all(text.isdecimal() and len(text) <= DIGITS for text in (fold, target))
    if not (name and category and numbers) or os.path.isabs(name) or ".." in name:
        rule = f"Line {line} of {file} must name a file, a fold and a target by their numbers, and a category"
        raise UserError(rule, repr(",".join(texts)))
    return Clip(name, int(fold), int(target), category)
