"""Attention distillation (Wang et al., BMVC 2022): where the class token looks, and what it says in the end.

The supervised version in MaskedKD distils the attention of all blocks (its Sec. 5.2); see the module of the losses for
the steps.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.losses.attention import aggregate, attention_kl, class_log_attention, restrict, to_grid
from vitdistill.methods.terms.term import Term, check_class_token
from vitdistill.models.backbone import Backbone
from vitdistill.models.network import Network
from vitdistill.types import QKV, Capture, Output


class AttentionTerm(Term):
    """KL between the class tokens' attention rows, and the mean squared error between the final class tokens.

    With a masked teacher, the student's row is restricted to the class token and the patches that the teacher saw, and
    renormalised. Where grids differ, the whole teacher's row is moved to the student's grid, and the student's row to a
    masked teacher's, whose map has holes. Where head counts differ, the heads of both are aggregated into one row.

    Example:
        >>> term = AttentionTerm(student, teacher.backbone, student_blocks=(11,), teacher_blocks=(11,))
    """

    separable: ClassVar[bool] = True

    def __init__(
        self,
        student: Backbone,
        teacher: Backbone,
        *,
        student_blocks: Sequence[int],
        teacher_blocks: Sequence[int],
        weight: float = 0.1,
        cls_weight: float = 1.0,
        reduce: Literal["sum", "mean"] = "sum",
        temperature: float = 10.0,
    ) -> None:
        """
        Args:
            student: with a class token in the blocks compared.
            teacher: also with a class token there.
            student_blocks: blocks whose attention is compared, from 0.
            teacher_blocks: with which blocks of the teacher, one each.
            weight: of the attention.
            cls_weight: of the class token's final feature; 0 leaves it, and its projection, out.
            reduce: sum or mean over the blocks.
            temperature: of the aggregation of heads.

        Raises:
            UserError: when blocks do not pair up or do not exist, or have no class token.
        """
        super().__init__()
        if not student_blocks or len(student_blocks) != len(teacher_blocks):
            raise UserError(
                "attention needs as many blocks of the student as of the teacher, at least one",
                f"{list(student_blocks)} and {list(teacher_blocks)}",
            )
        if not temperature > 0:
            raise UserError("--terms.attention.temperature must be positive", temperature)
        self.pairs = [
            (student.block_index(own), teacher.block_index(other))
            for own, other in zip(student_blocks, teacher_blocks, strict=True)
        ]
        for network, blocks in ((student, student_blocks), (teacher, teacher_blocks)):
            check_class_token("attention compares what class tokens look at", network, blocks)
            if network.has_bias:
                raise UserError(
                    "attention compares the softmax of queries and keys, to which the network adds relative positions",
                    network.name,
                    "Choose a ViT or DeiT, or another term",
                )
        self.temperature, self.reduce = temperature, reduce
        self.weights = {"attention": weight}
        self.project: nn.Module | None = None
        self.of_teacher = Capture(frozenset((block, "qkv") for _, block in self.pairs), head=False)
        if cls_weight:
            self.of_teacher |= teacher.final_capture()
            self.weights["attention_cls"] = cls_weight
            self.last = student.depth - 1
            self.project = projector(student.width, teacher.width)

    def captures(self) -> tuple[Capture, Capture]:
        own = {(block, "qkv") for block, _ in self.pairs}
        if self.project is not None:
            own |= {(self.last, "output")}
        return Capture(frozenset(own), head=False), self.of_teacher  # type: ignore[arg-type]

    def reached(self, student: Network) -> set[nn.Parameter]:
        assert isinstance(student, Backbone)
        return student.reached(self.captures()[0], frozenset("qk"))

    def forward(self, student: Output, teacher: Output) -> dict[str, Float[Tensor, ""]]:
        kl = torch.stack([self._kl(student, own, teacher, other) for own, other in self.pairs])
        losses = {"attention": kl.sum() if self.reduce == "sum" else kl.mean()}
        if self.project is not None:
            assert teacher.final is not None
            own = self.project(student.tokens(self.last).special[:, 0])
            with torch.autocast(own.device.type, enabled=False):
                losses["attention_cls"] = F.mse_loss(own.float(), teacher.final.special[:, 0].detach().float())
        return losses

    def _kl(self, student: Output, own: int, teacher: Output, other: int) -> Float[Tensor, ""]:
        assert student.grid is not None and teacher.grid is not None
        mine, theirs = student.qkv(own), teacher.qkv(other)
        rows, targets = _rows(mine), _rows(theirs).detach()
        # Where special tokens are not the same ones, class tokens alone are compared.
        shared = mine.specials if mine.specials == theirs.specials else 1
        if teacher.kept is not None and student.kept is None:
            rows = to_grid(rows, student.grid, teacher.grid, special=mine.specials, mode="bilinear")
            rows = restrict(rows, teacher.kept, special=mine.specials, shared=shared)
            targets = restrict(targets, None, special=theirs.specials, shared=shared)
        else:
            targets = to_grid(targets, teacher.grid, student.grid, special=theirs.specials, mode="bicubic")
            rows = restrict(rows, None, special=mine.specials, shared=shared)
            kept = student.kept if teacher.kept is None else None
            targets = restrict(targets, kept, special=theirs.specials, shared=shared)
        if rows.shape[1] != targets.shape[1]:
            rows, targets = aggregate(rows, self.temperature), aggregate(targets, self.temperature)
        return attention_kl(rows, targets)


def projector(width: int, wanted: int) -> nn.Sequential:
    """From the student's class token to the teacher's: LayerNorm, four linear maps with GELU between, LayerNorm."""
    norm = partial(nn.LayerNorm, eps=1e-6)
    sizes = (width, 2 * width, width, 2 * width, wanted)
    layers: list[nn.Module] = [norm(width)]
    for number, (inside, outside) in enumerate(pairwise(sizes)):
        layers += [nn.GELU()] if number else []
        layers.append(nn.Linear(inside, outside))
    return nn.Sequential(*layers, norm(wanted))


def _rows(qkv: QKV) -> Float[Tensor, "b h m"]:
    return class_log_attention(qkv.q[:, :, 0], qkv.k)
