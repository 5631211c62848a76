"""Random masks for masked modelling: which patches the encoder sees and which it must predict."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitdistill.errors import UserError


def visible_count(patches: int, ratio: float) -> int:
    """Patches that stay visible: int(N * (1 - ratio)), as MAE counts.

    Raises:
        UserError: when the ratio leaves no patch to see or none to predict.
    """
    visible = int(patches * (1 - ratio)) if 0 < ratio < 1 else 0
    if not 1 <= visible < patches:
        raise UserError(
            "The mask ratio must leave at least one patch to see and one to predict",
            f"{ratio} of {patches} patches",
            "MAE and TinyMIM take 0.75",
        )
    return visible


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
