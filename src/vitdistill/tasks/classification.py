"""Which of several classes a sample belongs to."""

from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vitdistill.data.images.augment import Augment
from vitdistill.data.open import open_source
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, refuse_without_effect
from vitdistill.losses.logits import cross_entropy
from vitdistill.models.network import Network, check_names_inputs, to_its_task
from vitdistill.models.surgery.classifier import finetunable
from vitdistill.tasks.confusion import FILE, MOST_CLASSES, Confusion, MeanPerClass, uneven
from vitdistill.tasks.task import Task
from vitdistill.types import Output

if TYPE_CHECKING:
    from torchmetrics import Metric

MEAN_PER_CLASS = "mean_per_class"
TOP = {"top1": 1, "top5": 5}  # metrics, and among how many of the highest scores the class must be


class Classification(Task):
    """Cross-entropy on hard, smoothed or mixed labels; validated by top-1 and top-5 accuracy.

    A student with two heads (distilled DeiT) answers the labels with its first; validation takes both heads' mean,
    which is what such a network gives in eval mode.

    Example:
        >>> task = Classification(1000, smoothing=0.1)
        >>> task.loss(torch.randn(8, 1000), torch.arange(8))
        {'ce': tensor(7.4)}
    """

    score: ClassVar[str] = "top1"
    separable: ClassVar[bool] = True
    columns: ClassVar[dict[str, str]] = {"top1": "top-1 %", "top5": "top-5 %", MEAN_PER_CLASS: "mean per class %"}

    def __init__(self, classes: int, smoothing: float = 0.0, *, uneven: bool = False) -> None:
        """
        Args:
            classes: how many there are.
            smoothing: label smoothing, where the labels are not mixed.
            uneven: validate by the mean accuracy per class as well, which is top-1 where classes are equally frequent.

        Raises:
            UserError: when smoothing is out of range.
        """
        if not 0 <= smoothing < 1:
            raise UserError("Label smoothing must lie in [0, 1)", smoothing)
        self.classes, self.smoothing, self.uneven = classes, smoothing, uneven

    @classmethod
    def open(cls, data: Any, *, augment: Augment, files: Any = None) -> "tuple[DataSource, Classification]":
        source = open_source(data)
        smoothing = augment.resolved().smoothing
        return source, cls(len(source.classes), smoothing, uneven=uneven(source.val.labels or ()))

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
        given = {"dropout": dropout}
        refuse_without_effect(given, {"dropout": 0.0}, given, "with --task classification; --model_args.drop_rate has")
        return finetunable(body, self.classes, pool=pool, head_init=head_init, new_head=new_head, drop_path=drop_path)

    @classmethod
    def of(cls, network: Network, *, smoothing: float = 0.0) -> "Classification":
        return cls(network.num_classes, smoothing)

    def check(self, network: Network) -> None:
        check_names_inputs(network, "A classifier must say what a whole image shows", to_its_task(network))
        if network.num_classes != self.classes:
            raise UserError(
                f"The network must have the {self.classes} classes of the task; {network.name} has "
                f"{network.num_classes}"
            )

    def read(self, network: Network, output: Output, targets: Tensor) -> Float[Tensor, "b c"]:
        assert output.prediction is not None
        return output.prediction

    def loss(
        self, prediction: Float[Tensor, "b c"], targets: Int[Tensor, "b"] | Float[Tensor, "b c"]
    ) -> dict[str, Float[Tensor, ""]]:
        return {"ce": cross_entropy(prediction, targets, self.smoothing)}

    def validation_loss(self, prediction: Float[Tensor, "b c"], targets: Int[Tensor, "b"]) -> Float[Tensor, ""]:
        return F.cross_entropy(prediction.float(), targets, reduction="sum")

    def metrics(self) -> "dict[str, Metric]":
        from torchmetrics.classification import MulticlassAccuracy

        options: dict[str, Any] = {"average": "micro", "validate_args": False}
        found: dict[str, Metric] = {
            name: MulticlassAccuracy(self.classes, top_k=min(k, self.classes), **options) for name, k in TOP.items()
        }
        return found | ({MEAN_PER_CLASS: MeanPerClass(self.classes)} if self.uneven else {})

    def details(self) -> "Metric | None":
        """The confusion matrix, of at most 1000 classes."""
        from torchmetrics.classification import MulticlassConfusionMatrix

        if self.classes > MOST_CLASSES:
            return None
        return MulticlassConfusionMatrix(self.classes, validate_args=False)

    def detail_files(self, details: Int[Tensor, "c c"], source: DataSource) -> dict[str, str]:
        return {FILE: Confusion.of(details, source.classes).csv()}

    def hits(
        self, prediction: Float[Tensor, "b c"], targets: Int[Tensor, "b"] | Float[Tensor, "b c"]
    ) -> dict[str, Float[Tensor, ""]]:
        hard = targets if targets.ndim == 1 else targets.argmax(dim=-1)
        return {"top1": (prediction.argmax(dim=-1) == hard).float().mean()}

    def headings(self) -> dict[str, str]:
        """Without those that are 100% whatever the network says: of five classes, all are among the five highest."""
        names = [name for name in self.columns if name in self.metrics() and TOP.get(name, 0) < self.classes]
        return {name: self.columns[name] for name in names}
