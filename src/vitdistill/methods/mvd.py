"""MVD (Wang et al., CVPR 2023): a masked video student predicts the features of an image and a video teacher.

Two targets with a decoder each are co-teaching: lambda_img * L_img + lambda_vid * L_vid (Eq. 3).
"""

from torch import nn

from vitdistill.errors import UserError
from vitdistill.losses.features import FeatureLoss
from vitdistill.methods.distillation import Distillation, Lesson
from vitdistill.methods.mae import pixel_goal
from vitdistill.methods.masked_modelling import Goal, MaskedModelling, check_final_norm
from vitdistill.methods.options import FeatureDecoder
from vitdistill.methods.targets.features import TeacherFeatures, matched_teacher
from vitdistill.methods.terms.per_token import PerToken
from vitdistill.methods.videomae import GOAL as PIXELS
from vitdistill.methods.videomae import cube_goal
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.decoder import Decoder
from vitdistill.models.ema import moving_average
from vitdistill.models.families import as_network
from vitdistill.models.families.video_vit import VideoViT, check_video
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.masking import Masking, MaskKind


class MVD(MaskedModelling):
    """Smooth-L1 between predicted and true features of one or two teachers at the masked tokens.

    Example:
        >>> method = MVD(student, image_teacher=mae_vit, video_teacher=videomae_vit, masks_per_clip=2)
        >>> method(clips).loss.backward()
    """

    def __init__(
        self,
        student: Network | nn.Module,
        *,
        image_teacher: Teacher | Network | nn.Module | None = None,
        video_teacher: Teacher | Network | nn.Module | None = None,
        image_weight: float = 1.0,
        video_weight: float = 1.0,
        normalise: bool = False,
        loss: FeatureLoss = "smooth_l1",
        pixel_weight: float = 0.0,
        bootstrap: float | None = None,
        mask_ratio: float = 0.9,
        mask: MaskKind = "tube",
        masks_per_clip: int = 1,
        decoder: FeatureDecoder = FeatureDecoder(),
    ) -> None:
        """
        Args:
            student: a video ViT; with an image teacher alone also a ViT over images (image masked feature modelling,
                Table 11).
            image_teacher: sees the first frame of each tubelet; None leaves its target out.
            video_teacher: sees the whole clip; None leaves its target out.
            image_weight: weight of the image teacher's loss.
            video_weight: weight of the video teacher's loss.
            normalise: LayerNorm on the targets (off in every released recipe).
            loss: smooth_l1, l1 or l2.
            pixel_weight: weight of an extra branch that predicts pixels (the paper finds that it hurts); 0 leaves it
                out.
            bootstrap: decay of a teacher that is the student's own moving average, in place of frozen ones (the paper
                finds that worse).
            mask_ratio: share of the tokens that the student does not see.
            mask: tube hides the same patches in every time step, random any tokens, frame whole time steps.
            masks_per_clip: masks of each clip in a step, which share its decoding, embedding and the teachers' passes.
            decoder: the decoder of each target.

        Raises:
            UserError: when there is no teacher, a teacher is of the other kind, tokens cannot be matched, or the decay
                is not in (0, 1).
        """
        network = with_tokens(as_network(student))
        if video_teacher is not None or image_teacher is None:
            check_video(network, "student")
        own = None if bootstrap is None else moving_average(network, bootstrap)
        if own is not None and (image_teacher is not None or video_teacher is not None):
            raise UserError("A bootstrapped teacher is the student's own average, so no other may be given")
        video = video_teacher if own is None else Teacher(own.module)
        goals = {}
        for role, teacher, weight in (
            ("image", image_teacher, image_weight),
            ("video", video, video_weight),
        ):
            if teacher is not None:
                target = TeacherFeatures(matched_teacher(role, teacher, network), normalise=normalise, loss=loss)
                goals[role] = Goal(target, _decoder(network, target.channels, decoder), weight)
        if not goals:
            raise UserError(
                "MVD needs an image teacher, a video teacher, or both",
                remedy="Give one with --image_teacher or --video_teacher",
            )
        if pixel_weight:
            goals[PIXELS] = _pixel_goal(network, decoder, pixel_weight)
        super().__init__(network, goals, masking=Masking(mask_ratio, mask), masks_per_clip=masks_per_clip)
        self.average = own  # part of the method's state, so that it is resumed

    def after_step(self, progress: float) -> None:
        if self.average is not None:
            self.average.update(self.student)


def per_token_distillation(
    student: Network | nn.Module,
    *,
    image_teacher: Teacher | Network | nn.Module | None = None,
    video_teacher: Teacher | Network | nn.Module | None = None,
    image_weight: float = 1.0,
    video_weight: float = 1.0,
    normalise: bool = False,
    loss: FeatureLoss = "smooth_l1",
) -> Distillation:
    """Per-token feature distillation, with which MVD compares masked feature modelling (Table 10: worse).

    The student sees everything and predicts the teachers' features at every token. Arguments as of `MVD`.

    Raises:
        UserError: when there is no teacher, a teacher is of the other kind, or tokens cannot be matched.
    """
    network = with_tokens(as_network(student))
    check_final_norm(network)
    lessons = []
    for role, teacher, weight in (("image", image_teacher, image_weight), ("video", video_teacher, video_weight)):
        if teacher is not None:
            guide = matched_teacher(role, teacher, network)
            term = PerToken(network, guide, name=role, weight=weight, normalise=normalise, loss=loss)
            lessons.append(Lesson(guide, [term]))
    if not lessons:
        raise UserError(
            "Per-token distillation needs an image teacher, a video teacher, or both",
            remedy="Give one with --image_teacher or --video_teacher",
        )
    method = Distillation(network, lessons)
    method.freeze_unreached()
    return method


def _pixel_goal(student: Backbone, decoder: FeatureDecoder, weight: float) -> Goal:
    sizes = (decoder.width, decoder.depth, decoder.heads, decoder.mlp_ratio)
    if isinstance(student, VideoViT):
        return cube_goal(
            student, True, *sizes, weight=weight, positions="sincos_3d", embed_bias=True, drop_path=decoder.drop_path
        )
    return pixel_goal(student, True, *sizes, weight=weight, drop_path=decoder.drop_path)


def _decoder(student: Backbone, channels: int, options: FeatureDecoder) -> Decoder:
    clips = student.input.frames is not None
    return Decoder(
        student.grid,
        student.final_specials,
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
