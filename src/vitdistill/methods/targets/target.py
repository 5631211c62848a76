"""What a student predicts at patches that it does not see, or at all tokens: a target gives the values, and how far a
prediction is.

To add a target: subclass `Target` in a file of its own; `MaskedModelling` takes any number of them.
"""

from abc import ABC, abstractmethod

from jaxtyping import Float, Int
from torch import Tensor

from vitdistill.methods.method import Pass
from vitdistill.models.decoder import Where
from vitdistill.models.teacher import Teacher


class Target(ABC):
    """h(x) of masked feature modelling (MVD, Eq. 1).

    Attributes:
        at: the tokens at which predictions are compared: those of the masked patches, of all patches, or all.
    """

    at: Where = "masked"

    @property
    @abstractmethod
    def channels(self) -> int:
        """Values per token."""

    @property
    def teachers(self) -> list[Teacher]:
        """Frozen networks behind the target."""
        return []

    def passes(self, visible: int, masks: int = 1) -> list[Pass]:
        """What `values` runs of the teachers for one input; by default a whole pass of each.

        Args:
            visible: patches that the student sees, for teachers that see the same.
            masks: of each input.
        """
        return [Pass("teacher", teacher.network, times=teacher.passes) for teacher in self.teachers]

    @abstractmethod
    def values(
        self, inputs: Float[Tensor, "b ch *pixels"], kept: Int[Tensor, "bm k"], masked: Int[Tensor, "bm r"]
    ) -> Float[Tensor, "b m c"]:
        """The target at every patch, in the order of the grid; called without gradient.

        Where `at` is all, special tokens come first. A target that depends on the mask has a row for each mask.

        Args:
            inputs: normalised with the student's statistics.
            kept: patches that the student sees, for targets that depend on them; several masks of an input follow one
                another.
            masked: the others.
        """

    @abstractmethod
    def distance(self, prediction: Float[Tensor, "b q c"], values: Float[Tensor, "b q c"]) -> Float[Tensor, ""]:
        """The loss."""
