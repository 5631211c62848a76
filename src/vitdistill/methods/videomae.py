"""VideoMAE (Tong et al., NeurIPS 2022): masked modelling of a clip's own pixels under tube masks."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.methods.masked_modelling import Goal, MaskedModelling
from vitdistill.methods.targets.cubes import Cubes, cut, join, statistics
from vitdistill.models.decoder import Decoder
from vitdistill.models.families import as_network
from vitdistill.models.families.video_vit import VideoPositions, VideoViT, check_video
from vitdistill.models.network import Network
from vitdistill.tokens.gather import restore, take
from vitdistill.tokens.masking import Masking, MaskKind

GOAL = "pixels"


class VideoMAE(MaskedModelling):
    """Mean squared error between predicted and true cubes of pixels at the masked tokens."""

    def __init__(
        self,
        student: Network | nn.Module,
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
        encoder = check_video(as_network(student), "student")
        sizes = (decoder_width, decoder_depth, decoder_heads, decoder_mlp_ratio)
        goal = cube_goal(encoder, norm_pix, *sizes, positions=positions, drop_path=drop_path)
        super().__init__(encoder, {GOAL: goal}, masking=Masking(mask_ratio, mask), masks_per_clip=masks_per_clip)

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
        tokens = self.student(clips, keep=kept).final
        assert tokens is not None
        predicted = self.decoders[GOAL](tokens.all, kept, masked).to(everything.dtype)
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
    spec = student.input
    assert spec.patch is not None
    target = Cubes(grid, spec.patch, spec.mean, spec.std, normalise=norm_pix)
    decoder = Decoder(
        grid,
        student.final_specials,
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
