"""The interface of a task."""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from vitdistill.models.network import Network
from vitdistill.types import Output


class Task(ABC):
    """What labels mean."""

    score: ClassVar[str]
    columns: ClassVar[dict[str, str]]
    loss_name: ClassVar[str]

    @abstractmethod
    def predict(self, network: Network, inputs: Float[Tensor, "b ch *pixels"], targets: Tensor) -> Tensor: ...
    @abstractmethod
    def loss(self, output: Output, targets: Tensor) -> Float[Tensor, ""]: ...
    @abstractmethod
    def validation_loss(self, predictions: Tensor, targets: Tensor) -> Float[Tensor, ""] | None: ...
    @abstractmethod
    def metrics(self) -> dict[str, Metric]: ...
