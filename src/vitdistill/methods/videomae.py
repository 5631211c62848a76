"""VideoMAE (Tong et al., NeurIPS 2022): masked modelling of a clip's own pixels under tube masks."""

from torch import nn

from vitdistill.methods.masked_modelling import Goal, MaskedModelling
from vitdistill.methods.video_targets import Cubes
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.decoder import Decoder
from vitdistill.models.video_vit import VideoPositions, VideoViT, check_video
from vitdistill.tokens.masking import Masking

GOAL = "pixels"


class VideoMAE(MaskedModelling):
    """Mean squared error between predicted and true cubes of pixels at the masked tokens."""

    def __init__(
        self,
        student: Backbone | nn.Module,
        *,
        masking: Masking = Masking(0.9, "tube"),
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
            masking: which tokens it does not see.
            masks_per_clip: masks of each clip, which share its embedding.
            norm_pix: predict each channel of each cube standardised by its own mean and deviation.
            decoder_width: channels of the decoder (S 192, B 384, L 512, H 640).
            decoder_depth: its blocks (S 3, B 4, L and H 12).
            decoder_heads: its attention heads (S 3, B 6, L and H 8).
            decoder_mlp_ratio: hidden channels of its MLPs, as a multiple of its width.
            positions: the decoder's fixed table, sinusoid_1d (VideoMAE's, over all tokens in one row) or sincos_3d.
            drop_path: stochastic depth of the decoder.

        Raises:
            UserError: when the student is no video ViT, or sizes and ratio are impossible.
        """
        student = check_video(build(student), "student")
        sizes = (decoder_width, decoder_depth, decoder_heads, decoder_mlp_ratio)
        goal = cube_goal(student, norm_pix, *sizes, positions=positions, drop_path=drop_path)
        super().__init__(student, {GOAL: goal}, masking=masking, masks_per_clip=masks_per_clip)


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
    drop_path: float = 0.0,
) -> Goal:
    """Pixels of the student's tubelets with VideoMAE's decoder."""
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
        embed_bias=False,
        key_bias=False,
        drop_path=drop_path,
    )
    return Goal(target, decoder, weight)
