"""VideoMAE (Tong et al., NeurIPS 2022): masked modelling of a clip's own pixels under tube masks."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.losses.features import mean_squared
from vitdistill.methods.masked_modelling import Goal, MaskedModelling
from vitdistill.methods.targets.target import Target
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.decoder import Decoder
from vitdistill.models.families.video_vit import VideoPositions, VideoViT, check_video
from vitdistill.tokens.gather import restore, take
from vitdistill.tokens.masking import Masking, MaskKind
from vitdistill.types import TokenGrid

GOAL = "pixels"


class VideoMAE(MaskedModelling):
    """Mean squared error between predicted and true cubes of pixels at the masked tokens."""

    def __init__(
        self,
        student: Backbone | nn.Module,
        *,
        mask_ratio: float = 0.9,
        mask: MaskKind = "tube",
        masks_per_clip: int = 1,
        norm_pix: bool = True,
        decoder_width: int = 384,
        decoder_depth: int = 4,
        decoder_heads: int = 6,
        decoder_mlp_ratio: float = 4.0,
        positions: VideoPositions = "sinusoid_1d",
        drop_path: float = 0.0,
    ) -> None:
        """
        Args:
            student: the encoder, a video ViT.
            mask_ratio: share of the tokens that the encoder does not see.
            mask: tube hides the same patches in every time step, random any tokens, frame whole time steps.
            masks_per_clip: masks of each clip in a step, which share its decoding and embedding.
            norm_pix: predict each channel of each tubelet standardised by its own mean and deviation.
            decoder_width: channels of the decoder (S 192, B 384, L 512, H 640).
            decoder_depth: blocks of the decoder (S 3, B 4, L and H 12).
            decoder_heads: attention heads of the decoder (S 3, B 6, L and H 8).
            decoder_mlp_ratio: hidden channels of the decoder's MLPs, as a multiple of its width.
            positions: fixed table of encoder and decoder: VideoMAE's over all tokens in one row, or one of space and
                time, with which small networks learn sooner; a loaded student keeps its own.
            drop_path: stochastic depth rate of the decoder's last block.

        Raises:
            UserError: when the student is no video ViT, or sizes and ratio are impossible.
        """
        student = check_video(build(student), "student")
        sizes = (decoder_width, decoder_depth, decoder_heads, decoder_mlp_ratio)
        goal = cube_goal(student, norm_pix, *sizes, positions=positions, drop_path=drop_path)
        super().__init__(student, {GOAL: goal}, masking=Masking(mask_ratio, mask), masks_per_clip=masks_per_clip)

    def reconstruct(
        self,
        clips: Float[Tensor, "b ch t height width"],
        kept: Int[Tensor, "b k"],
        masked: Int[Tensor, "b r"],
    ) -> Float[Tensor, "b ch t height width"]:
        """The clips with their masked tubelets predicted, normalised as they came.

        Under `norm_pix` each predicted tubelet is given the true one's mean and deviation per channel, which the method
        does not predict (as in VideoMAE's own pictures).

        Args:
            clips: normalised with the student's statistics.
            kept: tokens that the encoder sees.
            masked: the others.
        """
        target, grid = self.targets[GOAL], self.student.grid
        assert isinstance(target, Cubes)
        cubes = cut(target.pixels(clips), grid)
        everything = cubes.flatten(2)
        predicted = self.decoders[GOAL](self.student(clips, keep=kept).tokens, kept, masked).to(everything.dtype)
        if target.normalise:
            mean, deviation = statistics(take(everything, masked).unflatten(2, cubes.shape[2:]))
            predicted = (predicted.unflatten(2, cubes.shape[2:]) * deviation + mean).flatten(2)
        whole = join(restore(predicted, masked, everything), grid, clips.shape)
        return target.normalised(whole)


def cube_goal(
    student: VideoViT,
    norm_pix: bool,
    width: int,
    depth: int,
    heads: int,
    mlp_ratio: float = 4.0,
    *,
    weight: float = 1.0,
    positions: VideoPositions = "sinusoid_1d",
    embed_bias: bool = False,
    drop_path: float = 0.0,
) -> Goal:
    """Pixels of the student's tubelets with VideoMAE's decoder, or with another's positions and embedding."""
    grid = student.grid
    cube = (student.tubelet, student.image_size[0] // grid.h, student.image_size[1] // grid.w)
    target = Cubes(grid, cube, student.mean, student.std, normalise=norm_pix)
    decoder = Decoder(
        grid,
        student.prefix,
        student.width,
        target.channels,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp_ratio,
        positions=positions,
        embed_bias=embed_bias,
        key_bias=False,
        drop_path=drop_path,
    )
    return Goal(target, decoder, weight)


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
        cubes = cut(self.pixels(images), self.grid)
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
