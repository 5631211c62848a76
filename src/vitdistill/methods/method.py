"""What every method is: a plain `nn.Module` from a batch to a `StepOutput`, usable in anyone's own loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.models.backbone import Backbone
from vitdistill.models.teacher import Teacher
from vitdistill.tasks.task import Task
from vitdistill.types import NOTHING, Capture, StepOutput


class Pass(NamedTuple):
    """One forward pass of a network over every input, for counting what a step computes.

    Attributes:
        backbone: the network.
        patches: how many patches enter its blocks; None for all.
        capture: where it stops.
        times: so many such passes.
        embeds: False where the patch embedding is that of an earlier pass.
    """

    backbone: Backbone
    patches: int | None = None
    capture: Capture = NOTHING
    times: int = 1
    embeds: bool = True


class Method(nn.Module, ABC):
    """A way of training a student.

    Attributes:
        student: the adapter of the network being trained; `student.net` is what gets exported.
        clock: `with self.clock("teacher"):` marks where time goes; does nothing unless a trainer sets it.
        task: what labels mean; None for pre-training, which ignores `targets` and is validated by its own loss.
    """

    student: Backbone

    def __init__(self, student: Backbone, task: Task | None = None) -> None:
        super().__init__()
        self.student, self.task = student, task
        self.clock: Callable[[str], AbstractContextManager[object]] = nullcontext  # of the part's name

    @property
    def teachers(self) -> list[Teacher]:
        """Frozen networks that the method consults, in no state dict; none by default."""
        return []

    def extra_passes(self) -> list[Backbone]:
        """Frozen networks that every masked step runs in full besides the masked teacher; none by default."""
        return []

    def kept_patches(self, progress: float) -> int | None:
        """Patches that the teacher sees at a training progress in [0, 1]; None when it sees all or there is none."""
        return None

    def teacher_capture(self) -> Capture:
        """What the first teacher's pass hands out, which decides where it stops; by default it runs to its logits."""
        return NOTHING

    def student_passes(self, progress: float) -> list[Pass]:
        """What a step at a training progress in [0, 1] runs of the student; by default one pass over everything."""
        return [Pass(self.student)]

    def teacher_passes(self) -> list[Pass]:
        """What a step runs of the teachers where none is masked; by default one pass of the first."""
        return [Pass(teacher.backbone, capture=self.teacher_capture()) for teacher in self.teachers[:1]]

    def after_step(self) -> None:  # most methods have nothing to do
        """Called after every optimizer step."""

    def exports(self, state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Weights that a finished run leaves beside the student's, by file name.

        Args:
            state: the method's whole state dict.
        """
        return {}

    @abstractmethod
    def forward(
        self,
        images: Float[Tensor, "b ch *pixels"],
        targets: Int[Tensor, "b"] | Float[Tensor, "b c"],
        progress: float = 0.0,
    ) -> StepOutput:
        """One training step's loss.

        Args:
            images: normalised with the student's statistics.
            targets: class numbers, or soft targets under mixup; ignored where there is no task.
            progress: share of the training that is done, for schedules.
        """
