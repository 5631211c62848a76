"""Training without a teacher: a task's own loss on the labels."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.methods.method import Method
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.tasks.classification import Classification
from vitdistill.tasks.task import Task
from vitdistill.types import StepOutput


class Supervised(Method):
    """A task's loss: cross-entropy on hard, smoothed or mixed labels, or what other tasks have.

    Example:
        >>> method = Supervised(timm.create_model("deit_tiny_patch16_224"))
        >>> method(torch.randn(2, 3, 224, 224), torch.tensor([3, 5])).loss.backward()
    """

    def __init__(self, student: Backbone | nn.Module, *, task: Task | None = None) -> None:
        """
        Args:
            student: the network to train, with a head for the task.
            task: what the labels mean; None is classification into the student's classes, without smoothing.

        Raises:
            UserError: when the network cannot be trained for the task.
        """
        network = build(student)
        goal = task or Classification(network.num_classes)
        goal.check(network)
        super().__init__(network, goal)

    def forward(self, images: Float[Tensor, "b ch *pixels"], targets: Tensor, progress: float = 0.0) -> StepOutput:
        assert self.task is not None
        prediction = self.task.predict(self.student, images, targets)
        terms = self.task.loss(prediction, targets)
        return StepOutput(
            loss=torch.stack(list(terms.values())).sum(),
            terms={name: term.detach() for name, term in terms.items()},
            logits=prediction if prediction.ndim == 2 else None,
        )
