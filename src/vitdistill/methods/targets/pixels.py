"""Pixels as a target: an image's patches (MAE)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitdistill.losses.features import mean_squared
from vitdistill.methods.targets.target import Target
from vitdistill.types import TokenGrid


class Pixels(Target):
    """The patches' own pixels (MAE)."""

    def __init__(self, grid: TokenGrid, patch: tuple[int, int], *, normalise: bool = True, colours: int = 3) -> None:
        """
        Args:
            grid: patches of an image.
            patch: height and width of a patch, in pixels.
            normalise: standardise each patch by its own mean and deviation over all its values.
            colours: channels of a pixel.
        """
        self.grid, self.patch, self.normalise, self.colours = grid, patch, normalise, colours

    @property
    def channels(self) -> int:
        return self.patch[0] * self.patch[1] * self.colours

    def values(
        self, inputs: Float[Tensor, "b ch *pixels"], kept: Int[Tensor, "bm k"], masked: Int[Tensor, "bm r"]
    ) -> Float[Tensor, "b n c"]:
        pixels = patchify(self.covered(inputs.float()), self.grid)
        return standardised(pixels) if self.normalise else pixels

    def covered(self, images: Float[Tensor, "b ch height width"]) -> Float[Tensor, "b ch height2 width2"]:
        """A view on what the patches cover, which need not be the whole image (SigLIP at 384 pixels)."""
        return images[..., : self.grid.h * self.patch[0], : self.grid.w * self.patch[1]]

    def distance(self, prediction: Float[Tensor, "b r c"], values: Float[Tensor, "b r c"]) -> Float[Tensor, ""]:
        return mean_squared(prediction, values)


def patchify(images: Float[Tensor, "b ch height width"], grid: TokenGrid) -> Float[Tensor, "b n c"]:
    """Pixels per patch in the order (row, column, channel), channel fastest."""
    b, channels, height, width = images.shape
    cut = images.reshape(b, channels, grid.h, height // grid.h, grid.w, width // grid.w)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(b, grid.count, -1)


def unpatchify(pixels: Float[Tensor, "b n c"], grid: TokenGrid, patch: tuple[int, int]) -> Float[Tensor, "b ch h w"]:
    """The inverse of `patchify`."""
    b = len(pixels)
    cut = pixels.reshape(b, grid.h, grid.w, *patch, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, grid.h * patch[0], grid.w * patch[1])


def standardised(pixels: Float[Tensor, "b r c"]) -> Float[Tensor, "b r c"]:
    """(x - mean) / sqrt(var + 1e-6) per patch, unbiased variance, epsilon inside the root (MAE)."""
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
    return (pixels - mean) / (variance + 1e-6).sqrt()
