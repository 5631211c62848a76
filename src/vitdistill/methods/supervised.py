"""Training without a teacher."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.methods.method import Method
from vitdistill.models.families import as_network
from vitdistill.models.network import Network
from vitdistill.tasks.classification import Classification
from vitdistill.tasks.task import Task
from vitdistill.types import Step


class Supervised(Method):
    """The task's loss on labels: for classification, cross-entropy on hard, smoothed or mixed labels.

    Example:
        >>> Supervised(timm.create_model("deit_tiny_patch16_224"), task=Classification(1000, smoothing=0.1))
    """

    task: Task

    def __init__(self, student: Network | nn.Module, *, task: Task | None = None) -> None:
        """
        Args:
            student: the network to train.
            task: what the labels mean; None is classification into the student's classes, without smoothing.

        Raises:
            UserError: when the network cannot be trained for the task.
        """
        network = as_network(student)
        goal = task or Classification(network.num_classes)
        goal.check(network)
        super().__init__(network, goal)

    def forward(
        self, inputs: Float[Tensor, "b ch *pixels"], targets: Tensor | None = None, progress: float = 0.0
    ) -> Step:
        assert targets is not None
        prediction = self.task.predict(self.student, inputs, targets)
        losses = self.task.loss(prediction, targets)
        parts = {name: value.detach() for name, value in losses.items()}
        return Step(torch.stack(list(losses.values())).sum(), parts, prediction)
