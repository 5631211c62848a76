"""TinyMIM (Ren et al., CVPR 2023): distil a masked-image-modelling ViT, without labels, into a smaller one.

One step: the teacher runs to one of its later blocks, the student to its last; the student learns to relate its
tokens to each other as the teacher does.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.errors import UserError, near
from vitdistill.methods.distillation import Distillation, Lesson
from vitdistill.methods.jitter import color_jitter as jittered
from vitdistill.methods.mae import GOAL, pixel_goal
from vitdistill.methods.masked_modelling import check_final_norm
from vitdistill.methods.options import PixelDecoder
from vitdistill.methods.options import Relations as RelationNames
from vitdistill.methods.selection.selector import SameMask
from vitdistill.methods.terms.features import ClassToken, Feature, Features
from vitdistill.methods.terms.relations import Relations
from vitdistill.methods.terms.term import Term, shared_special
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.families import as_network
from vitdistill.models.families.vit import ViT
from vitdistill.models.network import Network, check_names_inputs
from vitdistill.models.surgery.attention_heads import head_count, set_heads
from vitdistill.models.surgery.drop_path import drop_path_rates, set_drop_path
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.gather import complement, take
from vitdistill.tokens.masking import Masking
from vitdistill.types import NOTHING, Capture, Output, Step

TargetName = Literal["relations", "features", "cls"]
AlignHeads = Literal["last", "all", "none"]


class TinyMIM(Distillation):
    """Sum of KL(teacher's relation || student's relation) over Q-K and V-V, or another target of the paper's study.

    Parameters of the student that the loss does not reach are frozen (for the default target all behind q, k and v of
    the last block); they enter fine-tuning as they are.

    Example:
        >>> method = TinyMIM(student, mae_vit_large)
        >>> method(images).loss.backward()
    """

    student: Backbone

    def __init__(
        self,
        student: Network | nn.Module,
        teacher: Teacher | Network | nn.Module,
        *,
        target: TargetName = "relations",
        relations: RelationNames = "qk+vv",
        softmax: bool = True,
        feature: Feature = "output",
        residual: bool = False,
        teacher_block: int | None = None,
        align_heads: AlignHeads = "last",
        mask_ratio: float = 0.0,
        pixels: bool = False,
        pixel_decoder: PixelDecoder = PixelDecoder(),
        color_jitter: float = 0.4,
        teacher_drop_path: float = 0.0,
    ) -> None:
        """
        Args:
            student: the network to train.
            teacher: the frozen network.
            target: what to imitate of the teacher's block: relations between tokens, features of tokens, or the feature
                of the class token.
            relations: some of qk, vv, qq, kk, joined by +.
            softmax: compare relations as distributions by KL; false compares the scores before the softmax by
                smooth-L1.
            feature: output of the block, what attention or ffn add to it, qkv (all three), q, k or v.
            residual: for attention and ffn, the tokens after the branch was added to them.
            teacher_block: the teacher's block, counted from 1; by default 18 of 24, and the last of smaller teachers.
            align_heads: give the student's last block as many heads as the teacher's block has, or all its blocks; only
                relations need it.
            mask_ratio: share of the patches hidden from teacher and student alike; 0 shows the whole image.
            pixels: predict the pixels of hidden patches as well (needs a mask ratio).
            pixel_decoder: the decoder for that.
            color_jitter: strength of the colour jitter of the student's view in training, 0 to 1; the teacher sees the
                crop as it is.
            teacher_drop_path: stochastic depth rate of the teacher's blocks (the paper finds that it hurts).

        Raises:
            UserError: when the tokens, heads or blocks of the networks do not go together, or an option is unknown.
        """
        network = as_network(student)
        guide = Teacher.of(teacher, network)
        check_pair(network, guide.network)
        own, other = with_tokens(network), guide.backbone
        blocks = own.depth - 1, block_of(other, teacher_block)
        term = _term(target, own, other, blocks, relations, softmax, feature, residual)
        if target == "relations":
            _align(own, head_count(other, blocks[1]), align_heads)
        if not 0 <= color_jitter <= 1:
            raise UserError("color_jitter must lie in [0, 1]", color_jitter)
        if color_jitter and own.channels not in (1, 3):
            raise UserError(
                "Colours can be jittered of grey and RGB images", f"{own.channels} channels", "Set color_jitter to 0"
            )
        if teacher_drop_path:
            set_drop_path(other, [teacher_drop_path] * len(drop_path_rates(other)))
        if pixels and mask_ratio == 0:
            raise UserError("The pixel loss predicts hidden patches, so some must be hidden", "mask_ratio 0")
        selector = None if mask_ratio == 0 else SameMask(Masking(mask_ratio))
        if selector is not None:
            selector.masking.visible(own.grid)  # refuses impossible ratios
        super().__init__(own, [Lesson(guide, [term])], selector=selector)
        self._blocks = blocks
        self.color_jitter, self.teacher_drop_path = color_jitter, teacher_drop_path
        self.decoder: nn.Module | None = None
        if pixels:
            check_final_norm(own)
            options = pixel_decoder
            self.decoder_goal = pixel_goal(own, options.norm_pix, options.width, options.depth, options.heads)
            self.decoder = self.decoder_goal.decoder
        self.freeze_unreached()

    @property
    def teacher(self) -> Teacher:
        return self.lessons[0].teacher

    @property
    def blocks(self) -> tuple[int, int]:
        """The student's and the teacher's block that are compared, from 0."""
        return self._blocks

    def forward(
        self, inputs: Float[Tensor, "b ch *pixels"], targets: Tensor | None = None, progress: float = 0.0
    ) -> Step:
        # Here, and not in `train`: whoever restores modes need not call it.
        self.teacher.drops_paths = self.training and self.teacher_drop_path > 0
        return super().forward(inputs, targets, progress)

    def student_capture(self, progress: float) -> Capture:
        """The student stops where the term looks, unless its tokens go on to a decoder."""
        capture = super().student_capture(progress)
        return capture | NOTHING if self.decoder is not None else capture

    def reached(self) -> set[nn.Parameter]:
        behind = set() if self.decoder is None else self.student.reached(NOTHING, prediction=False)
        return super().reached() | behind

    def view(self, inputs: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b ch *pixels"]:
        """The student's view: the same crop with its colours jittered, all frames of a clip alike."""
        if not self.training or not self.color_jitter:
            return inputs
        spec = self.student.input
        mean, std = (
            torch.tensor(values, dtype=inputs.dtype).to(inputs.device, non_blocking=True).view(-1, 1, 1)
            for values in (spec.mean, spec.std)
        )
        # Frames below one another are one tall image.
        colours = (inputs.flatten(2, -2) * std + mean).clamp(0, 1)
        if len(spec.mean) == 1:  # jittered as the colours that a grey image has
            return ((jittered(colours.expand(-1, 3, -1, -1), self.color_jitter)[:, :1] - mean) / std).reshape(
                inputs.shape
            )
        return ((jittered(colours, self.color_jitter) - mean) / std).reshape(inputs.shape)

    def own_losses(
        self, inputs: Float[Tensor, "b ch *pixels"], student: Output, targets: Tensor | None
    ) -> dict[str, Float[Tensor, ""]]:
        """The hidden patches' pixels, where they are predicted."""
        if self.decoder is None:
            return {}
        assert student.final is not None and student.kept is not None
        masked = complement(student.kept, self.student.grid.count)
        target = self.decoder_goal.target
        predicted = self.decoder(student.final.all, student.kept, masked)
        return {GOAL: target.distance(predicted, take(target.values(inputs, student.kept, masked), masked))}


def _term(
    target: str,
    student: Backbone,
    teacher: Backbone,
    blocks: tuple[int, int],
    relations: str | Sequence[str],
    softmax: bool,
    feature: str,
    residual: bool,
) -> Term:
    match target:
        case "relations":
            return Relations(*blocks, relations=relations, softmax=softmax, shared=shared_special(student, teacher))
        case "features":
            return Features(student, teacher, *blocks, feature=feature, residual=residual)
        case "cls":
            if student.net.cls_token is None:
                raise UserError("The target cls needs a class token", student.name, "Use features or relations")
            return ClassToken(student, teacher, *blocks)
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


def check_pair(student: Network, teacher: Network) -> None:
    """Both networks are ViTs over the same patches.

    Raises:
        UserError: with both grids, and the image sizes at which they would match.
    """
    for role, network in (("student", student), ("teacher", teacher)):
        rule = f"TinyMIM's {role} must be a plain ViT or DeiT"
        check_names_inputs(network, rule)
        if not isinstance(network, ViT) or not all(
            network.is_known(block) for block in (network.blocks[0], network.blocks[-1])
        ):
            raise UserError(rule, network.name)
    assert isinstance(student, ViT) and isinstance(teacher, ViT)
    if student.grid != teacher.grid:
        raise UserError(
            f"Student and teacher must see the same patches; the student {student.name} has {student.grid} at "
            f"{_pixels(student.input.size)} pixels and the teacher {teacher.name} {teacher.grid} at "
            f"{_pixels(teacher.input.size)}",
            remedy=f"They match at --student_args.img_size {_matching(student, teacher)}, or at "
            f"--teacher_args.img_size {_matching(teacher, student)}",
        )


def _matching(backbone: Backbone, other: Backbone) -> str:
    """The image size at which a backbone has the other's grid."""
    height, width = (
        side // own * new
        for side, own, new in zip(
            backbone.input.size,
            (backbone.grid.h, backbone.grid.w),
            (other.grid.h, other.grid.w),
            strict=True,
        )
    )
    return str(height) if height == width else f"[{height},{width}]"


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
