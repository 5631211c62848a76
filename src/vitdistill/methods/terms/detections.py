"""What a teacher finds: the classes and boxes of its detection tokens, as targets of the student's."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.losses.boxes import BOX_WEIGHT, GIOU_WEIGHT, detections_distance
from vitdistill.methods.terms.term import Term
from vitdistill.methods.terms.tokens import Matching, check_detectors, matched
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.gather import take
from vitdistill.types import NOTHING, Capture, Output


class DetectionsTerm(Term):
    """KL(teacher || student) over classes, and 5 * L1 + 2 * (1 - GIoU) of the boxes where the teacher sees objects.

    What class scores are to a classifier (`Logits`), this is to a detector.

    Example:
        >>> Distillation(student, [Lesson(teacher, [DetectionsTerm(student, teacher)])], task=Boxes(classes=20))
    """

    compares_predictions: ClassVar[bool] = True

    def __init__(
        self, student: Network, teacher: Teacher, *, weight: float = 1.0, det_matching: Matching = "hungarian"
    ) -> None:
        """
        Args:
            student: a detector.
            teacher: a detector of the same classes, with as many detection tokens.
            weight: of the three losses together.
            det_matching: hungarian compares the detection tokens that predict alike, since those of two networks that
                were trained apart look for different things; index compares token i with token i.

        Raises:
            UserError: when one of them is no detector, or they differ in classes or in the number of detection tokens.
        """
        super().__init__()
        check_detectors("detections", student, teacher)
        if student.num_classes != teacher.num_classes:
            raise UserError(
                f"Teacher and student must have the same classes; {teacher.name} has {teacher.num_classes} and "
                f"{student.name} has {student.num_classes}",
                remedy="Fine-tune the teacher on this data first, or use --distill tokens",
            )
        self.det_matching = det_matching
        self.weights = {
            "detections_class": weight,
            "detections_box": weight * BOX_WEIGHT,
            "detections_giou": weight * GIOU_WEIGHT,
        }

    def captures(self) -> tuple[Capture, Capture]:
        return NOTHING, NOTHING

    def forward(self, student: Output, teacher: Output) -> dict[str, Float[Tensor, ""]]:
        assert student.prediction is not None and teacher.prediction is not None
        known = teacher.prediction
        if self.det_matching == "hungarian":
            known = take(known, matched(student, teacher))
        return dict(zip(self.weights, detections_distance(student.prediction, known), strict=True))
