"""Targets over clips: VideoMAE's cubes of pixels, and features of image and video teachers (MVD)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.losses.features import mean_squared
from vitdistill.methods.method import Pass
from vitdistill.methods.targets import Target
from vitdistill.methods.teacher import Teacher
from vitdistill.types import Capture, TokenGrid

FeatureLoss = Literal["smooth_l1", "l1", "l2"]


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
            std: likewise.
            normalise: standardise each channel of each cube by its own mean and deviation.
        """
        self.grid, self.cube, self.normalise = grid, cube, normalise
        self._mean, self._std = torch.tensor(mean), torch.tensor(std)

    @property
    def channels(self) -> int:
        return self.cube[0] * self.cube[1] * self.cube[2] * 3

    def values(self, images: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b n c"]:
        if self._mean.device != images.device:
            self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
        clips = images.float() * self._std.view(-1, 1, 1, 1) + self._mean.view(-1, 1, 1, 1)
        cubes = cut(clips, self.grid)
        if self.normalise:
            variance, mean = torch.var_mean(cubes, dim=2, keepdim=True)
            cubes = (cubes - mean) / (variance.sqrt() + 1e-6)  # epsilon outside the root, unlike MAE
        return cubes.flatten(2)

    def distance(self, prediction: Float[Tensor, "b r c"], values: Float[Tensor, "b r c"]) -> Float[Tensor, ""]:
        return mean_squared(prediction, values)


def cut(clips: Float[Tensor, "b ch t height width"], grid: TokenGrid) -> Float[Tensor, "b n p ch"]:
    """Pixels per token in the order (frame, row, column), and per channel."""
    b, channels, t, height, width = clips.shape
    parts = clips.reshape(b, channels, grid.t, t // grid.t, grid.h, height // grid.h, grid.w, width // grid.w)
    return parts.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(b, grid.count, -1, channels)


class TeacherFeatures(Target):
    """A frozen teacher's last block before its final norm, patch tokens only (MVD, Sec. 3.2).

    An image teacher sees the first frame of every tubelet; a video teacher sees the whole clip.
    """

    def __init__(
        self, teacher: Teacher, grid: TokenGrid, *, normalise: bool = False, loss: FeatureLoss = "smooth_l1"
    ) -> None:
        """
        Args:
            teacher: of images or of clips.
            grid: the student's tokens.
            normalise: LayerNorm without affine parameters on every target token.
            loss: smooth_l1 (beta 1), l1 or l2.

        Raises:
            UserError: when the teacher's tokens cannot be matched with the student's.
        """
        self.teacher, self.grid, self.normalise, self.loss = teacher, grid, normalise, loss
        self.sees_frames = teacher.backbone.grid.t == 1 and not hasattr(teacher.backbone, "tubelet")
        own = teacher.backbone.grid
        wanted = TokenGrid(1, grid.h, grid.w) if self.sees_frames else grid
        if own != wanted:
            raise UserError(
                f"The teacher must see the student's patches; {teacher.backbone.name} has {own} and the student {grid}",
                remedy=self._remedy(wanted),
            )

    def _remedy(self, wanted: TokenGrid) -> str:
        """What would make the teacher's grid the wanted one."""
        backbone, role = self.teacher.backbone, "image" if self.sees_frames else "video"
        own = backbone.grid
        if own.t != wanted.t:
            frames = backbone.input_shape[1] // own.t * wanted.t
            return f"Give both the same frames in the same tubelets, e.g. --{role}_teacher_args.frames {frames}"
        height, width = (
            side // cells * new
            for side, cells, new in zip(backbone.image_size, (own.h, own.w), (wanted.h, wanted.w), strict=True)
        )
        size = height if height == width else [height, width]
        return f"They match with --{role}_teacher_args.img_size {size}; frames are then resized for the teacher"

    @property
    def channels(self) -> int:
        return self.teacher.backbone.width

    @property
    def teachers(self) -> list[Teacher]:
        return [self.teacher]

    @property
    def _capture(self) -> Capture:
        return Capture(hidden=(self.teacher.backbone.depth - 1,), logits=False)

    def passes(self) -> list[Pass]:
        return [Pass(self.teacher.backbone, capture=self._capture, times=self.grid.t if self.sees_frames else 1)]

    def values(self, images: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b n c"]:
        seen = images
        if self.sees_frames and images.ndim == 5:
            step = images.shape[2] // self.grid.t
            seen = images[:, :, ::step].transpose(1, 2).flatten(0, 1)  # sent through as so many images
        elif images.ndim == 5 and images.shape[2] != self.teacher.backbone.input_shape[1]:
            raise UserError(
                "Student and video teacher must see the same frames in tubelets of the same length",
                f"clips of {images.shape[2]} frames, and {self.teacher.backbone.input_shape[1]} for the teacher",
                "Give both the same tubelet",
            )
        output = self.teacher(seen, capture=self._capture)
        features = output.hidden[self._capture.hidden[0]][:, self.teacher.backbone.prefix :].float()
        features = features.reshape(len(images), self.grid.count, -1)
        return F.layer_norm(features, features.shape[-1:], eps=1e-6) if self.normalise else features

    def distance(self, prediction: Float[Tensor, "b r c"], values: Float[Tensor, "b r c"]) -> Float[Tensor, ""]:
        losses = {"smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss, "l2": F.mse_loss}
        with torch.autocast(prediction.device.type, enabled=False):
            return losses[self.loss](prediction.float(), values)
