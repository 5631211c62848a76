"""The criterion that chooses between two others, by what the masked teacher makes of them."""

from jaxtyping import Float
from torch import Tensor

from vitdistill.methods.selection.attention import StudentAttention
from vitdistill.methods.selection.criterion import Attention, Criterion, Scene
from vitdistill.methods.selection.random import Random
from vitdistill.models.network import Network
from vitdistill.types import Capture


class Auto(Criterion):
    """The student's attention, or chance, whichever leaves the teacher more of what it knows.

    A teacher that never saw a picture with patches missing may know less of the patches that the student attends to
    than of random ones. `Ranked` asks it about both, at half the patches, and sets `chosen`. It begins with the
    student's attention, and changes when the answers differ by more than chance.

    Attributes:
        candidates: by name.
        chosen: the name of the one in use.
    """

    def __init__(self, attention: Attention) -> None:
        self.candidates: dict[str, Criterion] = {"student": StudentAttention.of(attention), "random": Random()}
        self.chosen = "student"

    @classmethod
    def of(cls, attention: Attention) -> "Auto":
        return cls(attention)

    def capture(self, student: Network) -> Capture:
        return Capture.union(one.capture(student) for one in self.candidates.values())

    @property
    def draws(self) -> bool:  # type: ignore[override]
        return self.candidates[self.chosen].draws

    def waits(self, student: Network) -> bool:
        return self.candidates[self.chosen].waits(student)

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        return self.candidates[self.chosen].scores(scene)
