"""Training without a teacher: cross-entropy on the labels."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.losses.logits import cross_entropy
from vitdistill.methods.method import Method
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.types import StepOutput


class Supervised(Method):
    """Cross-entropy on hard, smoothed or mixed labels."""

    def __init__(self, student: Backbone | nn.Module, *, smoothing: float = 0.0) -> None:
        super().__init__(build(student))
        self.smoothing = smoothing

    def forward(
        self,
        images: Float[Tensor, "b ch *pixels"],
        targets: Int[Tensor, "b"] | Float[Tensor, "b c"],
        progress: float = 0.0,
    ) -> StepOutput:
        logits = self.student(images).logits
        loss = cross_entropy(logits, targets, self.smoothing)
        return StepOutput(loss=loss, terms={"ce": loss.detach()}, logits=logits)
