"""Carrying patch scores from one grid to another."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.types import TokenGrid


def transfer(scores: Float[Tensor, "b n"], source: TokenGrid, target: TokenGrid) -> Float[Tensor, "b n2"]:
    """Bilinear interpolation of scores between patch grids (MaskedKD, footnote 1, App. C); equal grids pass.

    Raises:
        UserError: when the grids differ in time steps, along which nothing is interpolated.
    """
    if source == target:
        return scores
    if source.t != target.t:
        raise UserError(
            "Patch scores can only be carried between grids of as many time steps",
            f"{source} and {target}",
            "Give both networks the same number of frames and tubelet length",
        )
    planes = scores.reshape(-1, source.t, source.h, source.w)
    moved = F.interpolate(planes, size=(target.h, target.w), mode="bilinear", align_corners=False)
    return moved.flatten(1)
