"""How a student's masks change while it learns, and what the masked teacher makes of them (MaskedKD, Figs. 3 and 5).

All students see the same images, with the same random numbers, so that they differ by their weights alone. A batch
takes one pass of each student, one of the whole teacher, and one of the masked teacher for each student and criterion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from vitdistill.data.images.augment import Augment
from vitdistill.data.loader import CorruptLog
from vitdistill.data.samples import ViewOptions
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.evaluation.loading import Reader, made_ready
from vitdistill.evaluation.spread import EvenlySpread
from vitdistill.methods.selection import make_criterion
from vitdistill.methods.selection.criterion import Attention, Criterion, Order, Scene
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.teacher import Teacher
from vitdistill.models.weights.read import read_weights
from vitdistill.runs.read import Run, check_snapshots
from vitdistill.tokens.structure import MaskStructure, chance_overlap, overlap
from vitdistill.training.checkpoints import student_with
from vitdistill.types import Capture, Output, TokenGrid

UNTRAINED = "untrained"


@dataclass
class _Masks:
    """The masks of one criterion, asked of one student or of nobody in particular, and what the teacher knows of them.

    Attributes:
        structure: of the masks.
        shared: sum over the masks of their overlap with those of the last student.
        right: images for which the masked teacher is right, on the device.
        agreeing: images for which it names the class that the whole one names, on the device.
    """

    structure: MaskStructure
    shared: Tensor | float = 0.0
    right: Tensor | int = 0
    agreeing: Tensor | int = 0


class Trajectory:
    """Masks of one student at several points of its training, and the accuracy of a teacher under them.

    Example:
        >>> trajectory = Trajectory({0: first, 12: middle, 300: last}, teacher, 98, criteria=("student", "random"))
        >>> for images, labels in validation:
        ...     trajectory.update(images, labels)
        >>> trajectory.rows()
        [{'criterion': 'student', 'epoch': 0, 'teacher': 41.2, 'joint': 1.6, 'centre': 0.36, 'edge': 0.57, ...}, ...]
    """

    def __init__(
        self,
        students: Mapping[int | str, Backbone],
        teacher: Teacher | None,
        kept: int,
        *,
        criteria: Sequence[str] = ("student",),
        grid: TokenGrid | None = None,
        attention: Attention | None = None,
        order: Order = "top",
        seed: int = 0,
    ) -> None:
        """
        Args:
            students: the same network with the weights of several epochs, the last one behind all others. A name in
                place of an epoch stands for weights of no epoch.
            teacher: frozen; it takes the students' inputs. None looks at masks alone.
            kept: patches that a mask keeps.
            criteria: who ranks patches. Those without a student in them are asked once.
            grid: the patches among which masks choose; by default the teacher's, or else the students'.
            attention: which attention ranks patches; by default that of the class token in the last block.
            order: keep the highest ranked patches, or the lowest.
            seed: of random masks.

        Raises:
            UserError: when somebody who shall rank patches cannot, or patches cannot be left out of the teacher.
        """
        self.students = {label: student.eval() for label, student in students.items()}
        self.last = list(students)[-1]
        self.teacher, self.order, self.kept = teacher, order, kept
        first = next(iter(self.students.values()))
        if teacher is not None and not teacher.network.maskable:
            raise teacher.network.cannot_leave_out()
        self.grid = grid or (first.grid if teacher is None else teacher.grid)
        self.criteria: dict[str, Criterion] = {
            name: make_criterion(name, attention or Attention()) for name in criteria
        }
        captures = [criterion.capture(first) for criterion in self.criteria.values()]
        if teacher is not None:
            for criterion in self.criteria.values():
                criterion.ranking(teacher)
        self.capture = Capture.union([*captures, Capture(head=bool(first.num_classes))])
        self.generator = torch.Generator().manual_seed(seed)
        self.images = 0
        self._found: dict[tuple[str, int | str | None], _Masks] = {}
        self._right: dict[int | str, Tensor | int] = dict.fromkeys(self.students, 0)
        self._whole: Tensor | int = 0
        self._told = False  # whether labels were seen

    @torch.inference_mode()
    def update(self, inputs: Float[Tensor, "b ch *pixels"], targets: Int64[Tensor, "b"] | None) -> None:
        """Look at a batch.

        Args:
            inputs: normalised with the students' statistics.
            targets: class numbers; without them nobody's accuracy is counted.
        """
        targets = None if targets is None else targets.to(inputs.device, non_blocking=True)
        self._told = self._told or targets is not None
        named = None
        if self.teacher is not None and self.teacher.num_classes:
            named = self._answer(inputs, None)
            if targets is not None:
                self._whole = self._whole + (named == targets).sum()
        # On the CPU, so that neither the batch size nor the device changes a mask; the same for all students.
        noise = torch.rand(len(inputs), self.grid.count, generator=self.generator).to(inputs.device)
        masks: dict[tuple[str, int | str | None], Tensor] = {}
        for label, student in self.students.items():
            output = student(inputs, capture=self.capture)
            if targets is not None and output.prediction is not None:
                self._right[label] = self._right[label] + (output.prediction.argmax(dim=1) == targets).sum()
            scene = Scene(inputs, student, output, self.teacher, self.grid, noise)
            for name, criterion in self.criteria.items():
                if "student" in name:
                    masks[name, label] = criterion.select(scene, self.kept, order=self.order)
        nobody = Scene(inputs, next(iter(self.students.values())), Output(), self.teacher, self.grid, noise)
        for name, criterion in self.criteria.items():
            if "student" not in name:
                masks[name, None] = criterion.select(nobody, self.kept, order=self.order)
        for (name, asked), keep in masks.items():
            final = masks.get(("student", self.last)) if asked is None else masks[name, self.last]
            self._count(name, asked, keep, final, inputs, targets, named)
        self.images += len(inputs)

    def _count(
        self,
        name: str,
        label: int | str | None,
        keep: Int[Tensor, "b k"],
        final: Int[Tensor, "b k"] | None,
        inputs: Tensor,
        targets: Tensor | None,
        named: Tensor | None,
    ) -> None:
        found = self._found.setdefault((name, label), _Masks(MaskStructure(self.grid, self.kept)))
        found.structure.add(keep)
        if final is not None:
            found.shared = found.shared + overlap(keep, final, self.grid.count).sum()
        if named is not None:
            answer = self._answer(inputs, keep)
            found.agreeing = found.agreeing + (answer == named).sum()
            if targets is not None:
                found.right = found.right + (answer == targets).sum()

    def _answer(self, inputs: Tensor, keep: Tensor | None) -> Int64[Tensor, "b"]:
        assert self.teacher is not None
        prediction = self.teacher(inputs, keep=keep).prediction
        assert prediction is not None
        return prediction.argmax(dim=1)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each criterion and student; criteria that no student takes part in have one row.

        Returns:
            Of each: criterion (with "(untrained)" behind it where the student has no epoch); epoch (None where no
            student takes part, or it has none); kept and patches; student and teacher, top-1 accuracy in percent, the
            latter under the mask; agreement of the masked teacher with the whole one; joint, centre, edge and
            correlation (see `MaskStructure`); overlap with the masks of the last student (IoU); and rates, how often
            each patch is kept. Numbers that were not counted are None.
        """
        asked = self.teacher is not None and bool(self.teacher.num_classes)
        ordered = [(name, label) for name in self.criteria for label in (*self.students, None)]
        rows = []
        for name, label in ordered:
            if (found := self._found.get((name, label))) is None:
                continue
            structure = found.structure
            rows.append(
                {
                    "criterion": f"{name} ({label})" if isinstance(label, str) else name,
                    "epoch": label if isinstance(label, int) else None,
                    "kept": self.kept,
                    "patches": self.grid.count,
                    "student": None if label is None else self._percent(self._right[label], self._labelled(label)),
                    "teacher": self._percent(found.right, asked),
                    "agreement": round(int(found.agreeing) / self.images, 6) if asked else None,
                    "joint": round(structure.joint, 6),
                    "centre": round(structure.centre, 6),
                    "edge": None if structure.edge is None else round(structure.edge, 6),
                    "overlap": round(float(found.shared) / self.images, 6) if self._comparable(name) else None,
                    "correlation": {step: round(value, 6) for step, value in structure.correlation().items()},
                    "rates": [round(rate, 4) for rate in structure.rates.tolist()],
                }
            )
        return rows

    def summary(self) -> dict[str, Any]:
        """What the rows have in common: images, grid, the whole teacher's accuracy, and what chance gives."""
        asked = self.teacher is not None and bool(self.teacher.num_classes)
        return {
            "images": self.images,
            "grid": [self.grid.t, self.grid.h, self.grid.w],
            "kept": self.kept,
            "whole_teacher": self._percent(self._whole, asked),
            "chance_overlap": round(chance_overlap(self.kept, self.grid.count), 6),
        }

    def _labelled(self, label: int | str) -> bool:
        return bool(self.students[label].num_classes)

    def _comparable(self, name: str) -> bool:
        return "student" in name or "student" in self.criteria

    def _percent(self, right: Tensor | int, counted: bool) -> float | None:
        return round(100 * int(right) / self.images, 4) if counted and self._told else None


# --- from a run --------------------------------------------------------------------------------------------------


def students_of(run: Run) -> dict[int | str, Backbone]:
    """The student of a run at each of its snapshots.

    Raises:
        UserError: when it left none, they cannot be read, or the network has no patches.
    """
    check_snapshots(run)
    students: dict[int | str, Backbone] = {}
    for epoch, file in run.snapshots.items():
        students[epoch] = with_tokens(student_with(read_weights(file), run.path, file))
    return students


def look_at(
    trajectory: Trajectory,
    source: DataSource,
    config: dict[str, Any],
    *,
    labelled: bool = True,
    images: int | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    workers: int | None = None,
) -> None:
    """Show validation images to a trajectory, made ready as in the run's own validation.

    Args:
        trajectory: looks at them.
        source: whose validation set they are of.
        config: of the run.
        labelled: whether its labels are those of the networks' classes.
        images: how many, evenly spread; None takes all.
        batch_size: images per step.
        device: auto, cpu, cuda, ...
        workers: loader processes; None chooses by the data and the cores.

    Raises:
        UserError: when none is readable, or the network takes something else.
    """
    if images is not None and images < 1:
        raise UserError("images must be at least 1", images)
    first = next(iter(trajectory.students.values()))
    subject = made_ready(first, source, config, ViewOptions(augment=Augment()), None)
    reader = Reader(subject, batch_size=batch_size, device=device, workers=workers)
    for student in trajectory.students.values():
        student.to(reader.place)
    shown = source.val if images is None else EvenlySpread(source.val, images)
    for inputs, targets in reader.batches(shown, CorruptLog.of(source.val, reader.bad_share), "looking at masks"):
        trajectory.update(inputs, targets if labelled else None)
    if not trajectory.images:
        raise UserError("At least one image must be readable", f"none of {len(shown)}")


def attention_of(run: Run) -> Attention:
    """Which attention of its student a run ranked patches by."""
    layer = run.setting("saliency_layer")
    return Attention("last" if layer is None else layer, run.setting("saliency"))
