"""Token matching (ViDT, Song et al., ICLR 2022): patches and detection tokens come close to those of the teacher.

ViDT compares tokens after projections that its detectors have anyway. YOLOS has none, so here the student has a linear
map for each kind of token, which is trained along and dropped at export.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.losses.boxes import match_slots, token_distance
from vitdistill.methods.terms.term import Term, common_patches
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.gather import take
from vitdistill.types import NOTHING, Capture, Output

Matching = Literal["index", "hungarian"]

EPS = 1e-12  # under the root, whose slope is infinite at 0


class TokensTerm(Term):
    """sqrt(mean ||W_p s_j - t_j|| + mean ||W_d s_i - t_i||) over patches that the teacher saw and detection tokens.

    Tokens are those behind the final norm. The class token is not compared: nothing trains it in a detector.

    Example:
        >>> Distillation(student, [Lesson(teacher, [TokensTerm(student, teacher)])], task=Boxes(classes=20))
    """

    def __init__(
        self,
        student: Network,
        teacher: Teacher,
        *,
        weight: float = 4.0,
        root: bool = True,
        det_matching: Matching = "index",
    ) -> None:
        """
        Args:
            student: a detector.
            teacher: a detector with as many detection tokens.
            weight: of the loss.
            root: take the square root of the sum, as ViDT's code does.
            det_matching: index compares detection token i with detection token i; hungarian those that predict alike.

        Raises:
            UserError: when one of them is no detector, or their detection tokens differ in number.
        """
        super().__init__()
        check_detectors("tokens", student, teacher)
        own, other = with_tokens(student).width, teacher.backbone.width
        self.patches, self.detections = nn.Linear(own, other), nn.Linear(own, other)
        self.weights = {"tokens": weight}
        self.root, self.det_matching = root, det_matching

    def captures(self) -> tuple[Capture, Capture]:
        return NOTHING, NOTHING

    def reached(self, student: Network) -> set[nn.Parameter]:
        assert isinstance(student, Backbone)
        return student.reached(self.captures()[0], prediction=False)

    def forward(self, student: Output, teacher: Output) -> dict[str, Float[Tensor, ""]]:
        assert student.final is not None and teacher.final is not None
        mine, theirs = common_patches(student, student.final, teacher, teacher.final)
        found, known = student.final.special[:, 1:], teacher.final.special[:, 1:]
        if self.det_matching == "hungarian":
            known = take(known, matched(student, teacher))
        apart = token_distance(self.patches(mine), theirs) + token_distance(self.detections(found), known)
        return {"tokens": (apart + EPS).sqrt() if self.root else apart}


def matched(student: Output, teacher: Output) -> Tensor:
    """The teacher's detection token that predicts most alike, for each of the student's, one to one."""
    assert student.prediction is not None and teacher.prediction is not None
    return match_slots(student.prediction.detach(), teacher.prediction)


def check_detectors(name: str, student: Network, teacher: Teacher) -> None:
    """
    Raises:
        UserError: when student or teacher is no detector, or their detection tokens differ in number.
    """
    for network in (student, teacher.network):
        if not network.detections:
            raise UserError(
                f"--distill {name} compares what two detectors find",
                network.name,
                "Choose a YOLOS as student and teacher",
            )
    if student.detections != teacher.network.detections:
        raise UserError(
            "Student and teacher must have as many detection tokens",
            f"{student.detections} of {student.name} and {teacher.network.detections} of {teacher.name}",
            "Set det_tokens of the student's architecture",
        )
