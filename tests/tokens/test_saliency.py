"""Saliency from queries and keys, against explicit attention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdistill.tokens.saliency import attention_received, cls_attention


def explicit(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 3), st.integers(1, 8))
def test_both_equal_explicit_attention(b, h, n, prefix, d):
    q, k = torch.randn(2, b, h, prefix + n, d)
    attention = explicit(q, k)
    torch.testing.assert_close(cls_attention(q[:, :, 0], k, prefix=prefix), attention[:, :, 0, prefix:].mean(dim=1))
    received = attention[:, :, prefix:, prefix:].mean(dim=(1, 2))
    torch.testing.assert_close(attention_received(q, k, prefix=prefix), received)


def test_normalising_over_patches_alone_is_equation_2():
    q, k = torch.randn(2, 2, 3, 10, 4)
    got = cls_attention(q[:, :, 0], k, prefix=2, over="patches")
    torch.testing.assert_close(got, explicit(q[:, :, :1], k[:, :, 2:])[:, :, 0].mean(dim=1))
    torch.testing.assert_close(got.sum(dim=1), torch.ones(2))
    assert bool((cls_attention(q[:, :, 0], k, prefix=2).sum(dim=1) < 1).all())


def test_a_bias_is_added_before_the_softmax():
    q, k = torch.randn(2, 2, 3, 9, 4)
    bias = torch.randn(1, 3, 9, 9, requires_grad=True)
    expected = (q @ k.transpose(-2, -1) / 2 + bias).softmax(dim=-1).mean(dim=(1, 2))
    got = attention_received(q, k, prefix=0, bias=bias)
    torch.testing.assert_close(got, expected)
    assert not got.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scores_are_float32_detached_and_finite_for_extreme_values(dtype):
    q, k = (100 * torch.randn(2, 1, 2, 6, 8)).to(dtype).requires_grad_().unbind(0)
    for scores in (cls_attention(q[:, :, 0], k, prefix=1), attention_received(q, k, prefix=1)):
        assert scores.dtype == torch.float32 and not scores.requires_grad and bool(scores.isfinite().all())


@pytest.mark.parametrize("kind", ["cls", "patch"])
def test_autocast_rounds_nothing(kind):
    """Rounded to bfloat16, neighbouring patches tie and the selection depends on their position."""
    q, k = torch.randn(2, 2, 3, 65, 16)

    def scores() -> torch.Tensor:
        return cls_attention(q[:, :, 0], k, prefix=1) if kind == "cls" else attention_received(q, k, prefix=1)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = scores()
    assert inside.dtype == torch.float32 and torch.equal(inside, scores())


def test_shapes_are_known_without_data():
    q, k = torch.empty(2, 2, 3, 10, 4, device="meta").unbind(0)
    assert cls_attention(q[:, :, 0], k, prefix=1).shape == attention_received(q, k, prefix=1).shape == (2, 9)
