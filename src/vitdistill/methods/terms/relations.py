"""Token relations of a teacher's block (TinyMIM, Ren et al., CVPR 2023)."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.losses.relations import relation_kl, relation_smooth_l1
from vitdistill.methods.options import relation_list
from vitdistill.methods.terms.term import Shared, Term, without_registers
from vitdistill.models.backbone import Backbone
from vitdistill.models.network import Network
from vitdistill.types import QKV, Capture, Output


class Relations(Term):
    """Relations between the tokens of a block, per head: KL between distributions, or smooth-L1 between scores.

    Student and teacher must see the same tokens and have as many heads in these blocks.

    Example:
        >>> Distillation(student, [Lesson(teacher, [Relations(11, 17, relations="qk+vv")])])
    """

    separable: ClassVar[bool] = True

    def __init__(
        self,
        student_block: int,
        teacher_block: int,
        *,
        relations: str | Sequence[str] = "qk+vv",
        softmax: bool = True,
        shared: Shared = "all",
    ) -> None:
        """
        Args:
            student_block: block whose relations are trained, from 0.
            teacher_block: block whose relations are the target, from 0.
            relations: some of qk, vv, qq, kk.
            softmax: compare distributions by KL; without, the scaled scores by smooth-L1.
            shared: which special tokens take part, see `shared_special`; patches always do.

        Raises:
            UserError: when no relation is named, or one is misspelt or named twice.
        """
        super().__init__()
        self.student_block, self.teacher_block = student_block, teacher_block
        self.relations = relation_list(relations)
        self.shared: Shared = shared
        self.distance: Callable[..., Tensor] = relation_kl if softmax else relation_smooth_l1

    def captures(self) -> tuple[Capture, Capture]:
        return Capture.at(self.student_block, "qkv", head=False), Capture.at(self.teacher_block, "qkv", head=False)

    def reached(self, student: Network) -> set[nn.Parameter]:
        assert isinstance(student, Backbone)
        # The norm of q (or k) only where q (or k) is read; values have none.
        return student.reached(self.captures()[0], frozenset("".join(self.relations)))

    def forward(self, student: Output, teacher: Output) -> dict[str, Float[Tensor, ""]]:
        own, other = self._roles(student.qkv(self.student_block)), self._roles(teacher.qkv(self.teacher_block))
        return {
            name: self.distance((own[name[0]], own[name[1]]), (other[name[0]], other[name[1]]))
            for name in self.relations
        }

    def _roles(self, qkv: QKV) -> dict[str, Tensor]:
        """Queries, keys and values of the tokens that both networks have."""
        return {role: without_registers(getattr(qkv, role), qkv.specials, self.shared) for role in "qkv"}
