"""TinyMIM (Ren et al., CVPR 2023): distil a masked-image-modelling ViT, without labels, into a smaller one.

One step: the teacher runs to one of its later blocks, the student to its last; the student learns to relate its
tokens to each other as the teacher does.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.data.images.jitter import color_jitter
from vitdistill.errors import UserError, near
from vitdistill.methods.imitation import ClassToken, Features, Imitation, Relations
from vitdistill.methods.mae import GOAL, Pixels, pixel_goal
from vitdistill.methods.masked_modelling import check_final_norm, freeze_head
from vitdistill.methods.method import Method, Pass
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.families.vit import ViT, is_plain
from vitdistill.models.surgery.attention_heads import head_count, set_heads
from vitdistill.models.surgery.drop_path import set_drop_path
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.gather import take
from vitdistill.tokens.masking import random_mask, visible_count
from vitdistill.types import Capture, StepOutput

TargetName = Literal["relations", "features", "cls"]
AlignHeads = Literal["last", "all", "none"]


@dataclass(frozen=True)
class PixelDecoder:
    """The MAE decoder of TinyMIM's variants with a pixel loss.

    Args:
        width: channels.
        depth: blocks.
        heads: attention heads of each block.
        norm_pix: predict each patch standardised by its own mean and deviation.
    """

    width: int = 512
    depth: int = 8
    heads: int = 16
    norm_pix: bool = True


class TinyMIM(Method):
    """Sum of KL(teacher's relation || student's relation) over Q-K and V-V, or another target of the paper's study."""

    def __init__(
        self,
        student: Backbone | nn.Module,
        teacher: Teacher | Backbone | nn.Module,
        *,
        target: TargetName = "relations",
        relations: tuple[str, ...] | list[str] = ("qk", "vv"),
        softmax: bool = True,
        feature: str = "output",
        residual: bool = False,
        teacher_block: int | None = None,
        align_heads: AlignHeads = "last",
        mask_ratio: float = 0.0,
        pixels: PixelDecoder | None = None,
        color_jitter: float = 0.4,
        teacher_drop_path: float = 0.0,
    ) -> None:
        """
        Args:
            student: the network to train. Parameters that the loss does not reach are frozen (for the default target
                all behind q, k and v of the last block); they enter fine-tuning as they are.
            teacher: the frozen network.
            target: relations of all tokens, features of all tokens, or the class token's feature.
            relations: any of qk, vv, qq, kk.
            softmax: relations as distributions; without, scores compared by smooth-L1.
            feature: output, attention, ffn, qkv, q, k or v, for the target features.
            residual: attention or ffn after they were added to the tokens.
            teacher_block: the teacher's block, from 1; None is 18 of 24, and else the last.
            align_heads: give the student's last block (or all blocks) as many heads as the teacher's block has; only
                relations need it.
            mask_ratio: share of the patches hidden from both networks, which then see the same others; 0 shows all.
            pixels: predict the hidden patches' pixels as well (MAE's loss).
            color_jitter: strength of the jitter that only the student's view gets in training, 0 to 1.
            teacher_drop_path: drop path of the teacher's blocks while training (an ablation).

        Raises:
            UserError: when the tokens, heads or blocks of the networks do not go together, or an option is unknown.
        """
        super().__init__(build(student))
        guest = teacher if isinstance(teacher, Teacher) else _guest(teacher, self.student)
        self._guest = (guest,)  # in a tuple, where nn.Module does not look for submodules
        check_pair(self.student, guest.backbone)
        self.student_block = self.student.depth - 1
        self.teacher_block = block_of(guest.backbone, teacher_block)
        self.imitation = _imitation(target, self.student, guest.backbone, tuple(relations), softmax, feature, residual)
        if target == "relations":
            _align(self.student, head_count(guest.backbone, self.teacher_block), align_heads)
        if not 0 <= color_jitter <= 1:
            raise UserError("color_jitter must lie in [0, 1]", color_jitter)
        self.color_jitter = color_jitter
        if teacher_drop_path:
            set_drop_path(guest.backbone, [teacher_drop_path] * guest.backbone.depth)
        self.visible = None if mask_ratio == 0 else visible_count(self.student.grid.count, mask_ratio)
        if pixels is not None and self.visible is None:
            raise UserError("The pixel loss predicts hidden patches, so some must be hidden", "mask_ratio 0")
        self._add_pixels(pixels)
        self._freeze_what_the_loss_does_not_reach()

    def _add_pixels(self, pixels: PixelDecoder | None) -> None:
        self.decoder: nn.Module | None = None
        self._pixels: Pixels | None = None
        if pixels is not None:
            check_final_norm(self.student)
            goal = pixel_goal(self.student, pixels.norm_pix, pixels.width, pixels.depth, pixels.heads)
            assert isinstance(goal.target, Pixels)
            self.decoder, self._pixels = goal.decoder, goal.target

    # --- the parts --------------------

    @property
    def teacher(self) -> Teacher:
        return self._guest[0]

    @property
    def teachers(self) -> list[Teacher]:
        return [self.teacher]

    def teacher_capture(self) -> Capture:
        return self.imitation.capture(self.teacher_block)

    def student_capture(self) -> Capture:
        """The student stops where the imitation looks, unless its tokens go on to a decoder."""
        capture = self.imitation.capture(self.student_block)
        return Capture(capture.qkv, capture.hidden, capture.parts, logits=self.decoder is not None)

    def kept_patches(self, progress: float) -> int | None:
        return self.visible

    def student_passes(self, progress: float) -> list[Pass]:
        return [Pass(self.student, self.visible, self.student_capture())]

    def _freeze_what_the_loss_does_not_reach(self) -> None:
        freeze_head(self.student)
        if self.decoder is not None:
            return
        net, last, capture = self.student.net, self.student.blocks[-1], self.student_capture()
        net.norm.requires_grad_(False)
        reached: tuple[str, ...] = ("",)
        if capture.qkv:  # the norm of q (or k) only where q (or k) is read; values have none
            reached = ("norm1.", "attn.qkv.", *(f"attn.{role}_norm." for role in self.imitation.roles))
        elif capture.parts and capture.parts[0][1] != "ffn":
            reached = ("norm1.", "attn.", "ls1.")
        for name, parameter in last.named_parameters():
            if not name.startswith(reached):
                parameter.requires_grad_(False)

    # --- one step --------------------

    def forward(
        self,
        images: Float[Tensor, "b ch height width"],
        targets: Int[Tensor, "b"] | Float[Tensor, "b c"] | None = None,
        progress: float = 0.0,
    ) -> StepOutput:
        kept = masked = None
        if self.visible is not None:
            kept, masked = random_mask(len(images), self.student.grid.count, self.visible, device=images.device)
        student = self.student(self._view(images), keep=kept, capture=self.student_capture())
        with self.clock("teacher"):
            self.teacher.drops_paths = self.training
            teacher = self.teacher(images, keep=kept, capture=self.teacher_capture())
        terms = self.imitation.terms(student, self.student_block, teacher, self.teacher_block)
        if self.decoder is not None and self._pixels is not None:
            assert student.tokens is not None and masked is not None
            predicted = self.decoder(student.tokens, kept, masked)
            terms[GOAL] = self._pixels.distance(predicted, take(self._pixels.values(images), masked))
        loss = torch.stack(list(terms.values())).sum()
        return StepOutput(loss=loss, terms={name: term.detach() for name, term in terms.items()}, kept=kept)

    def _view(self, images: Float[Tensor, "b ch height width"]) -> Float[Tensor, "b ch height width"]:
        """The student's view: the same crop with its colours jittered."""
        if not self.training or not self.color_jitter:
            return images
        mean, std = (
            torch.tensor(values, dtype=images.dtype).to(images.device, non_blocking=True).view(-1, 1, 1)
            for values in (self.student.mean, self.student.std)
        )
        return (color_jitter((images * std + mean).clamp(0, 1), self.color_jitter) - mean) / std


def _guest(teacher: Backbone | nn.Module, student: Backbone) -> Teacher:
    return Teacher(build(teacher), mean=student.mean, std=student.std)


def _imitation(
    target: str,
    student: Backbone,
    teacher: Backbone,
    relations: tuple[str, ...],
    softmax: bool,
    feature: str,
    residual: bool,
) -> Imitation:
    match target:
        case "relations":
            return Relations(relations, softmax)
        case "features":
            return Features(student.width, teacher.width, feature, residual)
        case "cls":
            if student.net.cls_token is None:
                raise UserError("The target cls needs a class token", student.name, "Use features or relations")
            return ClassToken(student.width, teacher.width)
    known = TargetName.__args__  # type: ignore[attr-defined]
    raise UserError(f"target must be one of {', '.join(known)}", repr(target), near(target, known))


def default_teacher_block(depth: int) -> int:
    """The paper's target block, from 1: 18 of ViT-L's 24, and the last of smaller teachers."""
    return 18 if depth == 24 else depth


def block_of(teacher: Backbone, block: int | None) -> int:
    """A teacher's block counted from 0, from the paper's count from 1.

    Raises:
        UserError: when there is no such block.
    """
    block = default_teacher_block(teacher.depth) if block is None else block
    if not 1 <= block <= teacher.depth:
        raise UserError(f"teacher_block must lie between 1 and {teacher.depth}, the depth of {teacher.name}", block)
    return block - 1


def check_pair(student: Backbone, teacher: Backbone) -> None:
    """Both networks are ViTs over the same tokens.

    Raises:
        UserError: with both grids, and the image sizes at which they would match.
    """
    if student.net is teacher.net:
        raise UserError("The teacher must be another network than the student", remedy="Give a copy of it")
    for role, backbone in (("student", student), ("teacher", teacher)):
        if not isinstance(backbone, ViT) or not all(
            is_plain(block) for block in (backbone.blocks[0], backbone.blocks[-1])
        ):
            raise UserError(f"TinyMIM's {role} must be a plain ViT or DeiT", backbone.name)
    if student.prefix != teacher.prefix:
        raise UserError(
            "Student and teacher must have as many prefix tokens (class, distillation, register); the student "
            f"{student.name} has {student.prefix} and the teacher {teacher.name} {teacher.prefix}",
            remedy="Choose networks of one kind",
        )
    if student.grid != teacher.grid:
        raise UserError(
            f"Student and teacher must see the same patches; the student {student.name} has {student.grid} at "
            f"{_pixels(student.image_size)} pixels and the teacher {teacher.name} {teacher.grid} at "
            f"{_pixels(teacher.image_size)}",
            remedy=f"They match at --image_size {_matching(student, teacher)} for the student, or at "
            f"--teacher_args.img_size {_matching(teacher, student)} for the teacher",
        )


def _matching(backbone: Backbone, other: Backbone) -> str:
    """The image size at which a backbone has the other's grid."""
    height = backbone.image_size[0] // backbone.grid.h * other.grid.h
    width = backbone.image_size[1] // backbone.grid.w * other.grid.w
    return str(height) if height == width else f"({height},{width})"


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _align(student: Backbone, heads: int, which: str) -> None:
    """Head alignment: relations are compared head by head.

    Raises:
        UserError: when the student's width cannot be split into the teacher's heads, or must not be.
    """
    blocks = {"last": [student.depth - 1], "all": list(range(student.depth)), "none": []}
    if which not in blocks:
        raise UserError(f"align_heads must be one of {', '.join(blocks)}", repr(which), near(which, blocks))
    set_heads(student, dict.fromkeys(blocks[which], heads))
    own = head_count(student, student.depth - 1)
    if own != heads:
        raise UserError(
            "The student's last block must have as many heads as the teacher's block",
            f"{own} and {heads}",
            "Use --align_heads last",
        )
