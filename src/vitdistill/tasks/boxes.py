"""Which objects are where in an image: a box and a class for each."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torchmetrics import Metric

from vitdistill.data.boxes.files import BoxFiles
from vitdistill.data.boxes.resizing import sizes_of
from vitdistill.data.boxes.samples import BoxImages
from vitdistill.data.boxes.sources import open_boxes
from vitdistill.data.images.augment import Augment
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, refuse_given, refuse_without_effect
from vitdistill.losses.boxes import CLASS_WEIGHT, match, set_loss
from vitdistill.models.network import Network
from vitdistill.models.record import record_of
from vitdistill.models.surgery.detector import detector
from vitdistill.models.surgery.drop_path import drop_path_rates
from vitdistill.tasks.box_ap import BoxAP, PartOfAP
from vitdistill.tasks.class_names import ClassNames
from vitdistill.tasks.confusion import table
from vitdistill.tasks.task import Task
from vitdistill.types import Output

PER_CLASS, RESULTS = "per_class.csv", "detections.json"
DET_TOKENS = 100
EXTRA = {"scipy": "scipy", "faster_coco_eval": "faster-coco-eval"}  # modules and what they are called


class Boxes(Task):
    """Set loss of a detector (each box is matched with one prediction); validated by COCO's average precision.

    Predictions are (b, q, c + 1 + 4): class scores with "no object" last, centre x and y, width and height as shares of
    the image. Targets are (b, boxes, 5): class number and box; rows that pad to a common number of boxes are NaN.

    Example:
        >>> source, task = Boxes.open("/data/VOCdevkit", augment=Augment(recipe="none"))
        >>> method = Supervised(task.student(build("yolos_tiny", num_classes=20)), task=task)
    """

    score: ClassVar[str] = "ap"
    columns: ClassVar[dict[str, str]] = {"ap": "AP %", "ap50": "AP50 %", "ap75": "AP75 %"}
    per_sample: ClassVar[bool] = False

    def __init__(
        self,
        source: DataSource | None = None,
        classes: int | None = None,
        det_tokens: int | None = None,
        class_weight: float | None = None,
    ) -> None:
        """
        Args:
            source: of `open_boxes`, which validation scores against; None in training loops of your own.
            classes: how many there are; None takes those of the data.
            det_tokens: of a ViT that becomes a detector; None is 100. A detector has its own.
            class_weight: of the loss of the classes beside those of the boxes (5 and 2); None is 1.
        """
        self.class_weight = CLASS_WEIGHT if class_weight is None else class_weight
        self.det_tokens = det_tokens
        self.source = source
        self.classes = classes if source is None or classes is not None else len(source.classes)
        self.names = None if self.classes is None else ClassNames.of(source, self.classes)
        self._first: BoxAP | None = None

    @classmethod
    def open(cls, data: Any, *, augment: Augment, files: Any = None) -> "tuple[DataSource, Boxes]":
        """The images that `data` names, with the boxes that `files`, a `BoxFiles`, say."""
        require_detection()
        files = BoxFiles() if files is None else files
        source = open_boxes(data, files)
        return source, cls(source, det_tokens=files.det_tokens, class_weight=files.class_weight)

    @classmethod
    def source_of(cls, config: Mapping[str, Any]) -> DataSource:
        files = BoxFiles(**(config.get("boxes") or {}))
        return open_boxes(str(config["data"]), files, tested=True)

    @classmethod
    def open_tested(cls, data: Any, *, files: Any = None) -> "tuple[DataSource, Boxes]":
        require_detection()
        files = BoxFiles() if files is None else files
        source = open_boxes(data, files, tested=True)
        return source, cls(source, class_weight=files.class_weight)

    @classmethod
    def tested_files(
        cls, given: BoxFiles, network: Network, config: Mapping[str, Any], *, elsewhere: bool = False
    ) -> BoxFiles:
        refuse_given({"boxes.det_tokens": given.det_tokens is not None}, "in a test: the network has its own")
        refuse_given({"boxes.class_weight": given.class_weight is not None}, "in a test")
        refuse_given({"boxes.sides": given.sides is not None}, "in a test; --boxes.eval_side has")
        recorded = config.get("boxes") or sizes_of(record_of(network.net).preprocessing or {})
        return given.over(recorded, elsewhere=elsewhere)

    def with_head(
        self,
        body: Network,
        *,
        pool: Any = "auto",
        head_init: float = 0.001,
        new_head: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> Network:
        """A detector, as it is or made of a ViT."""
        given = {"pool": pool, "dropout": dropout}
        refuse_without_effect(given, {"pool": "auto", "dropout": 0.0}, given, "with --task boxes")
        return self._detector(body, new_head=new_head, drop_path=drop_path)

    def keeps(self, body: Callable[[], Network]) -> bool:
        return body().detections > 0

    def _detector(self, body: Network, **options: Any) -> Network:
        if body.detections:
            self._refuse_det_tokens()
        return detector(body, self._count(), det_tokens=self.det_tokens or DET_TOKENS, **options)

    def _refuse_det_tokens(self) -> None:
        refuse_given({"boxes.det_tokens": self.det_tokens is not None}, "on a detector, which has its own")

    def _count(self) -> int:
        if self.classes is None:
            raise ValueError("A head for boxes needs the number of classes: Boxes(source) or Boxes(classes=...)")
        return self.classes

    @classmethod
    def of(cls, network: Network, *, smoothing: float = 0.0) -> "Boxes":
        return cls(classes=network.num_classes)

    def student(self, network: Network) -> Network:
        """A detector as it is; a ViT becomes one."""
        if not network.detections:
            return self._detector(network, drop_path=max(drop_path_rates(network), default=0.0))
        self._refuse_det_tokens()
        return network

    def check(self, network: Network) -> None:
        require_detection()
        if not network.detections:
            raise UserError("Boxes need a detector", network.name, "Use yolos_tiny, or another YOLOS")
        if self.names is not None:
            self.names.match(network)

    def read(self, network: Network, output: Output, targets: Tensor) -> Float[Tensor, "b q _"]:
        assert output.prediction is not None
        return output.prediction if self.names is None else self.names.ordered(network, output.prediction)

    def loss(
        self, prediction: Float[Tensor, "b q _"], targets: Float[Tensor, "b boxes 5"]
    ) -> dict[str, Float[Tensor, ""]]:
        return set_loss(prediction, targets, class_weight=self.class_weight)

    def validation_loss(
        self, prediction: Float[Tensor, "b q _"], targets: Float[Tensor, "b boxes 5"]
    ) -> Float[Tensor, ""]:
        """Each image by itself, so that neither batches nor processes matter to the mean over a set."""
        matched = match(prediction, targets)
        each = zip(prediction.split(1), targets.split(1), matched.split(1), strict=True)
        weighed = partial(set_loss, together=False, class_weight=self.class_weight)
        parts = [weighed(one, true, matched=own) for one, true, own in each]
        return torch.stack([loss for part in parts for loss in part.values()]).sum()

    def metrics(self) -> dict[str, Metric]:
        if self.source is None:
            return {}
        assert isinstance(self.source.val, BoxImages)
        whole = BoxAP(self.source.val, self._count())
        if self._first is None:
            self._first = whole
        return {"ap": whole, **{name: PartOfAP(whole, name) for name in self.columns if name != "ap"}}

    def details(self) -> Metric | None:
        """What the first of `metrics` has computed of each class."""
        return None if self._first is None else PartOfAP(self._first, None)

    def detail_files(self, details: Float32[Tensor, "c 3"], source: DataSource) -> dict[str, str]:
        rows = self.per_class(details, source)
        return {PER_CLASS: table(rows, list(rows[0]))}

    def per_class(self, details: Float32[Tensor, "c 3"], source: DataSource) -> list[dict[str, Any]]:
        assert isinstance(source.val, BoxImages)
        boxes = source.val.boxes
        counts = torch.bincount(torch.from_numpy(boxes.classes[~boxes.ignored]), minlength=len(source.classes))
        return [
            {
                "class": name,
                "boxes": count,
                **{
                    heading: None if math.isnan(value) else round(100 * value, 4)
                    for heading, value in zip(self.columns.values(), values, strict=True)
                },
            }
            for name, count, values in zip(source.classes, counts.tolist(), details.tolist(), strict=True)
        ]

    def result_files(self, metrics: dict[str, Metric]) -> dict[str, str]:
        """Every detection in COCO's format of results."""
        whole = metrics["ap"]
        assert isinstance(whole, BoxAP)
        return {RESULTS: whole.results()}


def require_detection() -> None:
    """
    Raises:
        UserError: when what matches boxes, or scores them, is not installed.
    """
    if missing := [name for module, name in EXTRA.items() if find_spec(module) is None]:
        raise UserError(f"Boxes need {' and '.join(missing)}", remedy="Run: pip install 'vitdistill[detection]'")
