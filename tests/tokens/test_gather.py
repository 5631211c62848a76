"""Taking patches out and putting them back."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdistill.tokens.gather import complement, keep_patches, restore, take


@st.composite
def patches_and_keep(draw):
    b, n = draw(st.integers(1, 3)), draw(st.integers(1, 20))
    k = draw(st.integers(1, n))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    keep = torch.stack([torch.randperm(n, generator=generator)[:k] for _ in range(b)])
    return torch.randn(b, n, 5, generator=generator), keep


@settings(max_examples=25, deadline=None)
@given(patches_and_keep())
def test_take_equals_indexing_each_sample(case):
    patches, keep = case
    expected = torch.stack([sample[rows] for sample, rows in zip(patches, keep, strict=True)])
    assert torch.equal(take(patches, keep), expected)


@settings(max_examples=25, deadline=None)
@given(patches_and_keep(), st.integers(0, 3))
def test_prefix_tokens_stay_in_front_and_are_not_counted(case, prefix):
    patches, keep = case
    first = torch.randn(len(patches), prefix, 5)
    got = keep_patches(torch.cat((first, patches), dim=1), keep, prefix=prefix)
    assert torch.equal(got, torch.cat((first, take(patches, keep)), dim=1))


@settings(max_examples=25, deadline=None)
@given(patches_and_keep())
def test_restore_inverts_take_and_fills_the_rest(case):
    patches, keep = case
    fill = torch.zeros_like(patches)
    restored = restore(take(patches, keep), keep, fill)
    assert torch.equal(take(restored, keep), take(patches, keep))
    dropped = complement(keep, patches.shape[1])
    assert not take(restored, dropped).any() and not fill.any()
    assert torch.equal(restore(take(patches, dropped), dropped, restored), patches)


@settings(max_examples=25, deadline=None)
@given(patches_and_keep())
def test_complement_is_ascending_and_disjoint(case):
    patches, keep = case
    n = patches.shape[1]
    dropped = complement(keep, n)
    for kept, rest in zip(keep.tolist(), dropped.tolist(), strict=True):
        assert rest == sorted(set(range(n)) - set(kept))


def test_gradient_reaches_the_kept_patches_once():
    patches = torch.randn(1, 4, 2, requires_grad=True)
    take(patches, torch.tensor([[2, 0]])).sum().backward()
    assert patches.grad[0, :, 0].tolist() == [1, 0, 1, 0]


def test_restore_takes_the_dtype_of_what_it_fills():
    restored = restore(torch.ones(1, 1, 2, dtype=torch.bfloat16), torch.tensor([[1]]), torch.zeros(1, 2, 2))
    assert restored.dtype == torch.float32 and restored[0, :, 0].tolist() == [0, 1]
