"""Moving patch scores and patch features from one grid to another."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.types import TokenGrid


def transfer(
    scores: Float[Tensor, "b n"],
    source: TokenGrid,
    target: TokenGrid,
    mode: Literal["bilinear", "bicubic"] = "bilinear",
) -> Float[Tensor, "b n2"]:
    """Interpolation of scores between patch grids (MaskedKD, footnote 1, App. C); equal grids pass.

    Args:
        scores: one number per patch of `source`.
        source: the grid on which the scores lie.
        target: the grid on which they are wanted.
        mode: bilinear stays within the range of the scores, bicubic may leave it.

    Raises:
        UserError: when the grids differ in time steps, along which nothing is interpolated.

    Example:
        >>> transfer(torch.tensor([[0.0, 1.0]]), TokenGrid(1, 1, 2), TokenGrid(1, 1, 4))
        tensor([[0.0000, 0.2500, 0.7500, 1.0000]])
    """
    if source == target:
        return scores
    return _moved(scores.reshape(-1, source.t, source.h, source.w), source, target, mode).flatten(1)


def transfer_features(
    features: Float[Tensor, "b n d"], source: TokenGrid, target: TokenGrid
) -> Float[Tensor, "b n2 d"]:
    """Bilinear interpolation of patch features between patch grids, channel by channel; equal grids pass.

    Where student and teacher cut an image into different grids, the student's patches are moved to the teacher's.

    Args:
        features: one vector per patch of `source`, without special tokens.
        source: the grid on which the features lie.
        target: the grid on which they are wanted.

    Raises:
        UserError: when the grids differ in time steps, along which nothing is interpolated.

    Example:
        >>> transfer_features(torch.rand(2, 14 * 14, 192), TokenGrid(1, 14, 14), TokenGrid(1, 24, 24)).shape
        torch.Size([2, 576, 192])
    """
    if source == target:
        return features
    # The channels stay last in memory, so that nothing is copied before or after the interpolation.
    planes = features.reshape(-1, source.h, source.w, features.shape[-1]).permute(0, 3, 1, 2)
    return _moved(planes, source, target, "bilinear").permute(0, 2, 3, 1).reshape(len(features), target.count, -1)


def _moved(planes: Tensor, source: TokenGrid, target: TokenGrid, mode: str) -> Tensor:
    if source.t != target.t:
        raise UserError(
            "Patches can only be moved between grids with the same number of time steps",
            f"{source} and {target}",
            "Give both networks the same number of frames and tubelet length",
        )
    return F.interpolate(planes, size=(target.h, target.w), mode=mode, align_corners=False)
