"""What a TinyMIM student imitates of a teacher's block: token relations, token features, or the class token.

Each says what must be captured of both networks and how far apart the two are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.errors import UserError, near
from vitdistill.losses.features import smooth_l1
from vitdistill.losses.relations import relation_kl, relation_smooth_l1
from vitdistill.methods.options import relation_list
from vitdistill.types import QKV, BackboneOutput, Capture, Part

Feature = Literal["output", "attention", "ffn", "qkv", "q", "k", "v"]
FEATURES: tuple[str, ...] = Feature.__args__  # type: ignore[attr-defined]


class Imitation(nn.Module, ABC):
    """One way to compare the student's last block with the teacher's block.

    Attributes:
        roles: which of q, k and v it reads, where it reads any.
    """

    roles: frozenset[str] = frozenset()

    @abstractmethod
    def capture(self, block: int) -> Capture:
        """What a pass must hand out of a block (from 0); nothing behind it is computed."""

    @abstractmethod
    def terms(
        self, student: BackboneOutput, student_block: int, teacher: BackboneOutput, teacher_block: int
    ) -> dict[str, Float[Tensor, ""]]:
        """The named parts of the loss, to be summed."""


class Relations(Imitation):
    """Token relations per head (TinyMIM's own target)."""

    def __init__(self, relations: Sequence[str] = ("qk", "vv"), softmax: bool = True) -> None:
        """
        Args:
            relations: any of qk, vv, qq, kk.
            softmax: compare distributions by KL; without, the scaled scores by smooth-L1.

        Raises:
            UserError: when the list is empty, misspelt, or names a relation twice.
        """
        super().__init__()
        relations = relation_list(relations)
        self.relations = relations
        self.roles = frozenset("".join(relations))
        self.distance: Callable[..., Tensor] = relation_kl if softmax else relation_smooth_l1

    def capture(self, block: int) -> Capture:
        return Capture(qkv=(block,), logits=False)

    def terms(
        self, student: BackboneOutput, student_block: int, teacher: BackboneOutput, teacher_block: int
    ) -> dict[str, Float[Tensor, ""]]:
        own, other = student.qkv[student_block], teacher.qkv[teacher_block]
        return {name: self.distance(_pair(own, name), _pair(other, name)) for name in self.relations}


def _pair(qkv: QKV, name: str) -> tuple[Tensor, Tensor]:
    return getattr(qkv, name[0]), getattr(qkv, name[1])


class Features(Imitation):
    """Token features through a linear projection: smooth-L1 with beta 2 to affine-free LayerNorm of the teacher's."""

    BETA = 2.0

    def __init__(self, student_width: int, teacher_width: int, feature: str = "output", residual: bool = False) -> None:
        """
        Args:
            student_width: channels of the student's tokens.
            teacher_width: channels of the teacher's.
            feature: output (of the block), attention or ffn (what the branch adds), qkv (all three), q, k or v.
            residual: for attention and ffn, the tokens after the branch was added to them.

        Raises:
            UserError: for an unknown feature, or a residual that the feature has not.
        """
        super().__init__()
        if feature not in FEATURES:
            raise UserError(f"feature must be one of {', '.join(FEATURES)}", repr(feature), near(feature, FEATURES))
        if residual and feature not in ("attention", "ffn"):
            raise UserError("Only the features attention and ffn have a residual", repr(feature))
        # The block's output is what the tokens are after the MLP was added.
        self.feature = "output" if feature == "ffn" and residual else feature
        self.part: Part | None = None
        if feature == "attention":
            self.part = "attention_residual" if residual else "attention"
        elif self.feature == "ffn":
            self.part = "ffn"
        names = tuple("qkv") if feature == "qkv" else (self.feature,)
        self.roles = frozenset("qkv") & frozenset(names)
        self.project = nn.ModuleDict({name: nn.Linear(student_width, teacher_width) for name in names})

    def capture(self, block: int) -> Capture:
        if self.part is not None:
            return Capture(parts=((block, self.part),), logits=False)
        return Capture(hidden=(block,), logits=False) if self.feature == "output" else Capture((block,), logits=False)

    def terms(
        self, student: BackboneOutput, student_block: int, teacher: BackboneOutput, teacher_block: int
    ) -> dict[str, Float[Tensor, ""]]:
        own, other = (self._read(student, student_block), self._read(teacher, teacher_block))
        return {
            name: smooth_l1(project(own[name]), other[name], beta=self.BETA, normalise=True)
            for name, project in self.project.items()
        }

    def _read(self, output: BackboneOutput, block: int) -> dict[str, Tensor]:
        if self.part is not None:
            return {self.feature: output.parts[block, self.part]}
        if self.feature == "output":
            return {"output": output.hidden[block]}
        # Heads side by side again: (b, h, m, d) -> (b, m, h * d).
        return {name: getattr(output.qkv[block], name).transpose(1, 2).flatten(2) for name in self.project}


class ClassToken(Features):
    """The class token of the block's output alone."""

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__(student_width, teacher_width, "output")

    def _read(self, output: BackboneOutput, block: int) -> dict[str, Tensor]:
        return {"output": output.hidden[block][:, :1]}
