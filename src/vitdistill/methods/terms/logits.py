"""Class scores of a teacher (MaskedKD, Eq. 1; Hinton et al., 2015; DeiT, Eq. 3)."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from vitdistill.errors import UserError, near
from vitdistill.losses.logits import hard_distillation, normalised_distillation, soft_distillation
from vitdistill.methods.terms.options import check_tau
from vitdistill.methods.terms.term import Term
from vitdistill.types import NOTHING, Capture, Output

KINDS = ("soft", "hard", "nkd")


class Logits(Term):
    """tau^2 * KL(teacher || student) over classes, cross-entropy with the teacher's decision as the label, or NKD.

    Of a distilled DeiT student it trains the distillation head, as in DeiT.

    Example:
        >>> Distillation(student, [Lesson(teacher, [Logits(tau=4.0)])], task=Classification(1000))
    """

    compares_predictions: ClassVar[bool] = True
    separable: ClassVar[bool] = True

    def __init__(self, *, tau: float = 1.0, distillation: str = "soft") -> None:
        """
        Args:
            tau: temperature of the soft distillation.
            distillation: soft matches distributions, hard takes the teacher's decision as a label, nkd matches the
                label's class and the distribution over all others.

        Raises:
            UserError: when tau is not positive, or the kind is unknown.
        """
        super().__init__()
        check_tau(tau)
        if distillation not in KINDS:
            raise UserError(
                f"distillation must be one of {', '.join(KINDS)}", repr(distillation), near(str(distillation), KINDS)
            )
        self.tau, self.kind = tau, distillation
        self.uses_labels = distillation == "nkd"

    def captures(self) -> tuple[Capture, Capture]:
        return NOTHING, NOTHING

    def forward(self, student: Output, teacher: Output, targets: Tensor | None = None) -> dict[str, Float[Tensor, ""]]:
        own = student.prediction if student.distilled is None else student.distilled
        assert own is not None and teacher.prediction is not None
        if self.kind == "hard":
            return {"kd": hard_distillation(own, teacher.prediction)}
        if self.kind == "nkd":
            assert targets is not None, "NKD needs labels"
            return {"kd": normalised_distillation(own, teacher.prediction, targets, self.tau)}
        return {"kd": soft_distillation(own, teacher.prediction, self.tau)}
