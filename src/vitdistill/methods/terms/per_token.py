"""Features of a teacher at every patch, predicted from the student's final tokens by an MLP.

The alternative that MVD compares with masked feature modelling (Table 10: worse).
"""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.losses.features import FeatureLoss, feature_distance
from vitdistill.methods.terms.term import Term, common_patches
from vitdistill.models.backbone import Backbone
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.types import Capture, Output


class PerToken(Term):
    """Distance between MLP(student's final patches) and the output of the teacher's last block."""

    separable: ClassVar[bool] = True

    def __init__(
        self,
        student: Backbone,
        teacher: Teacher,
        *,
        name: str = "features",
        weight: float = 1.0,
        normalise: bool = False,
        loss: FeatureLoss = "smooth_l1",
    ) -> None:
        """
        Args:
            student: sees every patch.
            teacher: whose features are the target.
            name: under which the loss is reported.
            weight: of the loss.
            normalise: LayerNorm without affine parameters on every target token.
            loss: smooth_l1 (beta 1), l1 or l2.
        """
        super().__init__()
        self.name, self.normalise, self.loss = name, normalise, loss
        self.block = teacher.backbone.depth - 1
        self.weights = {name: weight}
        width = student.width
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, teacher.backbone.width))

    def captures(self) -> tuple[Capture, Capture]:
        return Capture(), Capture.at(self.block, "output", head=False)

    def reached(self, student: Network) -> set[nn.Parameter]:
        assert isinstance(student, Backbone)
        return student.reached(self.captures()[0], prediction=False, special=False)

    def forward(self, student: Output, teacher: Output) -> dict[str, Float[Tensor, ""]]:
        assert student.final is not None
        own, other = common_patches(student, student.final, teacher, teacher.tokens(self.block))
        return {self.name: feature_distance(self.mlp(own), other, loss=self.loss, normalise=self.normalise)}
