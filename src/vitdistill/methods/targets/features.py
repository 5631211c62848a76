"""Features of image and video teachers as targets (MVD)."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.losses.features import FeatureLoss, feature_distance
from vitdistill.methods.method import Pass
from vitdistill.methods.targets.target import Target
from vitdistill.models.backbone import Backbone
from vitdistill.models.network import Network
from vitdistill.models.teacher import FrameTeacher, Teacher
from vitdistill.types import Capture, TokenGrid


class TeacherFeatures(Target):
    """A frozen teacher's last block before its final norm, patch tokens only (MVD, Sec. 3.2)."""

    def __init__(self, teacher: Teacher, *, normalise: bool = False, loss: FeatureLoss = "smooth_l1") -> None:
        """
        Args:
            teacher: over the student's patches, see `matched_teacher`.
            normalise: LayerNorm without affine parameters on every target token.
            loss: smooth_l1 (beta 1), l1 or l2.
        """
        self.teacher, self.normalise, self.loss = teacher, normalise, loss
        self.block = teacher.backbone.depth - 1
        self._capture = Capture.at(self.block, "output", head=False)

    @property
    def channels(self) -> int:
        return self.teacher.backbone.width

    @property
    def teachers(self) -> list[Teacher]:
        return [self.teacher]

    def passes(self, visible: int, masks: int = 1) -> list[Pass]:
        return [Pass("teacher", self.teacher.network, capture=self._capture, times=self.teacher.passes)]

    def values(
        self, inputs: Float[Tensor, "b ch *pixels"], kept: Int[Tensor, "bm k"], masked: Int[Tensor, "bm r"]
    ) -> Float[Tensor, "b n c"]:
        features = self.teacher(inputs, capture=self._capture).tokens(self.block).patches.float()
        return F.layer_norm(features, features.shape[-1:], eps=1e-6) if self.normalise else features

    def distance(self, prediction: Float[Tensor, "b r c"], values: Float[Tensor, "b r c"]) -> Float[Tensor, ""]:
        return feature_distance(prediction, values, loss=self.loss, normalise=False)


def matched_teacher(role: str, teacher: Teacher | Network | nn.Module, student: Backbone) -> Teacher:
    """A teacher whose patches are the student's: an image teacher sees the first frame of every tubelet.

    Args:
        role: image or video.
        teacher: the network.
        student: whose tokens are predicted.

    Raises:
        UserError: when it is of the other kind, hands out no block outputs, or its patches are not the student's.
    """
    guide = Teacher.of(teacher, student)
    check_kind(role, guide.network)
    if not guide.network.maskable:
        raise UserError(
            f"The {role} teacher must hand out the outputs of its blocks",
            guide.network.name,
            "Choose a ViT, DeiT or CaiT",
        )
    backbone = guide.backbone
    frames = role == "image" and student.input.frames is not None
    wanted = TokenGrid(1, student.grid.h, student.grid.w) if frames else student.grid
    if backbone.grid != wanted:
        raise UserError(
            f"The teacher must see the student's patches; {backbone.name} has {backbone.grid} and the student "
            f"{student.grid}",
            remedy=_remedy(role, backbone, wanted),
        )
    if student.input.frames is not None and backbone.input.frames not in (None, student.input.frames):
        raise UserError(
            "Student and video teacher must see the same frames in tubelets of the same length",
            f"clips of {student.input.frames} frames, and {backbone.input.frames} for the teacher",
            "Give both the same frames and the same tubelet",
        )
    return FrameTeacher.over(guide, student.grid.t) if frames else guide


def _remedy(role: str, backbone: Backbone, wanted: TokenGrid) -> str:
    """What would make the teacher's grid the wanted one."""
    own = backbone.grid
    if own.t != wanted.t:
        frames = (backbone.input.frames or 1) // own.t * wanted.t
        return f"Give both the same frames in the same tubelets, e.g. --{role}_teacher_args.frames {frames}"
    height, width = (
        side // cells * new
        for side, cells, new in zip(backbone.input.size, (own.h, own.w), (wanted.h, wanted.w), strict=True)
    )
    size = height if height == width else [height, width]
    return f"They match with --{role}_teacher_args.img_size {size}; frames are then resized for the teacher"


def check_kind(role: str, network: Network) -> None:
    """An image teacher sees images, a video teacher clips.

    Raises:
        UserError: when it is the other kind.
    """
    is_video = network.input.frames is not None
    if is_video != (role == "video"):
        other = "video" if is_video else "image"
        raise UserError(
            f"The {role} teacher must see {role}s; {network.name} sees {'clips' if is_video else 'images'}",
            remedy=f"Give it as the {other} teacher",
        )
