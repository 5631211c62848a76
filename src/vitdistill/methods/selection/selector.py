"""Which patches the teacher sees, or, for ablations, the student: the interface of what decides it."""

from collections.abc import Callable, Iterable
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.methods.method import Pass, Spent
from vitdistill.methods.selection.mass import Groups
from vitdistill.methods.terms.term import Term
from vitdistill.models.backbone import Backbone
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.masking import Masking
from vitdistill.types import Capture, Output


class Selector(nn.Module):
    """Decides what the student sees before its pass, and what the teacher sees after it. By default: everything.

    A selector may learn from what the teacher answers. What it then knows is the same in all processes, and `state`
    and `load` carry it through checkpoints.
    """

    def check(self, student: Network, teacher: Teacher, terms: Iterable[Term] = ()) -> None:
        """Refuse what is impossible, before the first step.

        Args:
            student: the network to train.
            teacher: whose patches may be left out.
            terms: what the student learns from the teacher's pass.

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
        noise: Float[Tensor, "b n"] | None = None,
    ) -> Int[Tensor, "b k"] | Groups | None:
        """Patches that the teacher sees, in its own coordinates, after the student's pass; None for all.

        Args:
            inputs: of the step, or of a part of its batch.
            output: the student's pass over them; where the selection does not wait for it, with `kept` alone.
            student: the network to train.
            teacher: the teacher.
            progress: of the training.
            noise: what chance goes by, where it has a part; None draws it.
        """
        return None

    # --- batches that are seen in parts --------------------

    def check_parts(self) -> None:
        """
        Raises:
            UserError: when patches are chosen for a batch as a whole, so that its parts cannot be seen one by one.
        """

    def waits(self, student: Network, teacher: Teacher, progress: float) -> bool:
        """Whether what the teacher sees is known only after the student's pass."""
        return type(self).for_teacher is not Selector.for_teacher

    def draws(self, student: Network, teacher: Teacher, progress: float) -> bool:
        """Whether chance has a part in what the teacher sees, that goes by `noise`."""
        return False

    def observe(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        output: Output,
        student: Network,
        teacher: Teacher,
        keep: Int[Tensor, "b k"] | Groups | None,
        seen: Output,
        progress: float,
    ) -> dict[str, float]:
        """Take note of a training step, and now and then ask the teacher more.

        Args:
            inputs: of the step.
            output: the student's pass.
            student: the network to train.
            teacher: the teacher.
            keep: what `for_teacher` kept.
            seen: its pass over that.
            progress: of the training.

        Returns:
            What is worth averaging over an epoch, by name (`Step.measured`).
        """
        return {}

    def ranking_passes(self, student: Network, teacher: Teacher, progress: float) -> list[Pass]:
        """What the selection itself runs, for the cost report."""
        return []

    # --- what it has learned --------------------

    def state(self, total: Callable[[Tensor], Tensor] = lambda local: local) -> dict[str, Any]:
        """What a checkpoint must hold: plain values and lists.

        Args:
            total: the sum of a tensor over all processes, which all call.
        """
        return {}

    def load(self, state: dict[str, Any], *, first: bool = True) -> None:
        """Take up a state.

        Args:
            state: of `state`; of another selector or an earlier version it is empty.
            first: whether this is the first process, which takes up what was summed over all.
        """

    def observations(self) -> dict[str, float]:
        """What it has found out so far, for the metrics of an epoch, by column; in percent."""
        return {}

    def doubt(self, student: Network, teacher: Teacher) -> str | None:
        """Why the selection may be doing harm, and what to do, in one line; None where nothing speaks for it."""
        return None

    def describe(self) -> dict[str, Any]:
        """What it has decided by itself, for run.json."""
        return {}

    def spent(self, state: dict[str, Any], student: Network, teacher: Teacher, capture: Capture) -> Spent | None:
        """What the teacher's side of a training has cost so far; None where the schedule tells.

        Args:
            state: of `state`, summed over all processes.
            student: the network to train.
            teacher: the teacher.
            capture: where the teacher's pass stops.
        """
        return None


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
        noise: Float[Tensor, "b n"] | None = None,
    ) -> Int[Tensor, "b k"] | None:
        return output.kept

    def waits(self, student: Network, teacher: Teacher, progress: float) -> bool:
        return False  # for what the student sees, not for its pass
