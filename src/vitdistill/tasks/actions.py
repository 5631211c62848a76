"""What every person in a key frame does, several actions at once, given their boxes."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics import Metric

from vitdistill.data.actions.annotations import ActionData, open_actions
from vitdistill.data.images.augment import Augment
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, refuse_without_effect
from vitdistill.models.families.video_vit import VideoViT, check_video
from vitdistill.models.network import Network
from vitdistill.models.surgery.action_head import box_logits, detector
from vitdistill.tasks.frame_map import FrameMeanAP
from vitdistill.tasks.task import Task
from vitdistill.types import Output


class Actions(Task):
    """Binary cross-entropy per class, over the boxes that there are; validated by frame mAP.

    Targets are (b, boxes, 4 + c): a box as shares of width and height, then 0 or 1 per class; without the classes
    (b, boxes, 4) where they are not known. Rows that pad to a common number of boxes are NaN.

    Example:
        >>> data = open_actions("/data/ava/videos_15min", ActionFiles(train=..., val=..., start=900))
        >>> method = Supervised(Actions(data).with_head(build("runs/mvd_vit_b_k400")), task=Actions(data))
    """

    score: ClassVar[str] = "map"
    columns: ClassVar[dict[str, str]] = {"map": "frame mAP %"}
    always_fresh: ClassVar[bool] = True
    reads_grid: ClassVar[bool] = True
    per_sample: ClassVar[bool] = False

    def __init__(self, data: ActionData | None = None, classes: int | None = None) -> None:
        """
        Args:
            data: what validation scores against; None in training loops of your own.
            classes: how many actions there are, for `with_head`; None takes those of the data.
        """
        self.data = data
        self.classes = classes if data is None or classes is not None else len(data.labels)

    @classmethod
    def open(cls, data: Any, *, augment: Augment, files: Any = None) -> "tuple[DataSource, Actions]":
        """The folder of videos `data` with the annotations `files`, an `ActionFiles`."""
        if not isinstance(data, str | Path):
            what = f"the open source {data.name}" if isinstance(data, DataSource) else type(data).__name__
            raise UserError("Actions are annotated in files", what, "Give a folder of videos")
        if files.train is None:
            raise UserError("--actions.train is required", remedy="Give the annotations to train on")
        found = open_actions(data, files)
        return found.source(Path(files.val).stem), cls(found)

    def with_head(
        self,
        body: Network,
        *,
        pool: Any = "auto",
        head_init: float = 0.001,
        new_head: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> VideoViT:
        given = {"pool": pool}
        refuse_without_effect(given, {"pool": "auto"}, given, "with --task actions: features are pooled over each box")
        if self.classes is None:
            raise ValueError("A head for actions needs their number: Actions(data) or Actions(classes=...)")
        return detector(body, self.classes, head_init=head_init, dropout=dropout, drop_path=drop_path)

    @classmethod
    def of(cls, network: Network, *, smoothing: float = 0.0) -> "Actions":
        return cls(classes=network.num_classes)

    def check(self, network: Network) -> None:
        check_video(network, "network that detects actions")

    def read(
        self, network: Network, output: Output, targets: Float[Tensor, "b boxes values"]
    ) -> Float[Tensor, "b boxes c"]:
        """Class scores of every box, before the sigmoid; those of padding mean nothing."""
        assert isinstance(network, VideoViT) and output.final is not None
        return box_logits(network, output.final.patches, targets[..., :4].nan_to_num())

    def loss(
        self, prediction: Float[Tensor, "b boxes c"], targets: Float[Tensor, "b boxes values"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Mean over classes and real boxes, without looking at the device's numbers from here."""
        real = torch.isfinite(targets[..., 0]).float()
        actions = targets[..., 4:].nan_to_num()
        per_box = binary_cross_entropy_with_logits(prediction.float(), actions, reduction="none").mean(dim=-1)
        return {"bce": (per_box * real).sum() / real.sum().clamp_min(1)}

    def validation_loss(
        self, prediction: Float[Tensor, "b boxes c"], targets: Float[Tensor, "b boxes values"]
    ) -> Float[Tensor, ""] | None:
        if targets.shape[-1] == 4:
            return None
        # Each clip by itself, so that neither batches nor processes matter to the mean over a set.
        each = zip(prediction.split(1), targets.split(1), strict=True)
        return torch.stack([self.loss(one, true)["bce"] for one, true in each]).sum()

    def metrics(self) -> dict[str, Metric]:
        return {} if self.data is None else {"map": FrameMeanAP(self.data)}
