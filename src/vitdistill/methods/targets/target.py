"""What a student predicts: a target gives the values to predict at patches, and how far a prediction is.

To add a target: subclass `Target` in a file of its own; `MaskedModelling` takes any list of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.methods.method import Method, Pass
from vitdistill.models.backbone import Backbone
from vitdistill.models.teacher import Teacher
from vitdistill.types import StepOutput


class Target(ABC):
    """h(x) of masked feature modelling (MVD, Eq. 1)."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Values per patch."""

    @property
    def teachers(self) -> list[Teacher]:
        """Frozen networks behind the target."""
        return []

    def passes(self) -> list[Pass]:
        """What `values` runs of the teachers for one input; by default a whole pass of each."""
        return [Pass(teacher.backbone) for teacher in self.teachers]

    @abstractmethod
    def values(self, images: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b n c"]:
        """The target at every patch; called without gradient."""

    @abstractmethod
    def distance(self, prediction: Float[Tensor, "b r c"], values: Float[Tensor, "b r c"]) -> Float[Tensor, ""]:
        """The loss."""


class TargetMethod(Method):
    """A student that predicts targets: the weighted sum of their distances. What it sees, and from what it predicts
    them, is a subclass's matter."""

    def __init__(self, student: Backbone, targets: Mapping[str, tuple[Target, float]]) -> None:
        """
        Args:
            student: the network.
            targets: by the name under which each loss is reported, with its weight.

        Raises:
            UserError: when there is no target.
        """
        super().__init__(student)
        if not targets:
            raise UserError("At least one target is needed")
        self.targets = {name: target for name, (target, _) in targets.items()}
        self.weights = {name: weight for name, (_, weight) in targets.items()}

    @property
    def teachers(self) -> list[Teacher]:
        return [teacher for target in self.targets.values() for teacher in target.teachers]

    def teacher_passes(self) -> list[Pass]:
        return [one for target in self.targets.values() for one in target.passes()]

    def values(self, target: Target, images: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b n c"]:
        """A target at every patch, on the teacher's clock where it has one."""
        with self.clock("teacher") if target.teachers else nullcontext(), torch.no_grad():
            return target.values(images)

    def weighted(self, terms: Mapping[str, Float[Tensor, ""]]) -> StepOutput:
        """The step's output for every target's own loss."""
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return StepOutput(loss=loss, terms={name: term.detach() for name, term in terms.items()})
