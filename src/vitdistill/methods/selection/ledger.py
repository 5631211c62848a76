"""What a teacher has seen in a training, so that its cost is counted as it was."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from vitdistill.methods.selection.mass import Groups


class Ledger:
    """Inputs by the number of patches that the teacher saw of them.

    Attributes:
        seen: in training; entry k counts inputs of which k patches were kept.
        asked: when it was asked what it knows.
        ranked: inputs whose patches were ranked so that some could be left out.
        varied: inputs in training whose size the teacher does not fix: of these, a number of patches says nothing.
        megamacs: what the teacher's side has computed over these, in 1e6 multiply-accumulates.
        complete: whether all of the training was counted: not after resuming a run of an earlier version.
    """

    def __init__(self, *, complete: bool = True) -> None:
        self.seen: list[int] = []
        self.asked: list[int] = []
        self.ranked = self.varied = self.megamacs = 0
        self.complete = complete

    @classmethod
    def of(cls, state: dict[str, Any] | None, *, first: bool = True) -> "Ledger | None":
        """A ledger from its state; None without one.

        Args:
            state: of `state`, which is summed over all processes.
            first: whether this is the first process; the others begin at zero.
        """
        if state is None:
            return None
        ledger = cls(complete=state["complete"])
        share = 1 if first else 0  # zeros of the same length, since the processes add up what they have
        ledger.seen, ledger.asked = ([share * number for number in state[name]] for name in ("seen", "asked"))
        ledger.ranked = share * state["ranked"]
        ledger.varied, ledger.megamacs = (share * state.get(name, 0) for name in ("varied", "megamacs"))
        return ledger

    def note(self, keep: Int[Tensor, "b k"] | Groups | None, batch: int, patches: int) -> None:
        """Count a training step."""
        self._open(patches)
        if isinstance(keep, Groups):
            for group in keep.groups:
                self.seen[group.kept.shape[1]] += len(group.rows)
        else:
            self.seen[patches if keep is None else keep.shape[1]] += batch
        self.ranked += 0 if keep is None else batch

    def ask(self, rows: int, counts: Sequence[int], patches: int, *, rankings: int) -> None:
        """Count a question about so many inputs, at several counts, by so many criteria."""
        self._open(patches)
        for count in counts:
            self.asked[count] += rows
        self.ranked += rankings * rows

    def spend(self, macs: float, batch: int = 0) -> None:
        """Count what inputs of varying size have cost, which other ledgers count by their numbers of patches."""
        self.megamacs += round(macs / 1e6)
        self.varied += batch

    def state(self, total: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """As plain values.

        Args:
            total: the sum of a tensor over all processes.
        """
        counts = total(torch.tensor([self.ranked, self.varied, self.megamacs, *self.seen, *self.asked]))
        ranked, varied, megamacs, *rest = counts.tolist()
        half = len(rest) // 2
        sums = {"ranked": ranked, "varied": varied, "megamacs": megamacs}
        return {"seen": rest[:half], "asked": rest[half:], **sums, "complete": self.complete}

    def _open(self, patches: int) -> None:
        if len(self.seen) <= patches:
            self.seen += [0] * (patches + 1 - len(self.seen))
            self.asked += [0] * (patches + 1 - len(self.asked))
