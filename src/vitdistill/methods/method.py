"""What every method is: a plain `nn.Module` from a batch to a `Step`, usable in anyone's own loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.models.backbone import Backbone
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.tasks.task import Task
from vitdistill.types import NOTHING, Capture, Step


class Pass(NamedTuple):
    """One forward pass of a network over every input, for counting what a step computes.

    Attributes:
        role: whose pass it is; "ranking" is a frozen network's that only says which patches are kept.
        network: the network.
        kept: how many patches enter its blocks; None for all.
        capture: where it stops.
        times: so many such passes.
        embeds: False where the patch embedding is that of an earlier pass.
    """

    role: Literal["student", "teacher", "ranking"]
    network: Network
    kept: int | None = None
    capture: Capture = NOTHING
    times: int = 1
    embeds: bool = True

    @property
    def macs(self) -> float:
        """Multiply-accumulates for one input."""
        macs = self.network.macs(self.kept, self.capture)
        return self.times * (macs.total if self.embeds else macs.total - macs.patch_embed)

    def over(self, masks: int) -> list["Pass"]:
        """A pass for each of so many masks of an input, which share its embedding."""
        return [self, self._replace(times=masks - 1, embeds=False)] if masks > 1 else [self]


class Spent(NamedTuple):
    """What the teacher's side of a training has computed.

    Attributes:
        macs: multiply-accumulates of the teacher's passes, of those that ranked patches, and of questions.
        inputs: seen in training.
    """

    macs: float
    inputs: int


class Method(nn.Module, ABC):
    """A way of training a student.

    Attributes:
        student: the adapter of the network being trained; `student.net` is what gets exported.
        task: what the labels mean; None for pre-training, which ignores them and is validated by its own loss.
        decays_positions: whether weight decay is meant for position embeddings and tokens as well, as for all
            parameters of two or more dimensions.
        clock: `with self.clock("teacher"):` marks where time goes; does nothing unless a trainer sets it.
    """

    student: Network
    task: Task | None
    decays_positions = False

    def __init__(self, student: Network, task: Task | None = None) -> None:
        """
        Raises:
            UserError: when the student cannot be trained for the task.
        """
        super().__init__()
        if task is not None:
            task.check(student)
        self.student, self.task = student, task
        self.clock: Callable[[str], AbstractContextManager[object]] = nullcontext  # of the part's name

    @property
    def teachers(self) -> list[Teacher]:
        """Frozen networks that the method consults, in no state dict; none by default."""
        return []

    @property
    def masked(self) -> Backbone | None:
        """The network whose patches are left out, for reports; None where none is masked on purpose."""
        return None

    def kept_patches(self, progress: float) -> int | None:
        """Patches of `masked` that it sees at a training progress in [0, 1]; None when it sees all."""
        return None

    def passes(self, progress: float) -> list[Pass]:
        """What a step at a training progress in [0, 1] runs, for the cost report."""
        return [Pass("student", self.student)]

    def spent(self, remembered: dict[str, Any]) -> Spent | None:
        """What the teacher's side of the training has cost so far; None where `passes` says it all.

        Args:
            remembered: of `remembered`, summed over all processes.
        """
        return None

    def remembered(self, total: Callable[[Tensor], Tensor] = lambda local: local) -> dict[str, Any]:
        """What the method has learned about its teacher, for checkpoints: plain values and lists.

        In a loop of your own, save it beside the method's state dict.

        Args:
            total: the sum of a tensor over all processes; every process calls it.
        """
        return {}

    def recall(self, state: dict[str, Any], *, first: bool = True) -> None:  # most methods have nothing to recall
        """Take up what `remembered` gave.

        Args:
            state: empty in checkpoints of earlier versions.
            first: whether this is the first process, which takes up what was summed over all.
        """

    def observations(self) -> dict[str, float]:
        """What the method has found out about its teacher so far, for an epoch's metrics; equal in all processes."""
        return {}

    def doubt(self) -> str | None:
        """Why the teacher may mislead the student, and what to do, in one line; None where nothing speaks for it."""
        return None

    def describe(self) -> dict[str, Any]:
        """What the method has decided by itself, for run.json."""
        return {}

    def after_backward(self, progress: float) -> None:  # most methods have nothing to do
        """Called before every optimizer step, when the gradients are there."""

    def after_step(self, progress: float) -> None:  # most methods have nothing to do
        """Called after every optimizer step."""

    def artifacts(self, state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Weights that a finished run leaves beside the student's, by file name.

        Args:
            state: the method's whole state dict.
        """
        return {}

    @abstractmethod
    def forward(
        self, inputs: Float[Tensor, "b ch *pixels"] | Any, targets: Tensor | None = None, progress: float = 0.0
    ) -> Step:
        """One training step's loss.

        Args:
            inputs: normalised with the student's statistics; a tuple of such tensors where the method takes several
                views of each input.
            targets: of the task: class numbers, or soft targets under mixup, say; ignored where there is no task.
            progress: share of the training that is done, for schedules.
        """


def freeze_unreached(student: Network, reached: Iterable[nn.Parameter]) -> None:
    """Keep from training what the loss does not reach: DDP waits for gradients of all that trains.

    Args:
        student: changed in place.
        reached: the parameters on which the loss depends.
    """
    trained = set(reached)
    for parameter in student.net.parameters():
        if parameter not in trained:
            parameter.requires_grad_(False)
