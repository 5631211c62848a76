"""What every method is: a plain `nn.Module` from a batch to a `StepOutput`, usable in anyone's own loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.methods.teacher import Teacher
from vitdistill.models.backbone import Backbone
from vitdistill.types import NOTHING, Capture, StepOutput


class Method(nn.Module, ABC):
    """A way of training a student.

    Attributes:
        student: the adapter of the network being trained; `student.net` is what gets exported.
        clock: `with self.clock("teacher"):` marks where time goes; does nothing unless a trainer sets it.
        uses_labels: False for pre-training, which ignores `targets` and is validated by its own loss.
    """

    uses_labels: ClassVar[bool] = True
    student: Backbone

    def __init__(self, student: Backbone) -> None:
        super().__init__()
        self.student = student
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
            targets: class numbers, or soft targets under mixup; ignored where `uses_labels` is False.
            progress: share of the training that is done, for schedules.
        """
