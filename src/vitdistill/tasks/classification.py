"""One class per sample."""

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy as plain_cross_entropy
from torchmetrics import Metric

from vitdistill.losses.logits import cross_entropy
from vitdistill.models.network import Network
from vitdistill.tasks.task import Task
from vitdistill.types import Output


class Classification(Task):
    score: ClassVar[str] = "top1"
    columns: ClassVar[dict[str, str]] = {"top1": "top-1 %", "top5": "top-5 %"}
    loss_name: ClassVar[str] = "ce"

    def __init__(self, classes: int, *, smoothing: float = 0.0) -> None:
        self.classes, self.smoothing = classes, smoothing

    def predict(self, network: Network, inputs: Float[Tensor, "b ch *pixels"], targets: Tensor) -> Tensor:
        prediction = network(inputs).prediction
        assert prediction is not None
        return prediction

    def loss(self, output: Output, targets: Tensor) -> Float[Tensor, ""]:
        assert output.prediction is not None
        return cross_entropy(output.prediction, targets, self.smoothing)

    def validation_loss(self, predictions: Tensor, targets: Tensor) -> Float[Tensor, ""] | None:
        return plain_cross_entropy(predictions.float(), targets, reduction="sum")

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        options: dict[str, Any] = {"average": "micro", "validate_args": False}
        return {f"top{k}": MulticlassAccuracy(self.classes, top_k=min(k, self.classes), **options) for k in (1, 5)}
