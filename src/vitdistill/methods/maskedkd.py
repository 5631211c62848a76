"""MaskedKD (Son et al., ECCV 2024): supervised distillation in which the teacher sees only the patches that the student
attends to.

One step: the student sees the whole image; the class token's attention in its last block ranks the patches; the
teacher runs on the best of them; the loss mixes labels and the teacher's class scores.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.errors import UserError, near
from vitdistill.losses.logits import hard_distillation, soft_distillation
from vitdistill.methods.method import Method, Pass
from vitdistill.methods.selection import (
    Criterion,
    MixedWithRandom,
    NetworkAttention,
    Random,
    Scene,
    StudentAttention,
    TeacherAttention,
)
from vitdistill.models.backbone import Backbone, SaliencyKind
from vitdistill.models.build import build
from vitdistill.models.teacher import Teacher
from vitdistill.tasks.classification import Classification
from vitdistill.tokens.keep import KeepSchedule, keep_count
from vitdistill.types import NOTHING, BackboneOutput, Capture, StepOutput

CriterionName = Literal["student", "teacher", "network", "random", "network+random", "student+random"]
CRITERIA: tuple[str, ...] = CriterionName.__args__  # type: ignore[attr-defined]


class MaskedKD(Method):
    """(1 - alpha) * CE(student, labels) + alpha * tau^2 * KL(masked teacher || student)  (Eq. 1; authors' weighting).

    A distilled DeiT student is trained as in DeiT: labels on its class head, the teacher on its distillation head.
    """

    def __init__(
        self,
        student: Backbone | nn.Module,
        teacher: Teacher | Backbone | nn.Module | None = None,
        *,
        keep: int | float | str | KeepSchedule = 0.5,
        alpha: float = 0.5,
        tau: float = 1.0,
        distillation: Literal["soft", "hard"] = "soft",
        smoothing: float = 0.0,
        criterion: CriterionName | Criterion = "student",
        order: Literal["top", "bottom"] = "top",
        layer: int = -1,
        saliency: SaliencyKind = "cls",
        mask: Literal["teacher", "student"] = "teacher",
        network: Teacher | Backbone | nn.Module | None = None,
        random_share: float = 0.5,
    ) -> None:
        """
        Args:
            student: the network to train, a timm module or an adapter.
            teacher: the frozen network; may be None when `alpha` is 0.
            keep: patches that the teacher sees: a count, a fraction, or a schedule over training.
            alpha: weight of the teacher against the labels, in [0, 1]; 0 trains on labels alone.
            tau: temperature of the soft distillation.
            distillation: "soft" matches distributions, "hard" takes the teacher's decision as a label.
            smoothing: label smoothing, where the labels are not mixed.
            criterion: who ranks the patches, by name or as a `Criterion`.
            order: keep the highest ("top") or the lowest ranked patches ("bottom", an ablation).
            layer: block whose attention ranks them; -1 is the last.
            saliency: attention of the class token ("cls"), or received from all patches ("patch").
            mask: who sees only the kept patches; "student" is the variant that the paper argues against.
            network: the frozen network of the criteria that name one.
            random_share: share of kept patches drawn at random by the mixed criteria.

        Raises:
            UserError: when class counts differ, an option is unknown, a number is out of range, or a network that
                should be masked cannot be.
        """
        adapter = build(student)
        super().__init__(adapter, Classification(adapter.num_classes, smoothing))
        for option, value, known in (
            ("distillation", distillation, ("soft", "hard")),
            ("order", order, ("top", "bottom")),
            ("saliency", saliency, ("cls", "patch")),
            ("mask", mask, ("teacher", "student")),
        ):
            if value not in known:
                raise UserError(f"{option} must be {' or '.join(known)}", repr(value), near(str(value), known))
        self.alpha, self.tau = alpha, tau
        self.distillation, self.order, self.mask = distillation, order, mask
        self.keep = KeepSchedule.parse(keep)
        self._guests = _Guests(teacher=self._guest(teacher), network=self._guest(network))
        self._check()
        self.criterion = (
            criterion
            if isinstance(criterion, Criterion)
            else make_criterion(criterion, layer, saliency, self._guests.network, random_share)
        )
        if self._ever_masks():
            # An impossible block is refused now, not in the first step.
            wanted = self.criterion.capture(self.student)
            for block in (*wanted.qkv, *wanted.hidden):
                self.student.block_index(block)
        if alpha > 0 and hasattr(self.student.net, "set_distilled_training"):
            self.student.net.set_distilled_training(True)

    # --- the parts --------------------

    @property
    def teacher(self) -> Teacher | None:
        return self._guests.teacher

    @property
    def teachers(self) -> list[Teacher]:
        return [guest for guest in (self._guests.teacher, self._guests.network) if guest is not None]

    @property
    def _masked(self) -> Backbone:
        """The backbone whose patches are left out."""
        assert self.teacher is not None
        return self.teacher.backbone if self.mask == "teacher" else self.student

    def extra_passes(self) -> list[Backbone]:
        return [] if self.teacher is None else self.criterion.extra_passes(self.teacher)

    def kept_patches(self, progress: float) -> int | None:
        if self.teacher is None:
            return None
        patches = self._masked.grid.count
        count = self.keep.count(progress, patches)
        return None if count == patches else count

    def student_passes(self, progress: float) -> list[Pass]:
        kept = self.kept_patches(progress)
        if self.mask == "teacher" or kept is None:
            return super().student_passes(progress)
        return [*self._ranking_passes(), Pass(self.student, kept)]

    def _ranking_passes(self) -> list[Pass]:
        """The student's pass over all of its patches that tells which of them it may keep, if it is asked for one."""
        wanted = self.criterion.capture(self.student)
        asked = wanted.qkv or wanted.hidden
        return [Pass(self.student, capture=replace(wanted, logits=False))] if asked else []

    def _ever_masks(self) -> bool:
        """Whether a patch is left out at any time of the training."""
        if self.teacher is None:
            return False
        patches = self._masked.grid.count
        return any(keep_count(keep, patches) < patches for _, keep in self.keep.points)

    def _guest(self, model: Teacher | Backbone | nn.Module | None) -> Teacher | None:
        if model is None or isinstance(model, Teacher):
            return model
        return Teacher(build(model), mean=self.student.mean, std=self.student.std)

    def _check(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError("alpha must lie in [0, 1]", self.alpha)
        if not self.tau > 0:
            raise UserError("tau must be positive", self.tau)
        if self.alpha == 0:
            self._guests.teacher = None
        elif self.teacher is None:
            raise UserError(
                "Distillation needs a teacher", remedy="Name one, or set alpha to 0 to train on labels alone"
            )
        elif self.teacher.num_classes != self.student.num_classes:
            raise UserError(
                f"Teacher and student must have the same classes; {self.teacher.backbone.name} has "
                f"{self.teacher.num_classes} and {self.student.name} has {self.student.num_classes}",
                remedy="Fine-tune the teacher on this data first, or choose the data it was trained on",
            )
        if self.teacher is not None and self.teacher.backbone.net is self.student.net:
            raise UserError("The teacher must be another network than the student", remedy="Give a copy of it")
        if self.teacher is not None:
            self._check_keep()

    def _check_keep(self) -> None:
        """Every point of the schedule is possible, and only where patches can be left out are any."""
        patches = self._masked.grid.count
        for _, keep in self.keep.points:
            # A network of unknown patches counts as one patch, and half of one is rounded to all.
            masks = keep_count(keep, patches) < patches or float(keep) < 1
            if masks and not self._masked.maskable:
                raise UserError(
                    f"{self._masked.name} cannot leave out patches",
                    f"keep {keep}",
                    "Use --keep 1.0, or choose a ViT, DeiT or CaiT",
                )

    # --- one step --------------------

    def forward(
        self,
        images: Float[Tensor, "b ch *pixels"],
        targets: Int[Tensor, "b"] | Float[Tensor, "b c"],
        progress: float = 0.0,
    ) -> StepOutput:
        if self.teacher is None:
            return self._labels_only(images, targets)
        kept_count = self.kept_patches(progress)
        if self.mask == "student" and kept_count is not None:
            return self._masked_student(images, targets, kept_count)

        wanted = NOTHING if kept_count is None else replace(self.criterion.capture(self.student), logits=True)
        student = self.student(images, capture=wanted)
        with self.clock("teacher"):
            kept = None if kept_count is None else self._select(images, student, kept_count)
            teacher = self.teacher(images, keep=kept)
        return self._loss(student, teacher, targets, kept)

    def _labels_only(self, images: Tensor, targets: Tensor) -> StepOutput:
        logits = self.student(images).logits
        loss = self._label_loss(logits, targets)
        return StepOutput(loss=loss, terms={"ce": loss.detach()}, logits=logits)

    def _label_loss(self, logits: Tensor | None, targets: Tensor) -> Tensor:
        assert self.task is not None and logits is not None
        return self.task.loss(logits, targets)["ce"]

    def _masked_student(self, images: Tensor, targets: Tensor, kept_count: int) -> StepOutput:
        """The variant of Sec. 5.3: the teacher sees all, the student only the kept patches.

        A student that ranks its own patches needs a pass over all of them first; it carries no gradient.
        """
        wanted = self.criterion.capture(self.student)
        if wanted.qkv or wanted.hidden:
            full = _no_grad_pass(self.student, images, Capture(wanted.qkv, wanted.hidden, logits=False))
        else:
            full = BackboneOutput()
        kept = self._select(images, full, kept_count)
        student = self.student(images, keep=kept)
        with self.clock("teacher"):
            teacher = self.teacher(images)
        return self._loss(student, teacher, targets, kept)

    def _select(self, images: Tensor, student: BackboneOutput, kept_count: int) -> Int[Tensor, "b k"]:
        scene = Scene(images.detach(), self.student, student, self.teacher, self._masked.grid)
        return self.criterion.select(scene, kept_count, order=self.order)

    def _loss(
        self, student: BackboneOutput, teacher: BackboneOutput, targets: Tensor, kept: Tensor | None
    ) -> StepOutput:
        assert student.logits is not None and teacher.logits is not None
        labelled, distilled = student.logits, student.distilled_logits
        distilled = labelled if distilled is None else distilled
        ce = self._label_loss(labelled, targets)
        if self.distillation == "soft":
            kd = soft_distillation(distilled, teacher.logits, self.tau)
        else:
            kd = hard_distillation(distilled, teacher.logits)
        loss = (1 - self.alpha) * ce + self.alpha * kd
        terms = {"ce": ce.detach(), "kd": kd.detach()}
        return StepOutput(loss=loss, terms=terms, logits=labelled, kept=kept, teacher_logits=teacher.logits)


@dataclass
class _Guests:
    """Holds the frozen networks where `nn.Module` does not look for submodules."""

    teacher: Teacher | None
    network: Teacher | None


def _no_grad_pass(student: Backbone, images: Tensor, capture: Capture) -> BackboneOutput:
    with torch.no_grad():
        return student(images, capture=capture)


def make_criterion(
    name: str,
    layer: int = -1,
    saliency: SaliencyKind = "cls",
    network: Teacher | None = None,
    random_share: float = 0.5,
) -> Criterion:
    """A criterion by name.

    Raises:
        UserError: for an unknown name, a missing third network, or a share outside [0, 1].
    """
    if name not in CRITERIA:
        raise UserError(f"criterion must be one of {', '.join(CRITERIA)}", repr(name), near(name, CRITERIA))
    if not 0 <= random_share <= 1:
        raise UserError("random_share must lie in [0, 1]", random_share)
    if name.startswith("network") and network is None:
        raise UserError(f"The criterion {name!r} needs a third network", remedy="Name it with --network")
    base: Criterion
    match name.partition("+")[0]:
        case "student":
            base = StudentAttention(layer, saliency)
        case "teacher":
            base = TeacherAttention(layer, saliency)
        case "network":
            assert network is not None
            base = NetworkAttention(network, layer, saliency)
        case _:
            base = Random()
    return MixedWithRandom(base, random_share) if name.endswith("+random") else base
