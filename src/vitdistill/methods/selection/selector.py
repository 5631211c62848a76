"""Which patches the teacher sees: how many, ranked by whom; or, for ablations, which the student sees."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.errors import UserError, near
from vitdistill.methods.method import Pass
from vitdistill.methods.selection import CriterionName, make_criterion
from vitdistill.methods.selection.criterion import Attention, Criterion, Scene
from vitdistill.models.backbone import Backbone, SaliencyKind
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.models.whole import why_whole
from vitdistill.tokens.keep import Keep, KeepSchedule, keep_count
from vitdistill.tokens.masking import Masking
from vitdistill.types import Capture, Output


class Selector(nn.Module):
    """Decides what the student sees before its pass, and what the teacher sees after it. By default: everything."""

    def check(self, student: Network, teacher: Teacher) -> None:
        """Refuse what is impossible, before the first step.

        Raises:
            UserError: when patches shall be left out of a network that cannot do without them, or cannot be ranked.
        """

    def masked(self, student: Network, teacher: Teacher) -> Backbone | None:
        """The network whose patches are left out; None where none can be."""
        return None

    def counts(self, student: Network, teacher: Teacher, progress: float) -> tuple[int | None, int | None]:
        """Patches that the student and the teacher see at a training progress in [0, 1]; None for all."""
        return None, None

    def capture(self, student: Network, teacher: Teacher, progress: float) -> Capture:
        """What the student's pass must hand out for the selection."""
        return Capture(head=False)

    def for_student(
        self, inputs: Float[Tensor, "b ch *pixels"], student: Network, teacher: Teacher, progress: float
    ) -> Int[Tensor, "b k"] | None:
        """Patches that the student sees, in its own coordinates; None for all."""
        return None

    def for_teacher(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        output: Output,
        student: Network,
        teacher: Teacher,
        progress: float,
    ) -> Int[Tensor, "b k"] | None:
        """Patches that the teacher sees, in its own coordinates, after the student's pass; None for all."""
        return None

    def ranking_passes(self, student: Network, teacher: Teacher, progress: float) -> list[Pass]:
        """What the selection itself runs, for the cost report."""
        return []


class Ranked(Selector):
    """The patches that someone ranks highest: for the teacher (MaskedKD), or for the student (its Sec. 5.3)."""

    def __init__(
        self,
        *,
        keep: Keep | KeepSchedule = 0.5,
        criterion: CriterionName | Criterion = "student",
        order: Literal["top", "bottom"] = "top",
        saliency: SaliencyKind = "cls",
        saliency_layer: str | int = "last",
        mask: Literal["teacher", "student"] = "teacher",
        network: Teacher | None = None,
        random_share: float = 0.5,
    ) -> None:
        """
        Args:
            keep: patches that the teacher sees: a count (98), a fraction (0.5; 1.0 for all), or a schedule over
                training ('1.0->0.5' linear, '0:1.0,0.5:0.25' in steps).
            criterion: who ranks the patches: the student, the teacher, a third network, chance (random), or half one
                of them and half chance (student+random).
            order: keep the highest ranked patches, or (an ablation) the lowest.
            saliency: attention of the class token (cls), attention received from all patches (patch), or attention of
                the head that pools the patches (pool: SigLIP, Perception Encoder). Where the head reads no class token,
                cls stands for pool if the network pools so, else for patch.
            saliency_layer: block whose attention ranks the patches: first, middle, last, or its number from 0.
            mask: who sees only the kept patches; masking the student is the variant that the paper argues against.
            network: the frozen network of the criteria that name one.
            random_share: share of the kept patches drawn at random by the mixed criteria.

        Raises:
            UserError: when an option is unknown, or a third network is missing.
        """
        super().__init__()
        for option, value, known in (
            ("order", order, ("top", "bottom")),
            ("saliency", saliency, ("pool", "cls", "patch")),
            ("mask", mask, ("teacher", "student")),
        ):
            if value not in known:
                words = f"{', '.join(known[:-1])} or {known[-1]}"
                raise UserError(f"{option} must be {words}", repr(value), near(str(value), known))
        self.keep, self.order, self.mask = KeepSchedule.parse(keep), order, mask
        attention = Attention(saliency_layer, saliency, network)
        self.criterion = (
            criterion if isinstance(criterion, Criterion) else make_criterion(criterion, attention, random_share)
        )

    def check(self, student: Network, teacher: Teacher) -> None:
        network = teacher.network if self.mask == "teacher" else student
        masked = self.masked(student, teacher)
        # A network whose patches are not known counts as one patch, and half of one is rounded to all.
        patches = masked.grid.count if masked is not None else 1
        ever = False
        for _, keep in self.keep.points:
            ever = ever or keep_count(keep, patches) < patches
            if (keep_count(keep, patches) < patches or float(keep) < 1) and not network.maskable:
                raise UserError(
                    f"{network.name} cannot leave out patches",
                    f"keep {keep}",
                    f"Use --keep 1.0, or choose a ViT, DeiT or CaiT ({why_whole(network.net)})",
                )
        if ever:
            self.criterion.capture(student)  # an impossible block is refused now, not in the first step
            self.criterion.ranking(teacher)

    def masked(self, student: Network, teacher: Teacher) -> Backbone | None:
        network = teacher.network if self.mask == "teacher" else student
        return network if isinstance(network, Backbone) else None

    def counts(self, student: Network, teacher: Teacher, progress: float) -> tuple[int | None, int | None]:
        count = self._count(student, teacher, progress)
        return (None, count) if self.mask == "teacher" else (count, None)

    def _count(self, student: Network, teacher: Teacher, progress: float) -> int | None:
        masked = self.masked(student, teacher)
        if masked is None:
            return None
        count = self.keep.count(progress, masked.grid.count)
        return None if count == masked.grid.count else count

    def capture(self, student: Network, teacher: Teacher, progress: float) -> Capture:
        asks = self.mask == "teacher" and self._count(student, teacher, progress) is not None
        return self.criterion.capture(student) if asks else Capture(head=False)

    def for_student(
        self, inputs: Float[Tensor, "b ch *pixels"], student: Network, teacher: Teacher, progress: float
    ) -> Int[Tensor, "b k"] | None:
        count = self._count(student, teacher, progress)
        if self.mask == "teacher" or count is None:
            return None
        # A student that ranks its own patches needs a pass over all of them first; it carries no gradient.
        wanted, output = self.criterion.capture(student), Output()
        if wanted.points:
            with torch.no_grad():
                output = student(inputs, capture=wanted)
        return self._select(inputs, output, student, teacher, count)

    def for_teacher(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        output: Output,
        student: Network,
        teacher: Teacher,
        progress: float,
    ) -> Int[Tensor, "b k"] | None:
        count = self._count(student, teacher, progress)
        if self.mask == "student" or count is None:
            return None
        return self._select(inputs, output, student, teacher, count)

    def _select(
        self, inputs: Tensor, output: Output, student: Network, teacher: Teacher, count: int
    ) -> Int[Tensor, "b k"]:
        masked = self.masked(student, teacher)
        assert masked is not None
        scene = Scene(inputs.detach(), student, output, teacher, masked.grid)
        return self.criterion.select(scene, count, order=self.order)

    def ranking_passes(self, student: Network, teacher: Teacher, progress: float) -> list[Pass]:
        if self._count(student, teacher, progress) is None:
            return []
        passes = [Pass("ranking", asked.network, capture=where) for asked, where in self.criterion.ranking(teacher)]
        own = self.criterion.capture(student)
        if self.mask == "student" and own.points:
            passes.append(Pass("student", student, capture=own))
        return passes


class SameMask(Selector):
    """Random patches hidden from student and teacher alike (TinyMIM's masked input)."""

    def __init__(self, masking: Masking) -> None:
        super().__init__()
        self.masking = masking

    def masked(self, student: Network, teacher: Teacher) -> Backbone | None:
        return teacher.backbone

    def counts(self, student: Network, teacher: Teacher, progress: float) -> tuple[int | None, int | None]:
        visible = self.masking.visible(teacher.grid)
        return visible, visible

    def for_student(
        self, inputs: Float[Tensor, "b ch *pixels"], student: Network, teacher: Teacher, progress: float
    ) -> Int[Tensor, "b k"] | None:
        return self.masking.draw(len(inputs), teacher.grid, device=inputs.device)[0]

    def for_teacher(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        output: Output,
        student: Network,
        teacher: Teacher,
        progress: float,
    ) -> Int[Tensor, "b k"] | None:
        return output.kept
