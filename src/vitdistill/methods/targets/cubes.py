"""Pixels as a target: a clip's tubelets (VideoMAE)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitdistill.losses.features import mean_squared
from vitdistill.methods.targets.target import Target
from vitdistill.types import TokenGrid


class Cubes(Target):
    """A tubelet's own pixels in 0..1, or standardised per channel (VideoMAE)."""

    def __init__(
        self,
        grid: TokenGrid,
        cube: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        normalise: bool = True,
    ) -> None:
        """
        Args:
            grid: tokens of a clip.
            cube: frames, height and width of a token, in pixels.
            mean: the statistics that clips are normalised with.
            std: goes with `mean`.
            normalise: standardise each channel of each cube by its own mean and deviation.
        """
        self.grid, self.cube, self.normalise = grid, cube, normalise
        self._mean, self._std = torch.tensor(mean), torch.tensor(std)

    @property
    def channels(self) -> int:
        return self.cube[0] * self.cube[1] * self.cube[2] * 3

    def values(
        self, inputs: Float[Tensor, "b ch *pixels"], kept: Int[Tensor, "bm k"], masked: Int[Tensor, "bm r"]
    ) -> Float[Tensor, "b n c"]:
        cubes = cut(self.pixels(inputs), self.grid)
        if self.normalise:
            mean, deviation = statistics(cubes)
            cubes = (cubes - mean) / deviation
        return cubes.flatten(2)

    def pixels(self, clips: Float[Tensor, "b ch t height width"]) -> Float[Tensor, "b ch t height width"]:
        """Clips in 0..1 again."""
        mean, std = self._statistics(clips.device)
        return clips.float() * std + mean

    def normalised(self, clips: Float[Tensor, "b ch t height width"]) -> Float[Tensor, "b ch t height width"]:
        """The inverse of `pixels`."""
        mean, std = self._statistics(clips.device)
        return (clips - mean) / std

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._mean.device != device:
            self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self._mean.view(-1, 1, 1, 1), self._std.view(-1, 1, 1, 1)

    def distance(self, prediction: Float[Tensor, "b r c"], values: Float[Tensor, "b r c"]) -> Float[Tensor, ""]:
        return mean_squared(prediction, values)


def cut(clips: Float[Tensor, "b ch t height width"], grid: TokenGrid) -> Float[Tensor, "b n p ch"]:
    """Pixels per token in the order (frame, row, column), and per channel."""
    b, channels, t, height, width = clips.shape
    parts = clips.reshape(b, channels, grid.t, t // grid.t, grid.h, height // grid.h, grid.w, width // grid.w)
    return parts.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(b, grid.count, -1, channels)


def join(pixels: Float[Tensor, "b n c"], grid: TokenGrid, shape: Sequence[int]) -> Float[Tensor, "b ch t h w"]:
    """The inverse of `cut`: pixels per token, channel fastest, as clips of a shape again."""
    b, channels, t, height, width = shape
    cube = t // grid.t, height // grid.h, width // grid.w
    parts = pixels.reshape(b, grid.t, grid.h, grid.w, *cube, channels)
    return parts.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(*shape)


def statistics(cubes: Float[Tensor, "b n p ch"]) -> tuple[Float[Tensor, "b n 1 ch"], Float[Tensor, "b n 1 ch"]]:
    """Mean and deviation of every channel of every cube; epsilon outside the root, unlike MAE."""
    variance, mean = torch.var_mean(cubes, dim=2, keepdim=True)
    return mean, variance.sqrt() + 1e-6
