"""Token features of a teacher's block (TinyMIM's ablation of targets), or of its class token alone."""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.errors import UserError, near
from vitdistill.losses.features import smooth_l1
from vitdistill.methods.terms.term import Term, check_class_token, shared_special, without_registers
from vitdistill.models.backbone import Backbone
from vitdistill.models.network import Network
from vitdistill.types import Capture, Output, Point

Feature = Literal["output", "attention", "ffn", "qkv", "q", "k", "v"]
FEATURES: tuple[str, ...] = Feature.__args__  # type: ignore[attr-defined]
BETA = 2.0


class Features(Term):
    """Features of all tokens through a linear map: smooth-L1 (beta 2) to affine-free LayerNorm of the teacher's.

    Student and teacher must see the same patches; special tokens that one of them lacks are left out.

    Example:
        >>> term = Features(student, teacher.backbone, 11, 11, feature="ffn")
        >>> Distillation(student, [Lesson(teacher, [term])])
    """

    separable: ClassVar[bool] = True

    def __init__(
        self,
        student: Backbone,
        teacher: Backbone,
        student_block: int,
        teacher_block: int,
        *,
        feature: str = "output",
        residual: bool = False,
    ) -> None:
        """
        Args:
            student: whose features are trained.
            teacher: whose features are the target.
            student_block: block of the student, from 0.
            teacher_block: block of the teacher, from 0.
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
        self.student_block, self.teacher_block = student_block, teacher_block
        self.shared = shared_special(student, teacher)
        # The block's output is what the tokens are after the MLP was added.
        self.feature = "output" if feature == "ffn" and residual else feature
        points: dict[str, Point] = {"output": "output", "ffn": "ffn", "attention": "attention"}
        self.point: Point = points.get(self.feature, "qkv")
        if feature == "attention" and residual:
            self.point = "attention_residual"
        names = tuple("qkv") if feature == "qkv" else (self.feature,)
        self.project = nn.ModuleDict({name: nn.Linear(student.width, teacher.width) for name in names})

    def captures(self) -> tuple[Capture, Capture]:
        return (
            Capture.at(self.student_block, self.point, head=False),
            Capture.at(self.teacher_block, self.point, head=False),
        )

    def reached(self, student: Network) -> set[nn.Parameter]:
        assert isinstance(student, Backbone)
        return student.reached(self.captures()[0], frozenset(self.project) & frozenset("qkv"))

    def forward(self, student: Output, teacher: Output) -> dict[str, Float[Tensor, ""]]:
        own, other = self._read(student, self.student_block), self._read(teacher, self.teacher_block)
        return {
            name: smooth_l1(project(own[name]), other[name], beta=BETA, normalise=True)
            for name, project in self.project.items()
        }

    def _read(self, output: Output, block: int) -> dict[str, Tensor]:
        if self.point != "qkv":
            tokens = output.tokens(block, self.point)
            read, specials = {self.feature: tokens.all}, tokens.specials
        else:  # heads side by side again: (b, h, m, d) -> (b, m, h * d)
            qkv = output.qkv(block)
            read = {name: getattr(qkv, name).transpose(1, 2).flatten(2) for name in self.project}
            specials = qkv.specials
        return {name: without_registers(each, specials, self.shared) for name, each in read.items()}


class ClassToken(Features):
    """The class token of the block's output alone."""

    def __init__(self, student: Backbone, teacher: Backbone, student_block: int, teacher_block: int) -> None:
        for network, block in ((student, student_block), (teacher, teacher_block)):
            check_class_token("cls compares class tokens", network, [block])
        super().__init__(student, teacher, student_block, teacher_block)

    def _read(self, output: Output, block: int) -> dict[str, Tensor]:
        return {"output": output.tokens(block).special[:, :1]}
