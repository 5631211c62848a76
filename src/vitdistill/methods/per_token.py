"""Per-token feature distillation: the student sees everything and matches the teachers' features at every token.

The alternative that MVD compares with masked feature modelling (Table 10: worse).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.methods.masked_modelling import freeze_head
from vitdistill.methods.method import Method, Pass
from vitdistill.methods.targets import Target
from vitdistill.methods.teacher import Teacher
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.types import StepOutput


class PerToken(Method):
    """Sum over targets of weight * distance(MLP(student's tokens), target), over all tokens of the whole input."""

    uses_labels = False

    def __init__(self, student: Backbone | nn.Module, targets: Mapping[str, tuple[Target, float]]) -> None:
        """
        Args:
            student: sees every token.
            targets: by the name under which each loss is reported, with its weight.

        Raises:
            UserError: when there is no target.
        """
        super().__init__(build(student))
        if not targets:
            raise UserError("Per-token distillation needs at least one target")
        self.targets = {name: target for name, (target, _) in targets.items()}
        self.weights = {name: weight for name, (_, weight) in targets.items()}
        width = self.student.width
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, target.channels))
                for name, target in self.targets.items()
            }
        )
        freeze_head(self.student)

    @property
    def teachers(self) -> list[Teacher]:
        return [teacher for target in self.targets.values() for teacher in target.teachers]

    def teacher_passes(self) -> list[Pass]:
        return [one for target in self.targets.values() for one in target.passes()]

    def forward(
        self,
        images: Float[Tensor, "b ch *pixels"],
        targets: Int[Tensor, "b"] | Float[Tensor, "b c"] | None = None,
        progress: float = 0.0,
    ) -> StepOutput:
        tokens = self.student(images).tokens
        assert tokens is not None
        terms = {}
        for name, target in self.targets.items():
            with self.clock("teacher"), torch.no_grad():
                values = target.values(images)
            terms[name] = target.distance(self.heads[name](tokens[:, self.student.prefix :]), values)
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return StepOutput(loss=loss, terms={name: term.detach() for name, term in terms.items()})
