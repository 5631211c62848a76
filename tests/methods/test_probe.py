"""What the masked teacher is asked, and what follows from its answers."""

import copy
import json
import math

import pytest
import torch

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.methods.selection.probe import ENOUGH, MEMORY, Probe, Tally
from vitdistill.models.build import build

IMAGES = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 10
TEACHER = build(tiny("deit3", seed=2))


def method(**options: object) -> MaskedKD:
    return MaskedKD(build(tiny("deit", seed=1)), copy.deepcopy(TEACHER), **options)  # type: ignore[arg-type]


def ask(probe: Probe, agrees: dict[tuple[str, int], float], rows: int = 64) -> None:
    """One question about so many inputs, on which answers agree as given."""
    whole = torch.zeros(rows, dtype=torch.long)

    def said(share: float) -> torch.Tensor:
        return torch.where(torch.arange(rows) < round(share * rows), whole, 1)

    probe.tell(whole, whole, {question: said(share) for question, share in agrees.items()})


def test_old_answers_are_forgotten():
    tally = Tally()
    for _ in range(40):
        tally.add(0, 64)
    for _ in range(40):
        tally.add(64, 64)
    assert tally.share > 0.99 and math.isclose(tally.asked, MEMORY, rel_tol=1e-3)


def test_few_answers_decide_nothing_and_agreement_is_never_certain():
    tally = Tally()
    tally.add(ENOUGH - 1, ENOUGH - 1)
    assert tally.certain == 0
    tally.add(4, 4)
    assert 0.9 < tally.certain < 1


def test_another_criterion_is_taken_only_where_the_difference_is_above_its_error():
    probe = Probe(0.05)
    ask(probe, {("student", 8): 0.80, ("random", 8): 0.82})
    assert probe.better("student", ("student", "random"), 8) == "student"
    for _ in range(4):
        ask(probe, {("student", 8): 0.60, ("random", 8): 0.80})
    assert probe.better("student", ("student", "random"), 8) == "random"
    assert probe.better("random", ("student", "random"), 8) == "random"


def test_questions_cost_no_more_than_their_share():
    probe = Probe(0.01)
    asked = [step for step in range(1000) if probe.due() and probe.wait(cost=0.25, cost_of_step=1.0) is None]
    assert asked == list(range(0, 1000, 25))


@pytest.mark.parametrize(
    "options", [{"keep": 8}, {"keep": "agree:0.9"}, {"criterion": "auto"}, {"keep": "mass:0.7"}, {"keep": "1.0->4"}]
)
def test_a_training_goes_on_from_what_it_remembers(options):
    """The state is plain, and steps after it are those of a training that was not interrupted."""

    def steps(one: MaskedKD, numbers: range) -> list[float]:
        losses = []
        for number in numbers:
            torch.manual_seed(number)
            losses.append(float(one(IMAGES, LABELS, progress=number / 23).loss.detach()))
        return losses

    through, first, second = method(**options), method(**options), method(**options)
    whole = steps(through, range(24))
    before = steps(first, range(15))
    second.recall(json.loads(json.dumps(first.remembered())))
    assert before + steps(second, range(15, 24)) == whole
    assert second.remembered() == through.remembered() and second.observations() == through.observations()


def test_other_processes_begin_at_zero_and_can_be_added_up_at_once():
    first, other = method(keep=8), method(keep=8)
    first(IMAGES, LABELS)
    state = first.remembered()
    other.recall(state, first=False)
    own, zeros = state["ledger"], other.remembered()["ledger"]
    assert [len(own[name]) for name in ("seen", "asked")] == [len(zeros[name]) for name in ("seen", "asked")]
    assert not any(zeros["seen"]) and not any(zeros["asked"]) and zeros["ranked"] == 0 < own["ranked"]
    assert other.observations() == first.observations()


def test_what_was_spent_is_counted_as_it_was():
    one = method(keep=8)
    for _ in range(30):
        one(IMAGES, LABELS)
    ledger = one.remembered()["ledger"]
    assert ledger["seen"][8] == 30 * 20 and sum(ledger["seen"]) == 30 * 20
    assert ledger["asked"][16] >= 16 and sum(ledger["asked"]) == ledger["asked"][16]
    spent = one.spent(one.remembered())
    masked, full = (TEACHER.macs(kept).total for kept in (8, None))
    assert spent is not None and spent.inputs == 600
    assert spent.macs == 600 * masked + ledger["asked"][16] * full
    # The first question comes before any step was paid for; after it, at most 1% of all that is computed.
    step = masked + 3 * build(tiny("deit", seed=1)).macs().total
    assert (ledger["asked"][16] - 16) * full <= 0.01 * 600 * step


def test_the_whole_teacher_is_not_asked_where_nothing_is_left_out_or_in_evaluation():
    whole = method(keep=1.0)
    assert whole(IMAGES, LABELS).measured == {} == method(keep=1.0, criterion="auto")(IMAGES, LABELS).measured
    assert whole.observations() == {} and sum(whole.remembered()["ledger"]["asked"]) == 0
    masked = method(keep=8).eval()
    masked(IMAGES, LABELS)
    assert masked.observations() == {} and sum(masked.remembered()["ledger"]["seen"]) == 0


def test_questions_change_nothing_of_the_step():
    torch.manual_seed(0)
    asked = method(keep=8, criterion="random")(IMAGES, LABELS)
    torch.manual_seed(0)
    silent = method(keep=8, criterion="random").eval()(IMAGES, LABELS)
    assert torch.equal(asked.loss, silent.loss) and torch.equal(asked.kept, silent.kept)  # type: ignore[arg-type]


def test_agree_keeps_all_until_it_knows_and_then_what_is_asked():
    one = method(keep="agree:0.5")
    kept = [one(IMAGES, LABELS).measured["keep"] for _ in range(60)]
    assert kept[0] == 16 and min(kept) < 16
    assert one.observations()["teacher/agreement"] >= 50
    assert method(keep="agree:1.0")(IMAGES, LABELS).kept is None


def test_mass_predicts_as_each_group_would():
    one = method(keep="mass:0.6")
    step = one(IMAGES, LABELS)
    assert step.kept is not None and step.teacher_prediction is not None
    for row in (0, 7, 19):
        own = step.kept[row][step.kept[row] >= 0]
        alone = one.teacher(IMAGES[row : row + 1], keep=own[None]).prediction  # type: ignore[misc]
        torch.testing.assert_close(step.teacher_prediction[row : row + 1], alone)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": "agree:0.9", "mask": "student"}, "what a masked teacher knows; got --mask student"),
        ({"criterion": "auto", "mask": "student"}, "what a masked teacher knows"),
        ({"criterion": "auto", "order": "bottom"}, "--order bottom"),
        ({"keep": "mass:0.9", "criterion": "random"}, "shares of attention; got --criterion random"),
        ({"keep": "mass:0.9", "criterion": "student+random"}, "shares of attention"),
        ({"keep": "mass:0.9", "distill": "manifold"}, "only class scores can be compared; got --distill manifold"),
        ({"keep": "agree:0.9", "distill": "manifold"}, "needs the teacher's class scores"),
        (
            {"criterion": "auto", "distill": "manifold", "keep": 8},
            "--criterion auto needs the teacher's class scores; got --distill manifold\\.",
        ),
        ({"keep": "budget:0.5", "mask": "student"}, "what a masked teacher costs; got --mask student"),
        ({"keep": "budget:0.01"}, "must pay for one patch"),
        ({"keep": "budget:0.5", "criterion": "teacher"}, "must pay for one patch"),
    ],
)
def test_what_has_no_meaning_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        method(**options)


def test_a_doubtful_teacher_is_named_with_remedies_in_order_of_cost():
    one = method(keep=4)
    for _ in range(4):
        one.selector.probe.own.add(30, 64)  # type: ignore[union-attr]
    doubt = one.doubt()
    assert doubt is not None and "only 47% of the inputs" in doubt and "4 of 16 patches" in doubt
    assert doubt.index("--criterion auto") < doubt.index("--keep 0.75") < doubt.index("--patch_drop 0.5")
    one.selector.probe.own = Tally(250, 256)  # type: ignore[union-attr]
    assert one.doubt() is None
    random = method(keep=4, criterion="random")
    random.selector.probe.own = Tally(30, 64)  # type: ignore[union-attr]
    assert "--criterion" not in str(random.doubt())
