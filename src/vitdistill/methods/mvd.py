"""MVD (Wang et al., CVPR 2023): a masked video student predicts the features of an image and a video teacher.

Two targets with a decoder each are co-teaching: lambda_img * L_img + lambda_vid * L_vid (Eq. 3).
"""

from dataclasses import dataclass

from torch import nn

from vitdistill.errors import UserError
from vitdistill.methods.mae import pixel_goal
from vitdistill.methods.masked_modelling import Goal, MaskedModelling
from vitdistill.methods.targets.features import FeatureLoss, feature_targets
from vitdistill.methods.videomae import GOAL as PIXELS
from vitdistill.methods.videomae import cube_goal
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.decoder import Decoder
from vitdistill.models.ema import moving_average
from vitdistill.models.families.video_vit import VideoViT, check_video
from vitdistill.models.teacher import Teacher
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
        bootstrap: float | None = None,
        masking: Masking = Masking(0.9, "tube"),
        masks_per_clip: int = 1,
        decoder: FeatureDecoder = FeatureDecoder(),
    ) -> None:
        """
        Args:
            student: a video ViT; with an image teacher alone also a ViT over images (image masked feature modelling,
                Table 11).
            image_teacher: sees the first frame of each tubelet; None leaves its target out.
            video_teacher: sees the whole clip; None leaves its target out.
            image_weight: of the image teacher's loss.
            video_weight: of the video teacher's loss.
            normalise: LayerNorm without affine parameters on the targets (off in every released recipe).
            loss: smooth_l1 (beta 1), l1 or l2.
            pixel_weight: of an extra branch that predicts pixels (Table 8: hurts); 0 leaves it out.
            bootstrap: decay of a teacher that is a moving average of the student itself, in place of a frozen one
                (Table 9: worse); None for frozen teachers.
            masking: which tokens the student does not see.
            masks_per_clip: masks of each clip, which share its embedding and one pass of each teacher.
            decoder: of each target.

        Raises:
            UserError: when there is no teacher, a teacher is of the other kind, tokens cannot be matched, or the decay
                is not in (0, 1).
        """
        student = build(student)
        if video_teacher is not None or image_teacher is None:
            check_video(student, "student")
        own = None if bootstrap is None else moving_average(student, bootstrap)
        if own is not None and (image_teacher is not None or video_teacher is not None):
            raise UserError("A bootstrapped teacher is the student's own average, so no other may be given")
        video_teacher = video_teacher if own is None else Teacher(own.module)
        targets = feature_targets(
            student,
            image_teacher=image_teacher,
            video_teacher=video_teacher,
            image_weight=image_weight,
            video_weight=video_weight,
            normalise=normalise,
            loss=loss,
        )
        goals = {
            name: Goal(target, _decoder(student, target.channels, decoder), weight)
            for name, (target, weight) in targets.items()
        }
        if not goals:
            raise UserError(
                "MVD needs an image teacher, a video teacher, or both",
                remedy="Give one with --image_teacher or --video_teacher",
            )
        if pixel_weight:
            goals[PIXELS] = _pixel_goal(student, decoder, pixel_weight)
        super().__init__(student, goals, masking=masking, masks_per_clip=masks_per_clip)
        self.average = own  # part of the method's state, so that it is resumed

    def after_step(self, progress: float) -> None:
        if self.average is not None:
            self.average.update(self.student)


def _pixel_goal(student: Backbone, decoder: FeatureDecoder, weight: float) -> Goal:
    sizes = (decoder.width, decoder.depth, decoder.heads, decoder.mlp_ratio)
    if isinstance(student, VideoViT):
        return cube_goal(
            student, True, *sizes, weight=weight, positions="sincos_3d", embed_bias=True, drop_path=decoder.drop_path
        )
    return pixel_goal(student, True, *sizes, weight=weight, drop_path=decoder.drop_path)


def _decoder(student: Backbone, channels: int, options: FeatureDecoder) -> Decoder:
    clips = isinstance(student, VideoViT)
    return Decoder(
        student.grid,
        student.prefix,
        student.width,
        channels,
        width=options.width,
        depth=options.depth,
        heads=options.heads,
        mlp_ratio=options.mlp_ratio,
        positions="sincos_3d" if clips else "sincos_2d",
        key_bias=not clips,
        drop_path=options.drop_path,
    )
