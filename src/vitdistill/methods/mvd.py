"""MVD (Wang et al., CVPR 2023): a masked video student predicts the features of an image and a video teacher.

Two targets with a decoder each are co-teaching: lambda_img * L_img + lambda_vid * L_vid (Eq. 3).
"""

from dataclasses import dataclass

from torch import nn

from vitdistill.errors import UserError
from vitdistill.methods.masked_modelling import Goal, MaskedModelling
from vitdistill.methods.teacher import Teacher
from vitdistill.methods.video_targets import FeatureLoss, TeacherFeatures
from vitdistill.methods.videomae import GOAL as PIXELS
from vitdistill.methods.videomae import cube_goal
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.decoder import Decoder
from vitdistill.models.video_vit import VideoViT, check_video
from vitdistill.tokens.masking import Masking


@dataclass(frozen=True)
class FeatureDecoder:
    """The decoder of each feature target (blocks x width: S 2 x 384, B 2 x 768, L 4 x 512, H 8 x 640).

    Args:
        width: channels.
        depth: blocks.
        heads: attention heads of each block.
        mlp_ratio: hidden channels of the MLPs, as a multiple of the width.
        drop_path: stochastic depth rate of the last block, rising from 0.
    """

    width: int = 384
    depth: int = 2
    heads: int = 6
    mlp_ratio: float = 4.0
    drop_path: float = 0.1


class MVD(MaskedModelling):
    """Smooth-L1 between predicted and true features of one or two teachers at the masked tokens."""

    def __init__(
        self,
        student: Backbone | nn.Module,
        *,
        image_teacher: Teacher | Backbone | nn.Module | None = None,
        video_teacher: Teacher | Backbone | nn.Module | None = None,
        image_weight: float = 1.0,
        video_weight: float = 1.0,
        normalise: bool = False,
        loss: FeatureLoss = "smooth_l1",
        pixel_weight: float = 0.0,
        masking: Masking = Masking(0.9, "tube"),
        masks_per_clip: int = 1,
        decoder: FeatureDecoder = FeatureDecoder(),
    ) -> None:
        """
        Args:
            student: a video ViT.
            image_teacher: sees the first frame of each tubelet; None leaves its target out.
            video_teacher: sees the whole clip; None leaves its target out.
            image_weight: of the image teacher's loss.
            video_weight: of the video teacher's loss.
            normalise: LayerNorm without affine parameters on the targets (off in every released recipe).
            loss: smooth_l1 (beta 1), l1 or l2.
            pixel_weight: of an extra branch that predicts pixels (Table 8: hurts); 0 leaves it out.
            masking: which tokens the student does not see.
            masks_per_clip: masks of each clip, which share its embedding and one pass of each teacher.
            decoder: of each target.

        Raises:
            UserError: when there is no teacher, a teacher is of the other kind, or tokens cannot be matched.
        """
        student = check_video(build(student), "student")
        goals = {}
        for name, teacher, weight in (
            ("image", image_teacher, image_weight),
            ("video", video_teacher, video_weight),
        ):
            if teacher is not None:
                guest = _guest(teacher, student)
                _check_kind(name, guest.backbone)
                target = TeacherFeatures(guest, student.grid, normalise=normalise, loss=loss)
                goals[name] = Goal(target, _decoder(student, target.channels, decoder), weight)
        if not goals:
            raise UserError("MVD needs an image teacher, a video teacher, or both")
        if pixel_weight:
            goals[PIXELS] = cube_goal(
                student, True, decoder.width, decoder.depth, decoder.heads, decoder.mlp_ratio, weight=pixel_weight
            )
        super().__init__(student, goals, masking=masking, masks_per_clip=masks_per_clip)


def _guest(teacher: Teacher | Backbone | nn.Module, student: Backbone) -> Teacher:
    return teacher if isinstance(teacher, Teacher) else Teacher(build(teacher), mean=student.mean, std=student.std)


def _check_kind(role: str, backbone: Backbone) -> None:
    is_video = isinstance(backbone, VideoViT)
    if is_video != (role == "video"):
        other = "video" if is_video else "image"
        raise UserError(
            f"The {role} teacher must see {role}s; {backbone.name} sees {'clips' if is_video else 'images'}",
            remedy=f"Give it as the {other} teacher",
        )


def _decoder(student: VideoViT, channels: int, options: FeatureDecoder) -> Decoder:
    return Decoder(
        student.grid,
        student.prefix,
        student.width,
        channels,
        width=options.width,
        depth=options.depth,
        heads=options.heads,
        mlp_ratio=options.mlp_ratio,
        positions="sincos_3d",
        key_bias=False,
        drop_path=options.drop_path,
    )
