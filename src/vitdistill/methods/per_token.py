"""Per-token feature distillation: the student sees everything and matches the teachers' features at every token.

The alternative that MVD compares with masked feature modelling (Table 10: worse).
"""

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.methods.masked_modelling import check_final_norm, freeze_head
from vitdistill.methods.targets.target import Target, TargetMethod
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.types import StepOutput


class PerToken(TargetMethod):
    """Sum over targets of weight * distance(MLP(student's tokens), target), over all tokens of the whole input."""

    def __init__(self, student: Backbone | nn.Module, targets: Mapping[str, tuple[Target, float]]) -> None:
        """
        Args:
            student: sees every token.
            targets: by the name under which each loss is reported, with its weight.

        Raises:
            UserError: when there is no target, or the student's tokens come without a final norm.
        """
        super().__init__(build(student), targets)
        check_final_norm(self.student)
        width = self.student.width
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, target.channels))
                for name, target in self.targets.items()
            }
        )
        freeze_head(self.student)

    def forward(
        self,
        images: Float[Tensor, "b ch *pixels"],
        targets: Int[Tensor, "b"] | Float[Tensor, "b c"] | None = None,
        progress: float = 0.0,
    ) -> StepOutput:
        tokens = self.student(images).tokens
        assert tokens is not None
        own = tokens[:, self.student.prefix :]
        return self.weighted(
            {
                name: target.distance(self.heads[name](own), self.values(target, images))
                for name, target in self.targets.items()
            }
        )
