"""Which classes are taken for which: counts, and what they say of every class.

Means over classes are over those that have samples: a class that validation lacks has no accuracy. (The macro average
of torchmetrics' accuracy counts such a class as 0 as soon as it is predicted once.)
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torchmetrics.classification import MulticlassStatScores

from vitdistill.errors import UserError

FILE = "confusion.csv"
MOST_CLASSES = 1000  # of which training counts every pair: a matrix of 8 MB
UNEVEN = 2.0  # classes are uneven where the most frequent has more than so many times the samples of the least


class MeanPerClass(MulticlassStatScores):
    """Mean over the classes of the share of their samples that are right, of one: top-1 accuracy, every class alike."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average=None, validate_args=False)

    def compute(self) -> Float[Tensor, ""]:
        hits, _, _, _, support = super().compute().unbind(dim=-1)
        return (hits[support > 0] / support[support > 0]).mean()


def uneven(labels: Sequence[Any]) -> bool:
    """Whether the classes that there are have so different numbers of samples that accuracy hides the rare ones."""
    counts = np.bincount(np.asarray(labels, dtype=np.int64))
    counts = counts[counts > 0]
    return bool(len(counts) and counts.max() > UNEVEN * counts.min())


@dataclass(frozen=True)
class Confusion:
    """How often samples of one class were taken for another; pairs that never happened are left out.

    Attributes:
        classes: their names.
        true: class numbers, ascending.
        predicted: class numbers.
        count: of samples.
    """

    classes: tuple[Any, ...]
    true: Int64[np.ndarray, "pairs"]
    predicted: Int64[np.ndarray, "pairs"]
    count: Int64[np.ndarray, "pairs"]

    @classmethod
    def of(cls, matrix: Int[Tensor, "c c"], classes: Sequence[Any]) -> "Confusion":
        """From a matrix of counts: rows are true classes, columns predicted ones."""
        counts = matrix.cpu().numpy().astype(np.int64)
        true, predicted = np.nonzero(counts)
        return cls(tuple(classes), true.astype(np.int64), predicted.astype(np.int64), counts[true, predicted])

    @classmethod
    def between(cls, true: Int64[Tensor, "b"], predicted: Int64[Tensor, "b"], classes: Sequence[Any]) -> "Confusion":
        """From class numbers of samples; without a matrix, so for any number of classes."""
        keys, count = torch.unique(true * len(classes) + predicted, return_counts=True)
        pairs = np.stack(np.divmod(keys.numpy(), len(classes)))
        return cls(tuple(classes), pairs[0], pairs[1], count.numpy())

    def matrix(self) -> Int64[np.ndarray, "c c"]:
        """Rows are true classes, columns predicted ones."""
        found = np.zeros((len(self.classes),) * 2, dtype=np.int64)
        found[self.true, self.predicted] = self.count
        return found

    @property
    def samples(self) -> Int64[np.ndarray, "c"]:
        """Of each class."""
        return self._sums(self.true)

    @property
    def mean_per_class(self) -> float:
        """Mean accuracy of the classes that have samples, 0 to 1."""
        there = self.samples > 0
        return float((self._hits()[there] / self.samples[there]).mean())

    def pairs(self) -> list[tuple[int, int, int]]:
        """(true, predicted, count) of the mistakes, the most frequent first."""
        wrong = self.true != self.predicted
        true, predicted, count = self.true[wrong], self.predicted[wrong], self.count[wrong]
        order = np.argsort(-count, kind="stable")
        return list(zip(true[order].tolist(), predicted[order].tolist(), count[order].tolist(), strict=True))

    def per_class(self) -> list[dict[str, Any]]:
        """Of each class: its name, samples, accuracy (recall) and precision in percent (None where there is nothing to
        divide by), and the class for which it is most often mistaken, with how often."""
        samples, hits, predicted = self.samples, self._hits(), self._sums(self.predicted)
        mistaken: dict[int, tuple[int, int]] = {}
        for true, other, count in self.pairs():
            mistaken.setdefault(true, (other, count))
        rows = []
        for number, name in enumerate(self.classes):
            other, count = mistaken.get(number, (-1, 0))
            rows.append(
                {
                    "class": str(name),
                    "samples": int(samples[number]),
                    "accuracy": _percent(hits[number], samples[number]),
                    "precision": _percent(hits[number], predicted[number]),
                    "mistaken_for": str(self.classes[other]) if count else None,
                    "mistakes": count,
                }
            )
        return rows

    def csv(self) -> str:
        """One line per pair that happened: numbers and names of the true and the predicted class, and how often."""
        rows = [
            {"true": a, "predicted": b, "count": n, "true_class": self.classes[a], "predicted_class": self.classes[b]}
            for a, b, n in zip(self.true.tolist(), self.predicted.tolist(), self.count.tolist(), strict=True)
        ]
        return table(rows, ("true", "predicted", "count", "true_class", "predicted_class"))

    @classmethod
    def read(cls, path: Path, classes: Sequence[Any]) -> "Confusion":
        """What `csv` made.

        Raises:
            UserError: when the file is missing, empty or damaged, or has more classes.
        """
        try:
            with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
                rows = [[int(row[name]) for name in ("true", "predicted", "count")] for row in csv.DictReader(file)]
        except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
            raise UserError("Counts of confused classes must be readable", f"{path} ({error})") from error
        if not rows:
            raise UserError("Counts of confused classes must not be empty", path)
        found = np.array(rows, dtype=np.int64).reshape(-1, 3)
        if not 0 <= found[:, :2].min() <= found[:, :2].max() < len(classes):
            raise UserError(f"{path} must be of {len(classes)} classes", f"class {found[:, :2].max()}")
        return cls(tuple(classes), found[:, 0], found[:, 1], found[:, 2])

    def _hits(self) -> Int64[np.ndarray, "c"]:
        right = self.true == self.predicted
        found = np.zeros(len(self.classes), dtype=np.int64)
        found[self.true[right]] = self.count[right]
        return found

    def _sums(self, of: Int64[np.ndarray, "pairs"]) -> Int64[np.ndarray, "c"]:
        found = np.zeros(len(self.classes), dtype=np.int64)
        np.add.at(found, of, self.count)
        return found


def table(rows: Sequence[Any], columns: Sequence[str]) -> str:
    """Rows as csv; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _percent(part: np.int64, whole: np.int64) -> float | None:
    return round(100 * float(part) / float(whole), 4) if whole else None
