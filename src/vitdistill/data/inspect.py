"""Every sample of a source decoded once: what `vitdistill check` lists; and how large a few of them are."""

import logging
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from vitdistill.data.loader import start_worker, worker_context
from vitdistill.data.samples import UNREADABLE, Facts, Samples, reason_of
from vitdistill.data.source import DataSource

SPLITS = ("train", "val")
NAMED = 3  # how many of the samples that are the same as one are named
SMALL = 4  # a sample is very small below one in so many of the median shorter edge, or frames, of the set
LOOKED_AT, LOOKED_FOR = 16, 0.05  # samples, and seconds, that `usual_short_side` takes


class Inspected(NamedTuple):
    """One sample.

    Attributes:
        split: train or val.
        index: its number in the split.
        facts: what it is; None where it cannot be read.
        reason: why it cannot be read.
        notes: what was logged while it was decoded, such as that a video ends early.
    """

    split: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    facts: Facts | None
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Something about one sample that a person should know.

    Attributes:
        kind: unreadable, damaged, two labels, both splits, small or short; of annotations also unknown category, empty
            box, box outside or box cut.
        split: train or val.
        path: what the sample is called.
        label: its class, where there are labels.
        detail: the reason, or what it is compared with.
    """

    kind: str
    split: str
    path: str
    label: str
    detail: str


class _Inspections(Dataset[Inspected]):
    """The samples of both splits, one behind the other."""

    def __init__(self, source: DataSource) -> None:
        self.splits = (source.train, source.val)

    def __len__(self) -> int:
        return sum(map(len, self.splits))

    def __getitem__(self, number: int) -> Inspected:
        first = len(self.splits[0])
        split, index = (0, number) if number < first else (1, number - first)
        return inspected(self.splits[split], SPLITS[split], index)


def inspections(source: DataSource, workers: int) -> Iterator[Inspected]:
    """Decode every sample once, in order: those to train on, then those to validate on.

    Args:
        source: what to read.
        workers: processes that read; 0 reads in this one.

    Raises:
        UserError: for what is not the fault of a file, such as too many open files.
    """
    loader: DataLoader[Inspected] = DataLoader(
        _Inspections(source),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=start_worker,
        multiprocessing_context=worker_context(workers),
        persistent_workers=workers > 0,  # of which torch takes care at Python's end, too
    )
    yield from loader


def inspected(samples: Samples, split: str, index: int) -> Inspected:
    """Decode one sample, and remember what was wrong with it.

    Raises:
        UserError: as `inspections`.
    """
    path = samples.path(index)
    with _Noted() as notes, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of harmless things in files, e.g. of what they left unread
        try:
            facts = samples.inspect(index)
        except Exception as error:  # a decoder may fail in any way on a broken file
            reason = reason_of(error, path)
            known = isinstance(error, UNREADABLE)
            return Inspected(split, index, None, reason if known else f"{type(error).__name__}: {reason}")
    return Inspected(split, index, facts, notes=tuple(dict.fromkeys(notes.words)))


def usual_short_side(source: DataSource) -> float | None:
    """The median shorter edge, in pixels, of a few training samples spread over the set; None where none tells it.

    Headers are read and pictures hardly ever decoded. What cannot be read is passed over: the training says it.

    Example:
        >>> usual_short_side(open_source("digits"))
        12
    """
    if source.image_size is not None:
        return source.image_size
    samples, sides = source.train, []
    began = time.monotonic()
    with _Noted(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index in dict.fromkeys(len(samples) * part // LOOKED_AT for part in range(LOOKED_AT)):
            if time.monotonic() - began > LOOKED_FOR:
                break
            with suppress(Exception):  # a decoder may fail in any way on a broken file, and must not cost a training
                sides.append(samples.short_side(index))
    known = [side for side in sides if side is not None]
    return median(known) if known else None


class _Noted(logging.Handler):
    """Takes what the package logs, which is then not printed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.words: list[str] = []
        self._logger = logging.getLogger("vitdistill")

    def emit(self, record: logging.LogRecord) -> None:
        self.words.append(record.getMessage())

    def __enter__(self) -> "_Noted":
        self._propagate, self._logger.propagate = self._logger.propagate, False
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_error: object) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagate


@dataclass
class Survey:
    """What is known of a source so far; `add` takes one sample after the other.

    Attributes:
        source: what is looked at.
        seen: the samples so far.
    """

    source: DataSource
    seen: list[Inspected] = field(default_factory=list)

    def add(self, one: Inspected) -> None:
        """Take note of a sample."""
        self.seen.append(one)

    @property
    def complete(self) -> bool:
        """Whether every sample was seen."""
        return len(self.seen) == len(self.source.train) + len(self.source.val)

    def splits(self) -> dict[str, dict[str, Any]]:
        """Per split: samples, those seen and unreadable, and [least, median, most] of what the samples have."""
        found: dict[str, dict[str, Any]] = {}
        for split, samples in zip(SPLITS, (self.source.train, self.source.val), strict=True):
            mine = [one for one in self.seen if one.split == split]
            facts = [one.facts for one in mine if one.facts is not None]
            spreads = {name: _spread([getattr(each, name) for each in facts]) for name in _SIZES}
            found[split] = {
                "samples": len(samples),
                "checked": len(mine),
                "unreadable": len(mine) - len(facts),
                **{name: spread for name, spread in spreads.items() if spread},
            }
        return found

    def classes(self) -> dict[str, dict[str, int]]:
        """How many samples, or things in them, of each class the splits have; nothing without labels."""
        counts = {
            split: samples.class_counts()
            for split, samples in zip(SPLITS, (self.source.train, self.source.val), strict=True)
        }
        return {
            name: {split: counts[split][number] for split in SPLITS} for number, name in enumerate(self.source.classes)
        }

    def findings(self) -> list[Finding]:
        """What is wrong, or may be: the worst first."""
        labels = {split: self._samples(split).labels for split in SPLITS}
        found = [self._finding("unreadable", one, one.reason, labels) for one in self.seen if one.facts is None]
        found += [
            self._finding("damaged", one, _without(self._path(one), note), labels)
            for one in self.seen
            for note in one.notes
        ]
        found += [
            self._finding(kind, Inspected(split, number, None), detail, labels)
            for split in SPLITS
            for kind, number, detail in self._samples(split).problems()
        ]
        found += self._repeated(labels)
        sizes_of = (("small", _short_side, "pixels"), ("short", _frames, "frames"), ("short", _seconds, "seconds"))
        for kind, value, unit in sizes_of:
            sizes = [value(one.facts) for one in self.seen if one.facts is not None]
            limit = median([size for size in sizes if size is not None] or [0]) / SMALL
            found += [
                self._finding(kind, one, f"{size} {unit}, {limit * SMALL:g} in the median", labels)
                for one in self.seen
                if one.facts is not None and (size := value(one.facts)) is not None and size < limit
            ]
        return found

    def repeats(self) -> int:
        """Samples that show the same as an earlier one."""
        contents = [one.facts.content for one in self.seen if one.facts is not None and one.facts.content]
        return len(contents) - len(set(contents))

    def _repeated(self, labels: dict[str, list[int] | None]) -> Iterator[Finding]:
        """Samples that show the same under two labels, or in both splits."""
        alike: dict[str, list[Inspected]] = defaultdict(list)
        for one in self.seen:
            if one.facts is not None and one.facts.content is not None:
                alike[one.facts.content].append(one)
        for group in alike.values():
            differ = {self._label(one, labels) for one in group}
            kinds = [("two labels", len(differ) > 1), ("both splits", len({one.split for one in group}) > 1)]
            for kind, holds in kinds:
                for one in group if holds else ():
                    others = [self._path(other) for other in group[: NAMED + 1] if other is not one][:NAMED]
                    more = len(group) - 1 - len(others)
                    words = f"the same as {', '.join(others)}" + (f" and {more} more" if more else "")
                    yield self._finding(kind, one, words, labels)

    def _samples(self, split: str) -> Samples:
        return self.source.train if split == "train" else self.source.val

    def _path(self, one: Inspected) -> str:
        return self._samples(one.split).path(one.index)

    def _label(self, one: Inspected, labels: dict[str, list[int] | None]) -> str:
        numbers = labels[one.split]
        if numbers is None:
            return ""
        number = numbers[one.index]
        return self.source.classes[number] if number < len(self.source.classes) else str(number)

    def _finding(self, kind: str, one: Inspected, detail: str, labels: dict[str, list[int] | None]) -> Finding:
        return Finding(kind, one.split, self._path(one), self._label(one, labels), detail)


_SIZES = ("width", "height", "frames", "fps", "seconds", "rate")


def _spread(values: Sequence[float | None]) -> list[float]:
    """Least, median and most; nothing where no sample has a value."""
    known = [round(value, 3) for value in values if value is not None]
    return [min(known), median(known), max(known)] if known else []


def _without(path: str, note: str) -> str:
    """What was logged of a sample, without its path, which is said beside it."""
    return note.replace(f"{path}: ", "").replace(f": {path}", "")


def _short_side(facts: Facts) -> int | None:
    return None if facts.width is None or facts.height is None else min(facts.width, facts.height)


def _frames(facts: Facts) -> int | None:
    return facts.frames


def _seconds(facts: Facts) -> float | None:
    return facts.seconds
