"""From what containers say of classes (numbers, names, nothing) to class numbers; and two splits to one source."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitdistill.data.folders import held_out, in_order, some
from vitdistill.data.samples import Samples
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """One split of a container.

    Attributes:
        name: of the split, for messages.
        count: samples in it.
        values: what says the class of each: whole numbers (negative: none) or names; None where nothing does.
        make: from row numbers (samples,) and their class numbers to a set.
    """

    name: str
    count: int
    values: np.ndarray | None
    make: Callable[[np.ndarray, np.ndarray | None], Samples]


def source_of(
    name: str,
    train: Part,
    val: Part | None,
    *,
    names: Sequence[str] | None,
    labels: bool,
    share: float | None = None,
    remedy: str = "",
) -> DataSource:
    """A source of one or two splits; without the second, a share of the first is held out.

    Args:
        name: of the source.
        train: what to train on.
        val: what to validate on; None holds out `share` of `train`.
        names: class names, by number, where the container has them.
        labels: whether labels are needed. Where they are not, samples without a class are as good.
        share: of the training samples to hold out; None is one in a hundred, as of folders.
        remedy: what to do where labels are missing.

    Raises:
        UserError: when a split is empty, or labels are needed and missing, or do not fit.
    """
    for part in (train, val):
        if part is not None and not part.count:
            raise UserError(f"{part.name} must hold at least one sample", "none")
    try:
        classes, numbers = _numbered([part for part in (train, val) if part is not None], names, remedy)
    except UserError:
        if labels:
            raise
        classes, numbers = [], [None, None]
    rows = np.arange(train.count)
    if val is not None:
        return DataSource(name, train.make(rows, numbers[0]), val.make(np.arange(val.count), numbers[1]), classes)
    if train.count < 2:
        raise UserError("At least two images are needed, one to validate on", f"only one in {train.name}")
    out = held_out(train.count, share)
    kept, held = (train.make(rows[mask], None if numbers[0] is None else numbers[0][mask]) for mask in (~out, out))
    return DataSource(name, kept, held, classes)


def _numbered(parts: list[Part], names: Sequence[str] | None, remedy: str) -> tuple[list[str], list[np.ndarray | None]]:
    """Class names, and per split the class numbers.

    Raises:
        UserError: when there are none, or those of the second split are unknown to the first.
    """
    columns = []
    for part in parts:
        if part.values is None:
            raise UserError("Labelled data is needed", f"{part.name}, which has no labels", remedy)
        columns.append(_plain(part.values, part.name, remedy))
    train = columns[0]
    if train.dtype.kind in "iu" and names is not None:
        classes = list(names)
    else:
        classes = in_order({str(value) for value in train.tolist()})
        columns = [np.array([str(value) for value in column.tolist()], dtype=object) for column in columns]
    if len(classes) < 2:
        raise UserError("Training needs at least two classes", f"only '{classes[0]}' in {parts[0].name}")
    return classes, [_numbers(column, classes, part.name) for column, part in zip(columns, parts, strict=True)]


def _plain(values: np.ndarray, where: str, remedy: str) -> np.ndarray:
    """Whole numbers or texts; nothing missing."""
    values = np.asarray(values)
    missing = np.array([value is None or value != value or str(value) == "" for value in values.tolist()])
    if values.dtype.kind == "f" and not missing.any() and np.array_equal(values, np.rint(values)):
        values = values.astype(np.int64)
    if values.dtype.kind in "iu":
        missing = values < 0
    if values.ndim != 1 or values.dtype.kind == "f":
        what = f"values such as {values.reshape(-1)[0]}" if values.size else "nothing"
        raise UserError(f"Every sample in {where} must have one class, a whole number or a name", what, remedy)
    if missing.any():
        first = int(np.flatnonzero(missing)[0])
        value = f"{int(missing.sum())} of {len(values)} without, the first number {first}"
        raise UserError(f"Every sample in {where} must have a class", value, remedy or "Choose another split")
    return values.astype(np.int64) if values.dtype.kind in "iu" else values


def _numbers(column: np.ndarray, classes: list[str], where: str) -> np.ndarray:
    if column.dtype.kind in "iu":
        unknown = [str(value) for value in np.unique(column[column >= len(classes)])]
        numbers = column.astype(np.int64)
    else:
        known = {name: number for number, name in enumerate(classes)}
        unknown = in_order({str(value) for value in column} - set(known))
        numbers = np.array([known.get(str(value), -1) for value in column], dtype=np.int64)
    if unknown:
        raise UserError(
            f"Classes in {where} must be among the {len(classes)} of the training samples",
            some(unknown),
            f"Those are {some(classes)}",
        )
    return numbers


def texts(values: Sequence[Any] | None) -> list[str] | None:
    """Class names as texts; of several names of one class, all of them."""
    if values is None:
        return None
    return [", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value) for value in values]
