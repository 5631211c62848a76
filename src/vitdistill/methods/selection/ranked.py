"""The patches that someone ranks highest: how many, ranked by whom, and what the teacher makes of them."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitdistill.errors import UserError, near
from vitdistill.methods.method import Pass, Spent
from vitdistill.methods.selection import CriterionName, make_criterion
from vitdistill.methods.selection.amounts import Agree, Amount, Keep, Mass, amount_of, check_selection
from vitdistill.methods.selection.auto import Auto
from vitdistill.methods.selection.checks import check_maskable, check_shares, check_terms
from vitdistill.methods.selection.costs import Costs
from vitdistill.methods.selection.criterion import Attention, Criterion, Scene
from vitdistill.methods.selection.ledger import Ledger
from vitdistill.methods.selection.mass import Groups, by_mass
from vitdistill.methods.selection.probe import FEW, FOLLOWING, TRUSTED, WATCHING, Probe, Question
from vitdistill.methods.selection.random import Random
from vitdistill.methods.selection.selector import Selector
from vitdistill.methods.terms.term import Term
from vitdistill.models.backbone import Backbone, SaliencyKind
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.keep import KeepSchedule, keep_count
from vitdistill.tokens.padding import padding_patches
from vitdistill.types import Capture, Output


class Ranked(Selector):
    """The patches that someone ranks highest: for the teacher (MaskedKD), or for the student (its Sec. 5.3).

    A small share of the training steps also asks the whole teacher about a few inputs (`Probe`), so that it is known
    how often the masked one names the same class. `keep` "agree:..." and the criterion `auto` go by the answers.
    """

    def __init__(
        self,
        *,
        keep: Keep | KeepSchedule | Amount = 0.5,
        criterion: CriterionName | Criterion = "student",
        order: Literal["top", "bottom"] = "top",
        saliency: SaliencyKind | None = None,
        saliency_layer: str | int = "last",
        mask: Literal["teacher", "student"] = "teacher",
        network: Teacher | None = None,
        random_share: float = 0.5,
    ) -> None:
        """
        Args:
            keep: patches that the teacher sees: a count (98), a fraction (0.5; 1.0 for all), a schedule over training
                ('1.0->0.5' linear, '0:1.0,0.5:0.25' in steps), as few as agree with the whole teacher on so many images
                (agree:0.9), what a share of its cost pays for over training (budget:0.5, 'budget:0.5@1.0->0.25'), or
                per image as few as hold so much of the attention (mass:0.9).
            criterion: who ranks the patches: the student, the teacher, a third network, chance (random), half one
                of them and half chance (student+random), or student or random, whichever the teacher knows more of
                (auto).
            order: keep the highest ranked patches, or (an ablation) the lowest.
            saliency: attention of the class token (cls), attention received from all patches (patch), attention of
                the head that pools the patches (pool: SigLIP, Perception Encoder), or of the detection tokens (det:
                YOLOS); by default det of a detector, cls of all others. Where the head reads no class token, cls stands
                for pool if the network pools so, else for patch.
            saliency_layer: block whose attention ranks the patches: first, middle, last, or its number from 0.
            mask: who sees only the kept patches; masking the student is the variant that the paper argues against.
            network: the frozen network of the criteria that name one.
            random_share: share of the kept patches drawn at random by the mixed criteria.

        Raises:
            UserError: when an option is unknown, options contradict each other, or a third network is missing.
        """
        super().__init__()
        for option, value, known in (
            ("order", order, ("top", "bottom")),
            ("saliency", saliency, (None, "pool", "cls", "patch", "det")),
            ("mask", mask, ("teacher", "student")),
        ):
            if value not in known:
                names = [name for name in known if name is not None]
                words = f"{', '.join(names[:-1])} or {names[-1]}"
                raise UserError(f"{option} must be {words}", repr(value), near(str(value), names))
        check_selection(keep, criterion, order, mask)
        self.amount, self.order, self.mask = amount_of(keep), order, mask
        attention = Attention(saliency_layer, saliency, network)
        self.criterion = (
            criterion if isinstance(criterion, Criterion) else make_criterion(criterion, attention, random_share)
        )
        follows = isinstance(self.amount, Agree) or isinstance(self.criterion, Auto)
        self.probe = Probe(FOLLOWING if follows else WATCHING)
        self._patches = 1  # of the masked network's own grid, on which `agree` and `auto` keep count
        self._capture = Capture(head=False)
        self._ledger = Ledger()
        self._costs = Costs(self.criterion, mask)

    # --- what is masked --------------------

    def check(self, student: Network, teacher: Teacher, terms: Iterable[Term] = ()) -> None:
        network = teacher.network if self.mask == "teacher" else student
        masked = self.masked(student, teacher)
        check_maskable(network, self.amount)
        terms = tuple(terms)
        self._capture = Capture.union(term.captures()[1] for term in terms)
        if masked is None:
            return
        check_shares(masked, self.amount)
        self._patches = patches = masked.grid.count
        self.amount.fit(lambda kept: self._cost(kept, student, teacher), patches)
        if self.amount.smallest(patches) < patches:
            self.criterion.capture(student)  # an impossible block is refused now, not in the first step
            self.criterion.ranking(teacher)
        check_terms(terms, self.amount, auto=isinstance(self.criterion, Auto))

    def masked(self, student: Network, teacher: Teacher) -> Backbone | None:
        network = teacher.network if self.mask == "teacher" else student
        return network if isinstance(network, Backbone) else None

    def counts(self, student: Network, teacher: Teacher, progress: float) -> tuple[int | None, int | None]:
        count = self._count(student, teacher, progress)
        return (None, count) if self.mask == "teacher" else (count, None)

    def _count(self, student: Network, teacher: Teacher, progress: float) -> int | None:
        masked = self.masked(student, teacher)
        if masked is None:
            return None
        patches = masked.grid.count
        if self.amount.follows:
            count = self._carried(self.amount.count(progress, self._patches), patches)
        else:
            count = self.amount.count(progress, patches)
        return None if count == patches else count

    def _carried(self, count: int, patches: int) -> int:
        """A number of patches of the network's own grid as that of a grid of inputs of another size."""
        return count if patches == self._patches else keep_count(count / self._patches, patches)

    def _ranks(self, student: Network, teacher: Teacher, progress: float) -> bool:
        """Whether patches may be ranked in a step: because some are left out, or because the teacher may be asked."""
        masked = self.masked(student, teacher)
        return masked is not None and (self.amount.follows or self._count(student, teacher, progress) is not None)

    def capture(self, student: Network, teacher: Teacher, progress: float) -> Capture:
        asks = self.mask == "teacher" and self._ranks(student, teacher, progress)
        return self.criterion.capture(student) if asks else Capture(head=False)

    def for_student(
        self, inputs: Float[Tensor, "b ch *pixels"], student: Network, teacher: Teacher, progress: float
    ) -> Int[Tensor, "b k"] | None:
        count = self._count(student, teacher, progress)
        if self.mask == "teacher" or count is None:
            return None
        # A student that ranks its own patches needs a pass over all of them first; it carries no gradient.
        wanted, output = self.criterion.capture(student), Output()
        if wanted.points:
            with torch.no_grad():
                output = student(inputs, capture=wanted)
        return self.criterion.select(self._scene(inputs, output, student, teacher), count, order=self.order)

    def for_teacher(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        output: Output,
        student: Network,
        teacher: Teacher,
        progress: float,
        noise: Float[Tensor, "b n"] | None = None,
    ) -> Int[Tensor, "b k"] | Groups | None:
        if self.mask == "student" or not self._ranks(student, teacher, progress):
            return None
        if isinstance(self.amount, Mass):
            scene = self._scene(inputs, output, student, teacher)
            scores = self.criterion.scores(scene)
            scores = scores if scene.padding is None else scores.masked_fill(scene.padding, 0.0)
            return by_mass(scores, self.amount.share)
        count = self._count(student, teacher, progress)
        if count is None:
            return None
        return self.criterion.select(self._scene(inputs, output, student, teacher, noise), count, order=self.order)

    def _scene(
        self, inputs: Tensor, output: Output, student: Network, teacher: Teacher, noise: Tensor | None = None
    ) -> Scene:
        masked = self.masked(student, teacher)
        assert masked is not None
        padding = padding_patches(inputs, masked.grid) if masked.padded else None
        return Scene(inputs.detach(), student, output, teacher, masked.grid, noise, padding)

    # --- batches that are seen in parts --------------------

    def check_parts(self) -> None:
        if self.amount.per_input:
            raise UserError(
                "--pipeline needs a number of patches that does not depend on the other inputs of the batch",
                f"--keep {self.amount}",
                "Give a number of patches, or leave out --pipeline",
            )

    def waits(self, student: Network, teacher: Teacher, progress: float) -> bool:
        return self._masks_teacher(student, teacher, progress) and self.criterion.waits(student)

    def draws(self, student: Network, teacher: Teacher, progress: float) -> bool:
        return self._masks_teacher(student, teacher, progress) and self.criterion.draws

    def _masks_teacher(self, student: Network, teacher: Teacher, progress: float) -> bool:
        return self.mask == "teacher" and self._count(student, teacher, progress) is not None

    # --- what the teacher makes of it --------------------

    def observe(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        output: Output,
        student: Network,
        teacher: Teacher,
        keep: Int[Tensor, "b k"] | Groups | None,
        seen: Output,
        progress: float,
    ) -> dict[str, float]:
        if self.mask == "student" or not isinstance(teacher.network, Backbone) or not self.training:
            return {}
        patches = teacher.grid.count
        kept = mean_kept(keep, len(inputs), patches)
        if teacher.network.sized:
            self._ledger.note(keep, len(inputs), patches)
        else:
            step = Ledger()
            step.note(keep, len(inputs), patches)
            self._ledger.spend(self._costs.spent(step, student, teacher, self._capture), len(inputs))
        if not self._ranks(student, teacher, progress):
            return {}
        measured = {"keep": kept} if self.amount.follows else {}
        if isinstance(self.criterion, Auto):
            measured["random"] = float(self.criterion.chosen == "random")
        if isinstance(self.amount, Mass):
            self.amount.kept = round(kept)
        named = None if seen.prediction is None else teacher.network.named(seen.prediction)
        if named is not None and self.probe.due():
            self._ask(inputs, output, student, teacher, named, round(kept))
        return measured

    def _ask(
        self, inputs: Tensor, output: Output, student: Network, teacher: Teacher, named: Tensor, kept: int
    ) -> None:
        """Ask the teacher about the first inputs of a batch: whole, and as other counts and criteria would mask it.

        Draws of random patches come after those of the step itself.
        """
        rows, patches = self.probe.rows(len(inputs)), teacher.grid.count
        scene = self._scene(inputs[:rows], output.first(rows), student, teacher)
        masked: dict[Question, Tensor] = {}
        for name, counts in self._questions(self._patches).items():
            criterion = self._candidates[name]
            scores = criterion.scores(scene)
            for count in counts:
                keep = criterion.pick(scores, scene, self._carried(count, patches), order=self.order)
                masked[name, count] = _named(teacher, scene.inputs, keep)
        whole = _named(teacher, scene.inputs, None)
        self.probe.tell(whole, named[:rows], masked)
        numbers = [patches, *(self._carried(count, patches) for _, count in masked)]
        cost = rows * sum(self._costs.of(number, student, teacher) for number in numbers)
        self.probe.wait(cost, len(inputs) * self._costs.of_step(kept, student, teacher))
        rankings = len({name for name, _ in masked})
        if teacher.network.sized:
            self._ledger.ask(rows, numbers, patches, rankings=rankings)
        else:
            asked = Ledger()
            asked.ask(rows, numbers, patches, rankings=rankings)
            self._ledger.spend(self._costs.spent(asked, student, teacher, self._capture))
        self._follow(self._patches)

    @property
    def _candidates(self) -> dict[str, Criterion]:
        return self.criterion.candidates if isinstance(self.criterion, Auto) else {"": self.criterion}

    @property
    def _chosen(self) -> str:
        return self.criterion.chosen if isinstance(self.criterion, Auto) else ""

    def _questions(self, patches: int) -> dict[str, tuple[int, ...]]:
        """The counts to ask about, by the criterion's name."""
        asked: dict[str, set[int]] = {}
        if isinstance(self.criterion, Auto):
            asked = {name: {half(patches)} for name in self.criterion.candidates}
        if isinstance(self.amount, Agree):
            asked.setdefault(self._chosen, set()).update(self.amount.asked(patches))
        return {name: tuple(sorted(counts)) for name, counts in asked.items()}

    def _follow(self, patches: int) -> None:
        """Choose the criterion and the count by the answers so far."""
        if isinstance(self.criterion, Auto):
            self.criterion.chosen = self.probe.better(self.criterion.chosen, self._candidates, half(patches))
        if isinstance(self.amount, Agree):
            tallies = {count: self.probe.of(self._chosen, count) for count in self.amount.asked(patches)}
            self.amount.follow({count: tally.certain for count, tally in tallies.items()}, patches)

    def observations(self) -> dict[str, float]:
        found = {"teacher/agreement": 100 * self.probe.own.share} if self.probe.own.asked else {}
        if isinstance(self.criterion, Auto):
            answers = {name: self.probe.of(name, half(self._patches)) for name in self.criterion.candidates}
            found |= {f"teacher/agreement_{name}": 100 * one.share for name, one in answers.items() if one.asked}
        return found

    def doubt(self, student: Network, teacher: Teacher) -> str | None:
        own, asked_for = self.probe.own, isinstance(self.amount, Agree)
        if asked_for or own.asked < FEW or own.share + 2 * own.error >= TRUSTED:
            return None
        remedies = []
        if not isinstance(self.criterion, Auto | Random):
            remedies.append("other patches (--criterion auto, random or student+random)")
        remedies.append("more patches (--keep 0.75, or agree:0.9)")
        remedies.append("a teacher that was tuned for masks (vitdistill finetune --patch_drop 0.5)")
        kept = self._count(student, teacher, 1.0) or teacher.grid.count
        things = "objects" if teacher.network.detections else "inputs"
        return (
            f"The masked teacher names the class that the whole one names on only {100 * own.share:.0f}% of the "
            f"{things} ({teacher.name}, {kept} of {teacher.grid.count} patches), and may mislead its student. "
            f"In order of cost: {'; '.join(remedies)}"
        )

    def describe(self) -> dict[str, Any]:
        return {"criterion": self.criterion.chosen} if isinstance(self.criterion, Auto) else {}

    # --- what it costs --------------------

    def _cost(self, kept: int, student: Network, teacher: Teacher) -> float:
        """Of an input in training, in MACs: the teacher's pass, the ranking of patches, and questions now and then."""
        cost = self._costs.of(kept, student, teacher)
        asks = kept < teacher.grid.count and self.mask == "teacher"
        return cost + (self.probe.share * self._costs.of_step(kept, student, teacher) if asks else 0.0)

    def ranking_passes(self, student: Network, teacher: Teacher, progress: float) -> list[Pass]:
        return [] if self._count(student, teacher, progress) is None else self._costs.rankings(student, teacher)

    def spent(self, state: dict[str, Any], student: Network, teacher: Teacher, capture: Capture) -> Spent | None:
        ledger = Ledger.of(state.get("ledger"))
        if self.mask == "student" or not isinstance(teacher.network, Backbone) or ledger is None or not ledger.complete:
            return None
        known = self._costs.spent(ledger, student, teacher, capture)
        return Spent(known + 1e6 * ledger.megamacs, sum(ledger.seen) + ledger.varied)

    # --- checkpoints --------------------

    def state(self, total: Callable[[Tensor], Tensor] = lambda local: local) -> dict[str, Any]:
        return {
            "ledger": self._ledger.state(total),
            "probe": self.probe.state(),
            "kept": self.amount.kept if isinstance(self.amount, Agree | Mass) else None,
            "chosen": self._chosen,
        }

    def load(self, state: dict[str, Any], *, first: bool = True) -> None:
        self._ledger = Ledger.of(state.get("ledger"), first=first) or Ledger(complete=False)
        if not state:
            return
        self.probe.load(state["probe"])
        if isinstance(self.amount, Agree | Mass):
            self.amount.kept = state["kept"]
        if isinstance(self.criterion, Auto):
            self.criterion.chosen = state["chosen"]


def half(patches: int) -> int:
    """The number of patches at which criteria are compared."""
    return max(1, patches // 2)


def mean_kept(keep: Int[Tensor, "b k"] | Groups | None, batch: int, patches: int) -> float:
    """Patches that the inputs of a batch keep, on average; read from shapes, not from the device."""
    if isinstance(keep, Groups):
        return sum(len(group.rows) * group.kept.shape[1] for group in keep.groups) / batch
    return float(patches if keep is None else keep.shape[1])


def _named(teacher: Teacher, inputs: Tensor, keep: Tensor | None) -> Tensor:
    prediction = teacher(inputs, keep=keep).prediction
    assert prediction is not None
    named = teacher.network.named(prediction)
    assert named is not None
    return named
