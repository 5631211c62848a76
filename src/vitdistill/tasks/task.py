"""What labels mean: the head that predicts them, its loss, how predictions are scored, and what the scores are called.

To add a task: subclass `Task` in a file of its own, and name it in `TASKS` (`tasks/__init__.py`), with what it is
trained with by default. Methods, training and
reports know no task by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from vitdistill.data.images.augment import Augment
from vitdistill.data.open import open_source
from vitdistill.data.samples import ViewOptions
from vitdistill.data.source import DataSource
from vitdistill.models.network import Network
from vitdistill.types import Output

if TYPE_CHECKING:
    from torchmetrics import Metric

    from vitdistill.tasks.class_names import ClassNames


class Task(ABC):
    """What a student is trained for where there are labels.

    Attributes:
        score: which of the metrics says what the best checkpoint is.
        columns: headings of the metrics in tables, by name, in percent.
        always_fresh: whether `with_head` always makes a fresh head.
        reads_grid: whether predictions are read out of the whole grid of patches, so that none can be left out.
        per_sample: whether the score is the share of samples that are right, which has a binomial error.
        separable: whether the losses are means over the samples of a batch.
        names: the classes of the data, of tasks that take those of a network by name, whatever their order.
        one_by_one: whether a test looks at one sample at a time, of which it makes many inputs.
    """

    score: ClassVar[str]
    columns: ClassVar[dict[str, str]]
    always_fresh: ClassVar[bool] = False
    reads_grid: ClassVar[bool] = False
    per_sample: ClassVar[bool] = True
    separable: ClassVar[bool] = False
    names: "ClassNames | None" = None
    one_by_one: bool = False

    @classmethod
    @abstractmethod
    def open(cls, data: Any, *, augment: Augment, files: Any = None) -> "tuple[DataSource, Task]":
        """The data that a command names, and the task on it.

        Args:
            data: what `--data` names, or what else `open_source` takes.
            augment: the recipe, which may smooth labels.
            files: the task's own group of options, where it has one.

        Raises:
            UserError: when there is no such data, or its labels are of no use to the task.
        """

    @classmethod
    def open_tested(cls, data: Any, *, files: Any = None) -> "tuple[DataSource, Task]":
        """As `open`, for a test alone: what nobody will train on need not be read.

        Raises:
            UserError: as `open`.
        """
        return cls.open(data, augment=Augment(recipe="none"), files=files)

    @abstractmethod
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
        """A pre-trained network with a head for the task, everything else as it is in `body`.

        Args:
            body: the network.
            pool: how patches become one feature: auto, avg or cls.
            head_init: factor on the initial weights of a fresh head.
            new_head: replace a head that the network has.
            dropout: probability of leaving out a channel in front of the head.
            drop_path: stochastic depth rate of the last block, falling to 0 in the first.

        Raises:
            UserError: when the network is of no use to the task, or an option would change nothing.
        """

    @classmethod
    @abstractmethod
    def of(cls, network: Network, *, smoothing: float = 0.0) -> "Task":
        """The task of a network that was trained for it, without any data.

        Args:
            network: whose classes it has.
            smoothing: of labels, for tasks that smooth them.
        """

    def student(self, network: Network) -> Network:
        """The network to train, out of one with a classifier for the data's classes; by default that one.

        Raises:
            UserError: when it is of no use to the task.
        """
        return network

    @classmethod
    def source_of(cls, config: Mapping[str, Any]) -> DataSource:
        """The data of a run, to look at what it was validated on.

        Args:
            config: of the run.
        """
        return open_source(str(config["data"]))

    @classmethod
    def tested_files(cls, given: Any, network: Network, config: Mapping[str, Any], *, elsewhere: bool) -> Any:
        """The task's own group of options in a test.

        Args:
            given: by the user; what is not given is as recorded.
            network: to test.
            config: of the run that it is of; empty where it is of none.
            elsewhere: whether the test is on other data than the run's.

        Raises:
            UserError: when an option is given that means nothing in a test.
        """
        return given

    def tested(self, files: Any = None, at_once: int = 1) -> "Task":
        """The task as finished networks are tested, where that differs from validation in training.

        Args:
            files: the task's own group of options, as `tested_files` gave it; None is as without any.
            at_once: inputs that a network is to see at once where the test looks at one sample at a time.
        """
        return self

    @property
    def views(self) -> ViewOptions:
        """How samples are made ready for a test."""
        return ViewOptions(augment=Augment())

    @property
    def test(self) -> str | None:
        """Which of several tests this is, in words; None where there is one."""
        return None

    def keeps(self, body: Callable[[], Network]) -> bool:
        """Whether `with_head` can keep the head that a network has: a classifier is none for boxes or pixels.

        Args:
            body: makes the network, of which weights do not matter; called only where the answer depends on it.
        """
        return not self.always_fresh

    @abstractmethod
    def check(self, network: Network) -> None:
        """Refuse a network that cannot be trained for the task.

        Raises:
            UserError: saying why.
        """

    @abstractmethod
    def read(self, network: Network, output: Output, targets: Tensor) -> Tensor:
        """The prediction in a pass that was already made, up to the head.

        Args:
            network: that made the pass.
            output: of the pass.
            targets: as the loader has them, for tasks whose targets say where to look.
        """

    def predict(self, network: Network, inputs: Float[Tensor, "b ch *pixels"], targets: Tensor) -> Tensor:
        """The prediction for a batch.

        Args:
            network: the student, or its average.
            inputs: normalised.
            targets: as the loader has them.
        """
        return self.read(network, network(inputs), targets)

    @abstractmethod
    def loss(self, prediction: Tensor, targets: Tensor) -> dict[str, Float[Tensor, ""]]:
        """The named parts of the training loss, which is their sum.

        Args:
            prediction: what `predict` gave.
            targets: as the loader has them, or mixed.
        """

    @abstractmethod
    def validation_loss(self, prediction: Tensor, targets: Tensor) -> Float[Tensor, ""] | None:
        """The loss of a batch, summed over its samples; None where the targets do not tell."""

    @abstractmethod
    def metrics(self) -> "dict[str, Metric]":
        """What validation measures, by name, as shares of one, higher being better: the names of `columns`.

        They are updated with keywords of which each takes what it knows: `preds` (the prediction), `target`, and
        `index` (which samples of the validation set these are).
        """

    def details(self) -> "Metric | None":
        """What validation counts beyond single numbers, such as which classes are confused; None by default.

        Updated as the metrics are; what it computes goes to `detail_files`.
        """
        return None

    def detail_files(self, details: Tensor, source: DataSource) -> dict[str, str]:
        """Files of the run directory that say what the last validation counted: name -> content.

        Args:
            details: what `details` has computed.
            source: the data.
        """
        return {}

    def per_class(self, details: Tensor, source: DataSource) -> list[dict[str, Any]]:
        """What the last validation counted of each class, for tables: heading -> value; nothing by default.

        Args:
            details: what `details` has computed.
            source: the data.
        """
        return []

    def result_files(self, metrics: "dict[str, Metric]") -> dict[str, str]:
        """Further files of a test by itself, such as every prediction: name -> content; none by default.

        Args:
            metrics: that `metrics` gave, after all batches.
        """
        return {}

    def hits(self, prediction: Tensor, targets: Tensor) -> dict[str, Float[Tensor, ""]]:
        """What of the metrics a training batch tells by itself, as shares of one; nothing by default.

        Args:
            prediction: of a teacher.
            targets: as the loader has them, or mixed.
        """
        return {}

    def headings(self) -> dict[str, str]:
        """The columns that are worth showing: by default all."""
        return self.columns
