"""What a masked teacher still knows: it is asked about a few inputs now and then, whole and masked."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch import distributed as dist

WATCHING = 0.01  # of a step's cost goes into asking the whole teacher
FOLLOWING = 0.05  # and into asking at several counts, where the answers decide how many patches are kept
ROWS = 16  # inputs that are asked about, or a quarter of the batch where that is more
MEMORY = 256  # inputs after which an answer is forgotten
TRUSTED = 0.8  # agreement below which a masked teacher teaches something else than the whole one knows
FEW = 32  # inputs before which nothing is said of it
ENOUGH = 64  # inputs before which answers decide nothing

Question = tuple[str, int]  # the criterion's name, and how many patches are kept


@dataclass
class Tally:
    """On how many of about the last `MEMORY` inputs masked and whole teacher named the same class.

    Example:
        >>> tally = Tally()
        >>> tally.add(48, 64)
        >>> tally.share
        0.75
    """

    hits: float = 0.0
    asked: float = 0.0

    def add(self, hits: int, asked: int) -> None:
        left = max(0.0, 1 - asked / MEMORY)
        self.hits, self.asked = left * self.hits + hits, left * self.asked + asked

    @property
    def share(self) -> float:
        return self.hits / self.asked if self.asked else math.nan

    @property
    def error(self) -> float:
        """Standard error of the share, not 0 where all inputs agree (Agresti and Coull, 1998, with one of each)."""
        share = (self.hits + 1) / (self.asked + 2)
        return math.sqrt(share * (1 - share) / max(self.asked, 1.0))

    @property
    def certain(self) -> float:
        """The share less its standard error; 0 while too few inputs were asked about."""
        share = (self.hits + 1) / (self.asked + 2)
        return share - self.error if self.asked >= ENOUGH else 0.0


class Probe:
    """Answers so far, and when to ask again. Equal in all processes, since the answers of all are added up.

    Attributes:
        share: of the cost of training steps that goes into asking.
        tallies: by question.
        own: of the patches that are in use.
        steps: training steps so far.
        next: the step at which to ask again.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.tallies: dict[Question, Tally] = {}
        self.own = Tally()
        self.steps = 0
        self.next = 0

    def due(self) -> bool:
        """Count a step; whether it is one at which to ask."""
        self.steps += 1
        return self.steps > self.next

    @staticmethod
    def rows(batch: int) -> int:
        """Inputs of a batch that are asked about."""
        return min(batch, max(ROWS, batch // 4))

    def wait(self, cost: float, cost_of_step: float) -> None:
        """Set when to ask again, by what this question cost beside a step."""
        self.next = self.steps + max(1, math.ceil(cost / (self.share * cost_of_step))) - 1

    def tell(
        self,
        whole: Int[Tensor, "r *things"],
        used: Int[Tensor, "r *things"],
        masked: dict[Question, Int[Tensor, "r *things"]],
    ) -> None:
        """Add the answers about a few inputs, of all processes.

        Args:
            whole: classes that the teacher names that sees every patch (`Network.named`): of each input, or of each
                thing that it may find in one, -1 where it finds none. It is asked about what it finds then.
            used: of the teacher as it is masked in this step.
            masked: of the teacher that sees other patches.
        """
        there = whole >= 0
        hits = [((classes == whole) & there).sum() for classes in (used, *masked.values())]
        counts = torch.stack([*hits, there.sum()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        own, *others, asked = counts.tolist()
        self.own.add(own, asked)
        for question, agreeing in zip(masked, others, strict=True):
            self.tallies.setdefault(question, Tally()).add(agreeing, asked)

    def of(self, criterion: str, kept: int) -> Tally:
        """The answers to one question; an empty one where it was never asked."""
        return self.tallies.get((criterion, kept), Tally())

    def better(self, chosen: str, others: Iterable[str], kept: int) -> str:
        """The criterion with which the teacher agrees more: another one only if the difference is above its error."""
        for other in others:
            mine, theirs = self.of(chosen, kept), self.of(other, kept)
            if min(mine.asked, theirs.asked) < ENOUGH:
                continue
            if theirs.share - mine.share > math.hypot(mine.error, theirs.error):
                chosen = other
        return chosen

    def state(self) -> dict[str, Any]:
        answers = [[criterion, kept, tally.hits, tally.asked] for (criterion, kept), tally in self.tallies.items()]
        return {"steps": self.steps, "next": self.next, "own": [self.own.hits, self.own.asked], "answers": answers}

    def load(self, state: dict[str, Any]) -> None:
        self.steps, self.next, self.own = state["steps"], state["next"], Tally(*state["own"])
        self.tallies = {(criterion, kept): Tally(hits, asked) for criterion, kept, hits, asked in state["answers"]}
