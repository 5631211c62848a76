"""Selections: ascending, without repeats, and the right ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdistill.tokens.select import bottom_k, random_scores, top_k, top_then_random


@st.composite
def scores_and_k(draw):
    """Distinct scores of a few samples, and how many to keep."""
    b, n = draw(st.integers(1, 4)), draw(st.integers(1, 30))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    scores = torch.stack([torch.randperm(n, generator=generator) for _ in range(b)]).float() / n
    return scores, draw(st.integers(1, n))


@settings(max_examples=25, deadline=None)
@given(scores_and_k())
def test_top_k_equals_sorting(case):
    scores, k = case
    got = top_k(scores, k)
    for row, chosen in zip(scores.tolist(), got.tolist(), strict=True):
        assert chosen == sorted(sorted(range(len(row)), key=row.__getitem__)[-k:])


@settings(max_examples=25, deadline=None)
@given(scores_and_k())
def test_bottom_k_is_what_top_leaves(case):
    scores, k = case
    n = scores.shape[1]
    if k < n:
        both = torch.cat((top_k(scores, k), bottom_k(scores, n - k)), dim=1)
        assert torch.equal(both.sort(dim=1).values, torch.arange(n).expand_as(both))
    assert torch.equal(bottom_k(scores, n), top_k(scores, n))


def test_ties_give_a_valid_selection():
    got = top_k(torch.zeros(5, 16), 7)
    assert got.shape == (5, 7) and bool((got[:, 1:] > got[:, :-1]).all())


def test_random_scores_depend_on_the_seed_alone_and_reach_every_patch():
    def draw(seed: int) -> torch.Tensor:
        return random_scores(64, 16, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    often = torch.bincount(top_k(draw(0), 4).flatten(), minlength=16)
    assert bool((often > 4).all())  # 16 times on average
    torch.manual_seed(5)
    first = random_scores(2, 8)
    torch.manual_seed(5)
    assert torch.equal(first, random_scores(2, 8))


@settings(max_examples=25, deadline=None)
@given(scores_and_k(), st.floats(0, 1))
def test_best_then_random(case, share):
    scores, k = case
    noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(1))
    got = top_then_random(scores, noise, k, share)
    assert got.shape == (len(scores), k) and bool((got[:, 1:] > got[:, :-1]).all())
    best = k - round(k * share)
    for i, chosen in enumerate(got.tolist()):
        first = set(top_k(scores, best)[i].tolist()) if best else set()
        rest = sorted(set(range(scores.shape[1])) - first, key=lambda patch, i=i: -float(noise[i, patch]))
        assert set(chosen) == first | set(rest[: k - best])


@pytest.mark.parametrize(("share", "expected"), [(0.0, [4, 5, 6, 7]), (1.0, [0, 1, 2, 3]), (0.5, [0, 1, 6, 7])])
def test_shares_of_best_and_random(share, expected):
    scores = torch.arange(8.0)[None]
    assert top_then_random(scores, -scores, 4, share).tolist() == [expected]
