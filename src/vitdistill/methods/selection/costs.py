"""What a masked teacher costs, in multiply-accumulates (MACs)."""

from typing import Literal

from vitdistill.methods.method import Pass
from vitdistill.methods.options import training_forwards
from vitdistill.methods.selection.criterion import Criterion
from vitdistill.methods.selection.ledger import Ledger
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.types import NOTHING, Capture


class Costs:
    """MACs per input of passes over some patches, and of what ranks these; each is counted once."""

    def __init__(self, criterion: Criterion, mask: Literal["teacher", "student"]) -> None:
        """
        Args:
            criterion: who ranks the patches.
            mask: who sees only the kept ones.
        """
        self.criterion, self.mask = criterion, mask
        self._known: dict[tuple[int, tuple[int, ...], int | None, Capture], float] = {}

    def of(self, kept: int, student: Network, teacher: Teacher) -> float:
        """Of the teacher's pass over so many patches, and of what ranks them."""
        some = kept < teacher.grid.count
        own = self.macs(Pass("teacher", teacher.network, kept if some else None, times=teacher.passes))
        return own + (self.ranking(student, teacher) if some else 0.0)

    def of_step(self, kept: int, student: Network, teacher: Teacher) -> float:
        """Of a training step: the same, and the student's training."""
        forwards = training_forwards(student.trains_body)
        return self.of(kept, student, teacher) + forwards * self.macs(Pass("student", student))

    def ranking(self, student: Network, teacher: Teacher) -> float:
        """Of all that ranks patches, beyond the passes of a step."""
        return sum(self.macs(one) for one in self.rankings(student, teacher))

    def rankings(self, student: Network, teacher: Teacher) -> list[Pass]:
        """The passes that rank patches, beyond those of a step."""
        passes = [Pass("ranking", asked.network, capture=where) for asked, where in self.criterion.ranking(teacher)]
        own = self.criterion.capture(student)
        if self.mask == "student" and own.points:
            passes.append(Pass("student", student, capture=own))
        return passes

    def spent(self, ledger: Ledger, student: Network, teacher: Teacher, capture: Capture) -> float:
        """Of all that a ledger counts.

        Args:
            ledger: of the inputs that the teacher saw.
            student: the network to train.
            teacher: the teacher.
            capture: where its passes in training stop; questions go up to its head.
        """
        total = ledger.ranked * self.ranking(student, teacher)
        for inputs, stop in ((ledger.seen, capture), (ledger.asked, NOTHING)):
            for kept, number in enumerate(inputs):
                if number:
                    some = kept if kept < teacher.grid.count else None
                    total += number * self.macs(Pass("teacher", teacher.network, some, stop, teacher.passes))
        return total

    def macs(self, one: Pass) -> float:
        """Of a pass. Networks that are not known by their layers are traced, which takes a while."""
        key = id(one.network), one.network.input.shape, one.kept, one.capture
        if key not in self._known:
            self._known[key] = one._replace(times=1).macs
        return one.times * self._known[key]
