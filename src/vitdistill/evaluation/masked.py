"""What a network still knows when patches are left out, beside what the pass costs: before it teaches under masks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.evaluation.asked import Criteria, Keeps, Masks, masks_of
from vitdistill.evaluation.classifier import log_probabilities
from vitdistill.methods.distillation import check_inputs
from vitdistill.methods.selection import MIXED, make_criterion
from vitdistill.methods.selection.criterion import Attention, Scene
from vitdistill.methods.selection.probe import TRUSTED
from vitdistill.models.families import as_network
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.tasks.classification import Classification
from vitdistill.tokens.keep import keep_count
from vitdistill.types import Capture, Output

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclass
class _Row:
    """One way of masking, and what was counted under it.

    Attributes:
        criterion: who ranks the patches; None where all are kept.
        keep: as it was asked for.
        kept: how many patches that is.
        metrics: of the answers.
        agreeing: samples for which the masked network names the class that the whole one names, on the device.
    """

    criterion: str | None
    keep: int | float
    kept: int
    metrics: "dict[str, Metric]" = field(default_factory=dict)
    agreeing: Tensor | int = 0


class MaskedAccuracy:
    """Accuracy of a classifier under masks, and how often it then names the class that it names of the whole image.

    Each batch takes one pass over all patches, one pass of each network that ranks them, and one pass over the kept
    patches for each number of them and each criterion. Nothing waits for the device until `compute`.

    Example:
        >>> masked = MaskedAccuracy(teacher, keep=[0.25, 0.5, 0.75], criterion=["random", "teacher"])
        >>> for images, labels in validation:
        ...     masked.update(images, labels)
        >>> masked.compute()
        [{'criterion': 'random', 'keep': 0.25, 'kept': 49, 'patches': 196, 'top1': 71.2, 'agreement': 0.8, ...}, ...]
    """

    def __init__(
        self,
        network: Teacher | Network | nn.Module,
        *,
        keep: Keeps = "0.25,0.5,0.75,1.0",
        criterion: Criteria = "teacher",
        student: Network | nn.Module | None = None,
        views: int = 1,
        seed: int = 0,
    ) -> None:
        """
        Args:
            network: the classifier, which is frozen in place; as a `Teacher` it may have classes in another order.
            keep: patches that it sees: counts and fractions, as a number, a text with commas, or a list.
            criterion: who ranks the patches: teacher (the network itself), random, student, or one of them and chance
                (teacher+random, student+random).
            student: whose attention ranks them under the criteria that name it; it sees the network's inputs
                normalised and sized as its own.
            views: inputs of each sample, whose probabilities are averaged.
            seed: of random masks, which depend on nothing else but the order of the samples.

        Raises:
            UserError: when patches cannot be left out of the network or nobody can rank them, there is no such count,
                or a student is missing or has nothing to rank.
        """
        values = {"keep": keep, "criterion": criterion, "student": student, "seed": 0}
        masks = masks_of(values, {"criterion": criterion, "seed": 0})
        self.network = network if isinstance(network, Teacher) else Teacher(as_network(network))
        self.views = views
        if not self.network.num_classes:
            raise UserError(f"{self.network.name} has no classifier whose answers could be counted")
        if not self.network.network.maskable:
            raise self.network.network.cannot_leave_out()
        self.grid = self.network.grid
        self.rows = _rows(masks, self.grid.count)
        # A network that ranks patches takes the inputs of the network under the masks as that one takes a student's.
        spec = self.network.network.input
        self.student = None if student is None else Teacher(as_network(student), mean=spec.mean, std=spec.std)
        if self.student is not None:
            check_inputs(self.student.network, self.network)
        self.criteria = {name: make_criterion(name, Attention()) for name in _named(self.rows)}
        for each in self.criteria.values():  # who cannot rank is refused now, not in the first batch
            each.capture(self._ranker)
            each.ranking(self.network)
        self.task = Classification(self.network.num_classes, uneven=True)
        self.generator = torch.Generator().manual_seed(seed)
        self.samples = 0

    @property
    def _ranker(self) -> Network:
        """The student; where there is none, no criterion looks at it."""
        return (self.student or self.network).network

    @torch.inference_mode()
    def update(self, inputs: Float[Tensor, "bv ch *pixels"], targets: Int64[Tensor, "b"]) -> list[Float[Tensor, "b c"]]:
        """Count the answers to a batch.

        Args:
            inputs: normalised with the network's statistics; all views of one sample after each other.
            targets: class numbers.

        Returns:
            Log-probabilities of the classes: those of the whole images, and then a tensor for each row of `compute`.
        """
        targets = targets.to(inputs.device, non_blocking=True)
        # 1. The whole image, with which the answers under masks are compared.
        whole = log_probabilities(self.network, inputs, self.views)
        named = whole.argmax(dim=1)

        # 2. Whoever ranks patches does so once for all numbers of them, and once for a criterion and its mixture.
        scene = self._scene(inputs)
        scores: dict[str, Tensor] = {}
        for name, criterion in self.criteria.items():
            if name.removesuffix(MIXED) not in scores:
                scores[name.removesuffix(MIXED)] = criterion.scores(scene)

        # 3. The kept patches of each row.
        answers = []
        for row in self.rows:
            answer = whole
            if row.criterion is not None:
                criterion, ranked = self.criteria[row.criterion], scores[row.criterion.removesuffix(MIXED)]
                answer = log_probabilities(self.network, inputs, self.views, criterion.pick(ranked, scene, row.kept))
            self._count(row, answer, named, targets)
            answers.append(answer)
        self.samples += len(targets)
        return [whole, *answers]

    def compute(self) -> list[dict[str, Any]]:
        """A row for each criterion and number of patches, and one for all patches where these were asked for.

        Returns:
            Of each: criterion (None for all patches), keep (as asked), kept and patches (numbers); top1, top5 and
            mean_per_class in percent; agreement, the share of samples for which it names the class that the whole
            network names; gmacs and ranking_gmacs, 1e9 multiply-accumulates per input of the pass and of whoever else
            had to rank the patches (nothing for a student, whose pass its training needs anyway); and cost, both of
            them as a share of the whole pass.
        """
        network = self.network.network
        whole = network.macs().total
        rows = []
        for row in self.rows:
            criterion = None if row.criterion is None else self.criteria[row.criterion]
            ranking = [] if criterion is None else criterion.ranking(self.network)
            extra = sum(asked.network.macs(capture=where).total for asked, where in ranking)
            own = whole if criterion is None else network.macs(row.kept).total
            metrics = {name: round(100 * float(metric.compute()), 4) for name, metric in row.metrics.items()}
            rows.append(
                {
                    "criterion": row.criterion,
                    "keep": row.keep,
                    "kept": row.kept,
                    "patches": self.grid.count,
                    **metrics,
                    "agreement": round(int(row.agreeing) / self.samples, 6) if self.samples else None,
                    "gmacs": own / 1e9,
                    "ranking_gmacs": extra / 1e9,
                    "cost": round((own + extra) / whole, 6),
                }
            )
        return rows

    def _scene(self, inputs: Float[Tensor, "bv ch *pixels"]) -> Scene:
        """What the criteria look at: the student's pass, and noise."""
        captures = [criterion.capture(self._ranker) for criterion in self.criteria.values()]
        output, wanted = Output(), Capture.union(captures)
        if self.student is not None and wanted.points:
            output = self.student(inputs, capture=wanted)
        noise = None
        if any("random" in name for name in self.criteria):
            # Drawn on the CPU sample by sample, so that neither the batch size nor the device changes a mask, and the
            # same for all numbers of patches and criteria, so that these differ by nothing else.
            noise = torch.rand(len(inputs), self.grid.count, generator=self.generator).to(inputs.device)
        return Scene(inputs, self._ranker, output, self.network, self.grid, noise)

    def _count(
        self, row: _Row, answer: Float[Tensor, "b c"], named: Int64[Tensor, "b"], targets: Int64[Tensor, "b"]
    ) -> None:
        if not row.metrics:
            row.metrics = {name: metric.to(answer.device) for name, metric in self.task.metrics().items()}
        for metric in row.metrics.values():
            metric.update(preds=answer, target=targets)
        row.agreeing = row.agreeing + (answer.argmax(dim=1) == named).sum()


def _rows(masks: Masks, patches: int) -> list[_Row]:
    """Criterion by criterion, as they were asked for, from few patches to many; all of them last, and once."""
    counts: dict[int, int | float] = {}
    for keep in masks.keeps:
        counts.setdefault(keep_count(keep, patches), keep)
    fewer = sorted(count for count in counts if count < patches)
    rows = [_Row(name, counts[count], count) for name in masks.criteria for count in fewer]
    return rows + ([_Row(None, counts[patches], patches)] if patches in counts else [])


def _named(rows: Sequence[_Row]) -> list[str]:
    return list(dict.fromkeys(row.criterion for row in rows if row.criterion is not None))


def meaning(rows: Sequence[dict[str, Any]]) -> str | None:
    """What the rows say of a teacher under masks, judged at half the patches, or at the fewest that were asked for.

    Where it names another class too often, with what can be done about it, the cheapest first.

    Args:
        rows: of `MaskedAccuracy.compute`.

    Returns:
        None where no row leaves out patches.
    """
    masked = [row for row in rows if row["criterion"] is not None]
    if not masked:
        return None
    patches = masked[0]["patches"]
    counts = {row["kept"] for row in masked}
    count = half if (half := keep_count(0.5, patches)) in counts else min(counts)
    here = {row["criterion"]: row["agreement"] for row in masked if row["kept"] == count}
    shares = ", ".join(f"{_percent(share)} ({name})" for name, share in here.items())
    found = f"On {count} of {patches} patches the model names the class that it names on all of them for {shares} of "
    found += "the samples"
    poor = {name: share for name, share in here.items() if share < TRUSTED}
    if not poor:
        return f"{found}: it can teach under such masks."
    more = "keep more patches (--keep)"
    enough = [row for row in masked if row["agreement"] >= TRUSTED and row["criterion"] in poor and row["kept"] > count]
    if enough:
        best = min(enough, key=lambda row: (row["kept"], -row["agreement"]))
        named = f"--keep {best['keep']}: {_percent(best['agreement'])} with {best['criterion']}"
        more = f"keep more patches ({named})"
    others = [
        f"{name} ({_percent(here[name])})" if name in here else name
        for name in ("random", "student+random")
        if name not in here or here[name] > min(poor.values())
    ]
    remedies = [f"rank them by --criterion {' or '.join(others)}"] if others else []
    remedies.append(more)
    remedies.append("tune the teacher for masks first (finetune --patch_drop 0.5)")
    words = "; ".join(f"{number}) {remedy}" for number, remedy in enumerate(remedies, start=1))
    return f"{found}. A student would often be taught another class there. In order of cost: {words}."


def _percent(share: float) -> str:
    """Rounded down, so that what is short of a threshold does not look as if it met it."""
    return f"{int(100 * share + 1e-6)}%"
