"""Selections whose number of patches differs from input to input."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitdistill.models.teacher import Teacher
from vitdistill.tokens.select import top_k
from vitdistill.types import Capture, Output

GROUPS = 4  # into which a batch is parted
FINE = 16  # counts are multiples of this part of the grid


class Group(NamedTuple):
    """Inputs of a batch that keep equally many patches.

    Attributes:
        rows: of the batch.
        kept: their patches.
    """

    rows: Int[Tensor, "r"]
    kept: Int[Tensor, "r k"]


class Groups(NamedTuple):
    """A selection for a whole batch, in groups; within one, fused kernels see tensors without holes."""

    groups: tuple[Group, ...]

    @property
    def rows(self) -> Int[Tensor, "b"]:
        """Rows of the batch in the order of the groups."""
        return torch.cat([group.rows for group in self.groups])

    @property
    def padded(self) -> Int[Tensor, "b k"]:
        """One row per input; -1 where an input keeps fewer patches than others."""
        most = max(group.kept.shape[1] for group in self.groups)
        filled = [torch.nn.functional.pad(one.kept, (0, most - one.kept.shape[1]), value=-1) for one in self.groups]
        return torch.cat(filled)[self.rows.argsort()]

    def run(self, teacher: Teacher, inputs: Float[Tensor, "b ch *pixels"], capture: Capture) -> Output:
        """The teacher's prediction for a batch, one pass per group; tokens of unequal numbers are not handed out."""
        outputs = [teacher(inputs[group.rows], keep=group.kept, capture=capture) for group in self.groups]
        back = self.rows.argsort()
        predictions = [one.prediction for one in outputs if one.prediction is not None]
        prediction = torch.cat(predictions)[back] if predictions else None
        return Output(prediction=prediction, grid=outputs[0].grid, kept=self.padded)


def by_mass(scores: Float[Tensor, "b n"], share: float) -> Groups:
    """Of each input the fewest patches, highest scores first, that hold a share of the sum of its scores.

    Inputs are sorted by how many they need and parted into groups of (nearly) equal size; each group keeps what the
    neediest in it needs, rounded up to sixteenths of the grid. So no input keeps less than its share, and the shapes of
    tensors repeat. The numbers are read from the device once.

    Args:
        scores: at least 0.
        share: in (0, 1].

    Example:
        >>> by_mass(torch.tensor([[0.9, 0.1, 0.0, 0.0]]), 0.8).groups[0].kept
        tensor([[0]])
    """
    patches = scores.shape[1]
    falling = scores.double().sort(dim=1, descending=True).values.cumsum(dim=1)
    # Of uniform or vanishing scores, rounding must not ask for one patch too many.
    reached = falling >= share * falling[:, -1:] * (1 - 1e-9)
    needed = patches - reached.sum(dim=1) + 1
    order = needed.argsort(stable=True)
    parts = order.chunk(min(GROUPS, len(order)))
    most = torch.stack([needed[rows[-1]] for rows in parts]).tolist()
    fine = patches / FINE
    counts = [min(patches, math.ceil(math.ceil(count / fine) * fine)) for count in most]
    return Groups(tuple(Group(rows, top_k(scores[rows], count)) for rows, count in zip(parts, counts, strict=True)))


def see(
    teacher: Teacher, inputs: Float[Tensor, "b ch *pixels"], keep: Int[Tensor, "b k"] | Groups | None, capture: Capture
) -> Output:
    """The teacher's pass over what is kept of a batch."""
    if isinstance(keep, Groups):
        return keep.run(teacher, inputs, capture)
    return teacher(inputs, keep=keep, capture=capture)
