"""MaskedKD (Son et al., ECCV 2024): supervised distillation in which the teacher sees only the patches that the student
attends to.

One step: the student sees the whole image; the class token's attention in its last block ranks the patches; the
teacher runs on the best of them; the loss mixes labels and what the student learns from the teacher's pass.
"""

from typing import Any, Literal

from torch import nn

from vitdistill.errors import UserError
from vitdistill.methods.distillation import Distillation, Lesson, check_inputs
from vitdistill.methods.selection.ranked import Ranked
from vitdistill.methods.terms.logits import Logits
from vitdistill.methods.terms.options import Alpha, Tau, TermNames, Terms, check_alpha
from vitdistill.methods.terms.term import Term
from vitdistill.models.classes import compare
from vitdistill.models.families import as_network
from vitdistill.models.network import Network, check_names_inputs
from vitdistill.models.record import record_of
from vitdistill.models.teacher import Teacher
from vitdistill.tasks.classification import Classification
from vitdistill.tasks.task import Task


class MaskedKD(Distillation):
    """(1 - alpha) * CE(student, labels) + alpha * tau^2 * KL(masked teacher || student)  (Eq. 1; authors' weighting),
    and any other terms beside or in place of the class scores.

    A distilled DeiT student, or one with a token that was appended (G2SD), is trained as in DeiT: labels on its class
    head, the teacher on its distillation head.

    Example:
        >>> method = MaskedKD(student, teacher, keep=0.5)
        >>> method(images, labels).loss.backward()
    """

    def __init__(
        self,
        student: Network | nn.Module,
        teacher: Teacher | Network | nn.Module | None = None,
        *,
        task: Task | None = None,
        distill: TermNames | None = None,
        alpha: Alpha = 0.5,
        tau: Tau = 1.0,
        distillation: Literal["soft", "hard", "nkd"] = "soft",
        smoothing: float = 0.0,
        terms: Terms = Terms(),
        network: Teacher | Network | nn.Module | None = None,
        **selection: Any,
    ) -> None:
        """
        Args:
            student: the network to train, a timm module or an adapter.
            teacher: the frozen network; may be None when `alpha` is 0.
            task: what the labels mean; None is classification into the student's classes.
            distill: what the student learns from the teacher: logits, manifold, attention, or several joined by +
                (logits+manifold); None is logits.
            alpha: weight of the teacher's class scores against the labels, 0 to 1; with 0 and no other term, labels
                alone are left and no teacher is loaded. Without class scores (--distill manifold) labels have weight 1.
            tau: temperature of the soft distillation, and of the other classes in nkd.
            distillation: soft matches class distributions; hard takes the teacher's decision as a label; nkd matches
                the label's class and the distribution over the others (G2SD's alternative to a distillation token).
            smoothing: label smoothing, where the labels are not mixed.
            terms: options of the other terms.
            network: the frozen network of the criteria that name one.
            selection: which patches the teacher sees: keep, criterion, order, saliency, saliency_layer, mask,
                random_share; see `Ranked`.

        Raises:
            UserError: when class counts differ, an option is unknown, a number is out of range, or a network that
                should be masked cannot be.
        """
        student = as_network(student)
        names = terms.named("logits" if distill is None else distill)
        _check_trained(student, names)
        labels_share = 1 - alpha if "logits" in names else 1.0
        check_alpha(alpha)
        scores = Logits(tau=tau, distillation=distillation)
        scores.weights = {"kd": alpha}
        if not 0 <= smoothing < 1:
            raise UserError("Label smoothing must lie in [0, 1)", smoothing)
        lessons = []
        if alpha == 0:  # class scores of no weight need no head of the teacher, and alone no teacher
            names = tuple(name for name in names if name != "logits")
        if names:
            if teacher is None:
                raise UserError(
                    "Distillation needs a teacher", remedy="Name one, or set alpha to 0 to train on labels alone"
                )
            guide = Teacher.of(teacher, student)
            check_inputs(student, guide)
            _check_classes(student, guide, names)
            built: list[Term] = [
                scores if name == "logits" else getattr(terms, name).build(student, guide) for name in names
            ]
            lessons.append(Lesson(guide, built))
        third = None if network is None else Teacher.of(network, student)
        if third is not None:
            check_inputs(student, third)
        super().__init__(
            student,
            lessons,
            task=task or Classification(student.num_classes, smoothing=smoothing),
            task_weight=labels_share,
            selector=Ranked(network=third, **selection),
        )
        self.ranks_by = third
        if "logits" in names and hasattr(student.net, "set_distilled_training"):
            student.net.set_distilled_training(True)

    @property
    def teacher(self) -> Teacher | None:
        return self.lessons[0].teacher if self.lessons else None

    @property
    def teachers(self) -> list[Teacher]:
        return [*super().teachers, *([] if self.ranks_by is None else [self.ranks_by])]


def _check_trained(student: Network, names: tuple[str, ...]) -> None:
    if not student.trains_body and any(name != "logits" for name in names):
        raise UserError(
            f"{student.name} has a frozen body, so that only class scores can be learned",
            f"--distill {'+'.join(names)}",
            "Use --distill logits",
        )


_OTHER_TERMS = "Use --distill tokens or detections of detectors, manifold of networks that label pixels"


def _check_classes(student: Network, teacher: Teacher, names: tuple[str, ...]) -> None:
    for network in (student, teacher.network) if "logits" in names else ():
        check_names_inputs(network, "--distill logits compares the class scores of whole inputs", _OTHER_TERMS)
    if "logits" in names and teacher.num_classes != student.num_classes:
        raise UserError(
            f"Teacher and student must have the same classes; {teacher.name} has {teacher.num_classes} and "
            f"{student.name} has {student.num_classes}",
            remedy="Fine-tune the teacher on this data first, or choose the data it was trained on",
        )
    # Names are known of a student that was trained before; the teacher's scores then go by these.
    known, untold = record_of(student.net).classes, teacher.order is None and teacher.text_embeddings is None
    differ = "logits" in names and untold and bool(known)
    if differ and compare(teacher.network, known, student.name).kind in ("reordered", "different"):
        teacher.match_classes(known, student.name)
