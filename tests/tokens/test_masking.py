"""Masks of masked modelling: a partition of the patches with exact counts, uniformly at random."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdistill.errors import UserError
from vitdistill.tokens.masking import Masking, random_mask, split_by_noise, visible_count
from vitdistill.types import TokenGrid


@given(b=st.integers(1, 4), patches=st.integers(2, 40), share=st.floats(0.05, 0.95))
@settings(max_examples=30, deadline=None)
def test_visible_and_masked_patches_are_a_partition(b, patches, share):
    visible = max(1, min(patches - 1, round(patches * share)))
    kept, masked = random_mask(b, patches, visible)
    assert kept.shape == (b, visible) and masked.shape == (b, patches - visible)
    assert torch.equal(torch.cat((kept, masked), dim=1).sort(dim=1).values, torch.arange(patches).expand(b, -1))
    assert bool((kept[:, 1:] > kept[:, :-1]).all()) and bool((masked[:, 1:] > masked[:, :-1]).all())


def test_the_smallest_noise_is_visible():
    kept, masked = split_by_noise(torch.tensor([[0.9, 0.1, 0.5, 0.3]]), 2)
    assert kept.tolist() == [[1, 3]] and masked.tolist() == [[2, 0]]


def test_every_patch_is_equally_often_visible():
    torch.manual_seed(0)
    kept, _ = random_mask(4000, 16, 4)
    share = torch.bincount(kept.flatten(), minlength=16) / 4000
    assert float((share - 0.25).abs().max()) < 0.03


@pytest.mark.parametrize(
    ("patches", "ratio", "visible"), [(196, 0.75, 49), (16, 0.75, 4), (36, 0.75, 9), (10, 0.85, 1)]
)
def test_counts_are_mae_s(patches, ratio, visible):
    assert visible_count(patches, ratio) == visible


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5, 0.99, float("nan")])
def test_ratios_that_leave_nothing_to_do_are_refused(ratio):
    with pytest.raises(UserError, match=r"at least one patch to see and one to predict.*MAE and TinyMIM take 0\.75"):
        visible_count(16, ratio)


@pytest.mark.parametrize(
    ("kind", "ratio", "words"),
    [
        ("tube", 0.05, "one patch to see .* 0.05 of 16 patches of each time step. VideoMAE and MVD take 0.9"),
        ("frame", 0.05, "one time step to see .* 0.05 of 8 time steps"),
        ("random", 0.995, "one patch to see .* 0.995 of 128 patches"),
    ],
)
def test_what_is_too_few_is_counted(kind, ratio, words):
    with pytest.raises(UserError, match=words):
        Masking(ratio, kind).visible(TokenGrid(8, 4, 4))
