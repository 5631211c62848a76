"""A part of a set that stands for all of it."""

from typing import Any

import numpy as np

from vitdistill.data.samples import Samples, Transform, ViewOptions
from vitdistill.types import InputSpec


class EvenlySpread(Samples):
    """So many samples of a set, evenly spaced; all of a set that is smaller."""

    def __init__(self, whole: Samples, count: int) -> None:
        self.whole, self.in_memory = whole, whole.in_memory
        self.chosen = np.unique(np.linspace(0, len(whole) - 1, min(count, len(whole))).round().astype(int)).tolist()

    def __len__(self) -> int:
        return len(self.chosen)

    def load(self, index: int) -> Any:
        return self.whole.load(self.chosen[index])

    def path(self, index: int) -> str:
        return self.whole.path(self.chosen[index])

    @property
    def labels(self) -> list[int] | None:
        labels = self.whole.labels
        return None if labels is None else [labels[index] for index in self.chosen]

    def transform(self, spec: InputSpec, options: ViewOptions, *, train: bool) -> Transform:
        return self.whole.transform(spec, options, train=train)
