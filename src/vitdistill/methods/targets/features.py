"""Features of image and video teachers as targets (MVD): of masked features, and of per-token distillation."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.methods.method import Pass
from vitdistill.methods.targets.target import Target
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.families.video_vit import VideoViT
from vitdistill.models.teacher import Teacher
from vitdistill.types import Capture, TokenGrid

FeatureLoss = Literal["smooth_l1", "l1", "l2"]


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
        output = self.teacher(seen, capture=self._capture)
        features = output.hidden[self._capture.hidden[0]][:, self.teacher.backbone.prefix :].float()
        features = features.reshape(len(images), self.grid.count, -1)
        return F.layer_norm(features, features.shape[-1:], eps=1e-6) if self.normalise else features

    def distance(self, prediction: Float[Tensor, "b r c"], values: Float[Tensor, "b r c"]) -> Float[Tensor, ""]:
        losses = {"smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss, "l2": F.mse_loss}
        with torch.autocast(prediction.device.type, enabled=False):
            return losses[self.loss](prediction.float(), values)


def feature_targets(
    student: Backbone,
    *,
    image_teacher: Teacher | Backbone | nn.Module | None,
    video_teacher: Teacher | Backbone | nn.Module | None,
    image_weight: float = 1.0,
    video_weight: float = 1.0,
    normalise: bool = False,
    loss: FeatureLoss = "smooth_l1",
) -> dict[str, tuple[TeacherFeatures, float]]:
    """The features of an image teacher, a video teacher or both, by role and with their weights.

    Args:
        student: whose tokens are predicted.
        image_teacher: sees the first frame of each tubelet; None leaves it out.
        video_teacher: sees the whole clip; None leaves it out.
        image_weight: of the image teacher's loss.
        video_weight: of the video teacher's loss.
        normalise: see `TeacherFeatures`.
        loss: see `TeacherFeatures`.

    Raises:
        UserError: when a teacher is of the other kind, or its tokens cannot be matched with the student's.
    """
    roles = {"image": (image_teacher, image_weight), "video": (video_teacher, video_weight)}
    targets = {}
    for role, (teacher, weight) in roles.items():
        if teacher is not None:
            guest = _guest(teacher, student)
            check_kind(role, guest.backbone)
            targets[role] = TeacherFeatures(guest, student.grid, normalise=normalise, loss=loss), weight
            _check_frames(student, guest.backbone)
    return targets


def _guest(teacher: Teacher | Backbone | nn.Module, student: Backbone) -> Teacher:
    return teacher if isinstance(teacher, Teacher) else Teacher(build(teacher), mean=student.mean, std=student.std)


def check_kind(role: str, backbone: Backbone) -> None:
    """An image teacher sees images, a video teacher clips.

    Raises:
        UserError: when it is the other kind.
    """
    is_video = isinstance(backbone, VideoViT)
    if is_video != (role == "video"):
        other = "video" if is_video else "image"
        raise UserError(
            f"The {role} teacher must see {role}s; {backbone.name} sees {'clips' if is_video else 'images'}",
            remedy=f"Give it as the {other} teacher",
        )


def _check_frames(student: Backbone, teacher: Backbone) -> None:
    if isinstance(student, VideoViT) and isinstance(teacher, VideoViT) and student.frames != teacher.frames:
        raise UserError(
            "Student and video teacher must see the same frames in tubelets of the same length",
            f"clips of {student.frames} frames, and {teacher.frames} for the teacher",
            "Give both the same frames and the same tubelet",
        )
