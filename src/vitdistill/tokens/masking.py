"""Random masks for masked modelling: which patches the encoder sees and which it must predict."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.types import TokenGrid

MaskKind = Literal["random", "tube", "frame"]


def visible_count(patches: int, ratio: float) -> int:
    """Patches that stay visible: int(N * (1 - ratio)), as MAE counts.

    Raises:
        UserError: when the ratio leaves no patch to see or none to predict.
    """
    visible = int(patches * (1 - ratio)) if 0 < ratio < 1 else 0
    if not 1 <= visible < patches:
        raise _nothing_to_do("patch", ratio, f"{patches} patches", "MAE and TinyMIM take 0.75")
    return visible


def _nothing_to_do(one: str, ratio: float, of: str, usual: str) -> UserError:
    rule = f"The mask ratio must leave at least one {one} to see and one to predict"
    return UserError(rule, f"{ratio} of {of}", usual)


def split_by_noise(noise: Float[Tensor, "b n"], visible: int) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b r"]]:
    """(visible, masked) patches: the `visible` smallest values of the noise are seen, in ascending order of noise.

    No host-device synchronisation: both counts are fixed.
    """
    order = noise.argsort(dim=1)
    return order[:, :visible], order[:, visible:]


def random_mask(
    b: int, patches: int, visible: int, *, device: torch.device | None = None
) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b r"]]:
    """(visible, masked) patches of a uniformly random mask per sample, each ascending, made on the device."""
    kept, masked = split_by_noise(torch.rand(b, patches, device=device), visible)
    return kept.sort(dim=1).values, masked.sort(dim=1).values


def tube_mask(
    b: int, grid: TokenGrid, visible: int, *, device: torch.device | None = None
) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b r"]]:
    """(visible, masked) tokens of a mask that is the same in every time step (VideoMAE, MVD), each ascending.

    Args:
        b: masks.
        grid: tokens of a clip.
        visible: patches that stay visible in each time step.
        device: where the masks are made.
    """
    kept, masked = random_mask(b, grid.h * grid.w, visible, device=device)
    starts = torch.arange(grid.t, device=device).view(1, -1, 1) * (grid.h * grid.w)
    return (kept[:, None] + starts).flatten(1), (masked[:, None] + starts).flatten(1)


def frame_mask(
    b: int, grid: TokenGrid, visible: int, *, device: torch.device | None = None
) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b r"]]:
    """(visible, masked) tokens of a mask that shows whole time steps and hides the others, each ascending.

    Args:
        b: masks.
        grid: tokens of a clip.
        visible: time steps that stay visible.
        device: where the masks are made.
    """
    kept, masked = random_mask(b, grid.t, visible, device=device)
    patches = torch.arange(grid.h * grid.w, device=device)
    return tuple((steps[:, :, None] * len(patches) + patches).flatten(1) for steps in (kept, masked))  # type: ignore[return-value]


@dataclass(frozen=True)
class Masking:
    """Which tokens the encoder sees: how many, and in what pattern.

    Args:
        ratio: share that is hidden.
        kind: random over all tokens, tube (the same patches in every time step), or frame (whole time steps).
    """

    ratio: float = 0.75
    kind: MaskKind = "random"

    def visible(self, grid: TokenGrid) -> int:
        """Tokens that the encoder sees.

        Raises:
            UserError: when the ratio leaves nothing to see or to predict.
        """
        match self.kind:
            case "random":
                return visible_count(grid.count, self.ratio)
            case "tube":
                # The authors count what is hidden: int(0.9 * 196) = 176 of 196 in each time step.
                return grid.t * (grid.h * grid.w - self._hidden(grid.h * grid.w, "patch", "patches of each time step"))
            case _:
                return (grid.t - self._hidden(grid.t, "time step", "time steps")) * grid.h * grid.w

    def _hidden(self, count: int, one: str, many: str) -> int:
        hidden = int(self.ratio * count) if 0 < self.ratio < 1 else 0
        if not 1 <= hidden < count:
            raise _nothing_to_do(one, self.ratio, f"{count} {many}", "VideoMAE and MVD take 0.9")
        return hidden

    def draw(
        self, b: int, grid: TokenGrid, *, device: torch.device | None = None
    ) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b r"]]:
        """(visible, masked) tokens per sample, each ascending."""
        count = self.visible(grid)
        if self.kind == "random":
            return random_mask(b, grid.count, count, device=device)
        if self.kind == "tube":
            return tube_mask(b, grid, count // grid.t, device=device)
        return frame_mask(b, grid, count // (grid.h * grid.w), device=device)
