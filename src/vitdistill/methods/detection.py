"""Action detection: what every person in a key frame does, several actions at once, given their boxes."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics import Metric

from vitdistill.data.actions.annotations import ActionData
from vitdistill.evaluation.frame_map import FrameMeanAP
from vitdistill.methods.method import Method
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.families.video_vit import VideoViT, check_video
from vitdistill.models.surgery.action_head import box_logits
from vitdistill.types import StepOutput


class Detection(Method):
    """Binary cross-entropy per class, over the boxes that there are; validated by frame mAP.

    Targets are (b, boxes, 4 + c): a box as shares of width and height, then 0 or 1 per class; without the classes
    (b, boxes, 4) where they are not known. Rows that pad to a common number of boxes are NaN.
    """

    score: ClassVar[str] = "map"

    def __init__(self, student: Backbone | nn.Module, data: ActionData | None = None) -> None:
        """
        Args:
            student: a network that `models.detection.detector` made.
            data: what validation scores against; None in training loops of your own.
        """
        super().__init__(check_video(build(student), "network that detects actions"))
        self.data = data

    def forward(
        self, images: Float[Tensor, "b ch *pixels"], targets: Float[Tensor, "b boxes values"], progress: float = 0.0
    ) -> StepOutput:
        loss = self._loss(self.predict(self.student, images, targets), targets)
        return StepOutput(loss=loss, terms={"bce": loss.detach()})

    def predict(
        self, network: Backbone, images: Float[Tensor, "b ch *pixels"], targets: Float[Tensor, "b boxes values"]
    ) -> Float[Tensor, "b boxes c"]:
        """Class scores of every box, before the sigmoid; those of padding mean nothing."""
        assert isinstance(network, VideoViT)
        return box_logits(network, images, targets[..., :4].nan_to_num())

    def validation_loss(
        self, predictions: Float[Tensor, "b boxes c"], targets: Float[Tensor, "b boxes values"]
    ) -> Float[Tensor, ""] | None:
        if targets.shape[-1] == 4:
            return None
        return self._loss(predictions, targets) * len(targets)

    def metrics(self) -> dict[str, Metric]:
        return {} if self.data is None else {"map": FrameMeanAP(self.data)}

    @staticmethod
    def _loss(logits: Float[Tensor, "b boxes c"], targets: Float[Tensor, "b boxes values"]) -> Float[Tensor, ""]:
        """Mean over classes and real boxes, without looking at the device's numbers from here."""
        real = torch.isfinite(targets[..., 0]).float()
        actions = targets[..., 4:].nan_to_num()
        per_box = binary_cross_entropy_with_logits(logits.float(), actions, reduction="none").mean(dim=-1)
        return (per_box * real).sum() / real.sum().clamp_min(1)
