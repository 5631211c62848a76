"""How many patches are kept: schedules, budgets, agreement, mass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdistill.errors import UserError
from vitdistill.methods.selection.amounts import Agree, Budget, Mass, Scheduled, amount_of, check_amount
from vitdistill.methods.selection.mass import by_mass


@pytest.mark.parametrize(
    ("keep", "kind", "text"),
    [
        (98, Scheduled, "98"),
        ("1.0->0.5", Scheduled, "1.0->0.5"),
        ("0:1.0,0.5:0.25", Scheduled, "0:1.0,0.5:0.25"),
        ("agree:0.9", Agree, "agree:0.9"),
        ("mass:0.8", Mass, "mass:0.8"),
        ("budget:0.5", Budget, "budget:0.5@1.0"),
        ("budget:0.5@0:1.0,0.5:0.25", Budget, "budget:0.5@0:1.0,0.5:0.25"),
    ],
)
def test_what_keep_says(keep, kind, text):
    check_amount(keep)
    amount = amount_of(keep)
    assert type(amount) is kind and str(amount) == text


@pytest.mark.parametrize(
    "keep", ["agree", "agree:", "agree:0", "mass:1.5", "budget:nan", "agree:0.9@0.5", "budget:0.5@", "keep:1"]
)
def test_what_says_nothing_is_refused(keep):
    with pytest.raises(UserError):
        check_amount(keep)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["1.0", "1.0->0.25", "0:1.0,0.5:0.25", "16->1"]), st.floats(0.05, 1.0))
def test_a_budget_is_met_and_used_up(schedule, share):
    def cost(kept: int) -> float:
        return 10.0 + kept + kept**2 / 50

    patches, steps = 64, 500
    try:
        amount = amount_of(f"budget:{share}@{schedule}")
        amount.fit(cost, patches)
    except UserError:
        assert cost(1) > share * cost(patches)
        return
    counts = [amount.count(step / (steps - 1), patches) for step in range(steps)]
    spent = sum(map(cost, counts)) / steps / cost(patches)
    assert spent <= share + 0.002 and all(1 <= count <= patches for count in counts)
    # One patch more at every step would be too many, unless there are no more.
    more = sum(cost(min(patches, count + 1)) for count in counts) / steps / cost(patches)
    assert more > share - 0.002 or min(counts) == patches


def test_agreement_decides_from_all_patches_downwards():
    amount = Agree(0.9)
    assert amount.count(0.0, 16) == 16 and amount.asked(16) == (2, 4, 6, 8, 10, 12, 14)
    amount.follow({}, 16)  # nothing is known yet
    assert amount.count(0.0, 16) == 16
    everywhere = dict.fromkeys(amount.asked(16), 0.95)
    amount.follow(everywhere, 16)
    assert amount.count(0.0, 16) == 2  # not below what was asked about
    amount.follow({**everywhere, 10: 0.8}, 16)  # one lucky answer at fewer patches means nothing
    assert amount.count(0.0, 16) == 12  # 0.9 lies a third of the way from 12 (0.95) to 10 (0.8), rounded up
    amount.follow(dict.fromkeys(amount.asked(16), 0.5), 16)
    assert amount.count(0.0, 16) == 16


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=7, max_size=7), st.floats(0.5, 1.0))
def test_what_is_kept_agrees_as_asked(answers, share):
    """At the next count that was asked about, and at all above it, the teacher agrees."""
    amount = Agree(share)
    known = dict(zip(amount.asked(64), answers, strict=True))
    amount.follow(known, 64)
    kept = amount.count(0.0, 64)
    assert all(agreement >= share for count, agreement in known.items() if count >= kept)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(2, 40), st.floats(0.05, 1.0), st.integers(0, 99))
def test_every_input_keeps_its_share_of_the_attention(batch, patches, share, seed):
    scores = torch.rand(batch, patches, generator=torch.Generator().manual_seed(seed)) ** 4
    groups = by_mass(scores, share)
    assert sorted(groups.rows.tolist()) == list(range(batch))
    for rows, kept in groups.groups:
        assert bool((kept[:, 1:] > kept[:, :-1]).all())
        held = scores[rows].double().gather(1, kept).sum(1) / scores[rows].double().sum(1)
        assert bool((held >= share - 1e-6).all())
    padded = groups.padded
    assert padded.shape[0] == batch
    for row in range(batch):
        group = next(one for one in groups.groups if row in one.rows.tolist())
        own = padded[row][padded[row] >= 0]
        assert torch.equal(own, group.kept[group.rows.tolist().index(row)])


def test_uniform_attention_keeps_no_patch_too_many():
    assert by_mass(torch.full((1, 16), 1 / 16), 0.5).groups[0].kept.shape[1] == 8
    assert by_mass(torch.zeros(1, 16), 0.5).groups[0].kept.shape[1] in (1, 8, 16)
