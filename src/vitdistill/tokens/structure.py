"""How masks are built: whether neighbours are kept and dropped together, and where (MaskedKD, Sec. 5.1 and Fig. 5).

The paper says that an untrained student "tends to mask similar patches at the same time" and keeps more patches at the
edge than in the centre, and measures neither. Here every number stands beside that of uniformly random masks of as
many patches.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitdistill.types import TokenGrid


@dataclass
class MaskStructure:
    """Counts over masks that keep equally many patches of one grid.

    Attributes:
        grid: the patches. Clips are looked at frame by frame.
        kept: patches that each mask keeps.
        masks: how many were counted.
        together: how often two patches were kept by the same mask; on the diagonal how often each was kept.

    Example:
        >>> structure = MaskStructure(TokenGrid(1, 14, 14), 98)
        >>> structure.add(torch.arange(98)[None])  # the upper half
        >>> round(structure.joint, 2), structure.centre
        (1.93, 0.5)
    """

    grid: TokenGrid
    kept: int
    masks: int = 0
    together: Float[Tensor, "n n"] = field(default_factory=lambda: torch.zeros(0, 0))

    def add(self, keep: Int[Tensor, "b k"]) -> None:
        """Count some masks, on their device.

        Args:
            keep: patches in coordinates of the grid.
        """
        maps = torch.zeros(len(keep), self.grid.count, device=keep.device).scatter(1, keep, 1.0)
        counts = maps.T @ maps
        self.together = self.together.to(counts.device) + counts if self.masks else counts
        self.masks += len(keep)

    @property
    def rates(self) -> Float[Tensor, "n"]:
        """Share of the masks that keep each patch."""
        return self.together.diagonal().cpu() / self.masks

    @property
    def neighbours(self) -> float:
        """Share of neighbouring pairs (side by side, or one above the other) that are both kept or both dropped."""
        rates, both = self.rates, self.together.cpu() / self.masks
        alike = 1 - rates[:, None] - rates[None, :] + 2 * both
        return float(alike[neighbouring(self.grid)].mean())

    @property
    def joint(self) -> float:
        """`neighbours` over what random masks of as many patches have: 1 for these, 0 for a checkerboard.

        Where all patches are kept it says nothing, and is 1.
        """
        return self.neighbours / chance_alike(self.kept, self.grid.count)

    @property
    def centre(self) -> float:
        """Share of the patches in the middle half of both sides that are kept."""
        return float(self.rates[central(self.grid)].mean())

    @property
    def edge(self) -> float | None:
        """Share of the patches around them that are kept; None where the grid is too small to have any."""
        outside = ~central(self.grid)
        return float(self.rates[outside].mean()) if outside.any() else None

    def correlation(self) -> dict[int, float]:
        """Correlation of two patches' being kept, by the distance between them in patches, rounded.

        Random masks have -1 / (patches - 1) at any distance: what one patch gets, the others do not. Empty where all
        patches are kept.
        """
        share = self.kept / self.grid.count
        if share == 1:
            return {}
        rates, both = self.rates, self.together.cpu() / self.masks
        # Of the deviations from the share that every mask keeps, so that a place that all masks keep counts, too.
        moments = both - share * (rates[:, None] + rates[None, :]) + share**2
        steps = distances(self.grid)
        return {
            step: float(moments[steps == step].mean() / (share * (1 - share)))
            for step in range(1, int(steps.max()) + 1)
            if (steps == step).any()
        }


# --- the grid ----------------------------------------------------------------------------------------------------


def neighbouring(grid: TokenGrid) -> Bool[Tensor, "n n"]:
    """Which two patches share an edge, in the same frame."""
    frame, row, column = _places(grid)
    apart = (row[:, None] - row).abs() + (column[:, None] - column).abs()
    return (apart == 1) & (frame[:, None] == frame)


def distances(grid: TokenGrid) -> Int[Tensor, "n n"]:
    """Distances between patches in patches, rounded; -1 between those of different frames."""
    frame, row, column = _places(grid)
    apart = torch.hypot((row[:, None] - row).float(), (column[:, None] - column).float()).round().long()
    return torch.where(frame[:, None] == frame, apart, -1)


def central(grid: TokenGrid) -> Bool[Tensor, "n"]:
    """Which patches have their middle in the middle half of both sides."""
    _, row, column = _places(grid)

    def inside(place: Tensor, size: int) -> Tensor:
        return (2 * (2 * place + 1) - 2 * size).abs() <= size  # |middle - size / 2| <= size / 4, in whole numbers

    return inside(row, grid.h) & inside(column, grid.w)


def _places(grid: TokenGrid) -> tuple[Tensor, Tensor, Tensor]:
    number = torch.arange(grid.count)
    return number // (grid.h * grid.w), number // grid.w % grid.h, number % grid.w


# --- chance ------------------------------------------------------------------------------------------------------


def chance_alike(kept: int, patches: int) -> float:
    """Share of pairs that uniformly random masks keep together or drop together.

    Example:
        >>> round(chance_alike(98, 196), 4)
        0.4974
    """
    dropped = patches - kept
    return (kept * (kept - 1) + dropped * (dropped - 1)) / (patches * (patches - 1))


def overlap(one: Int[Tensor, "b k"], other: Int[Tensor, "b k"], patches: int) -> Float[Tensor, "b"]:
    """Patches that two masks of an image both keep, as a share of those that either keeps (IoU)."""
    first, second = (torch.zeros(len(keep), patches, device=keep.device).scatter(1, keep, 1.0) for keep in (one, other))
    both = (first * second).sum(dim=1)
    return both / (2 * one.shape[1] - both)


def chance_overlap(kept: int, patches: int) -> float:
    """What `overlap` is on average for two random masks.

    Example:
        >>> round(chance_overlap(98, 196), 4)
        0.3341
    """
    whole = math.comb(patches, kept)
    fewest = max(0, 2 * kept - patches)
    return sum(
        math.comb(kept, both) * math.comb(patches - kept, kept - both) / whole * both / (2 * kept - both)
        for both in range(fewest, kept + 1)
    )
