"""Patches in the part of an image that was filled up to the size of its batch."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vitdistill.types import TokenGrid


def padding_patches(images: Float[Tensor, "b ch height width"], grid: TokenGrid) -> Bool[Tensor, "b n"]:
    """Which patches lie wholly in the padding: rows and columns of patches, up to the lower and right border, of zeros.

    Images of a batch are filled up with zeros after normalisation, at the right and at the bottom. So their own size
    can be seen in them, on the device: no pixel of a picture is exactly 0 in all channels of a whole band, unless it
    was painted so, in which case nothing is to be seen there.

    Args:
        images: normalised, then filled up.
        grid: of their patches.

    Example:
        >>> images = torch.nn.functional.pad(torch.ones(1, 3, 8, 8), (0, 8))  # 8 more columns at the right
        >>> padding_patches(images, TokenGrid(1, 1, 2))
        tensor([[False,  True]])
    """
    height, width = images.shape[-2] // grid.h, images.shape[-1] // grid.w
    pixels = images.detach().abs().amax(dim=1)[:, : grid.h * height, : grid.w * width]
    solid = pixels.unflatten(2, (grid.w, width)).unflatten(1, (grid.h, height)).amax(dim=(2, 4))
    rows, columns = (_from_end(solid.amax(dim=dim)) for dim in (2, 1))
    return torch.minimum(rows[:, :, None], columns[:, None, :]).flatten(1) == 0


def _from_end(values: Float[Tensor, "b side"]) -> Float[Tensor, "b side"]:
    """The largest value from each place to the end."""
    return values.flip(1).cummax(dim=1).values.flip(1)
