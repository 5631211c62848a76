"""From scores to selections. A selection is (b, k), ascending, without repeats, in patch coordinates."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def top_k(scores: Float[Tensor, "b n"], k: int) -> Int[Tensor, "b k"]:
    """The `k` patches of highest score.

    Ascending, so that position i of the selection means roughly the same place in every image; a cls-pooled
    teacher does not see the order.
    """
    return scores.topk(k, dim=1, sorted=False).indices.sort(dim=1).values


def bottom_k(scores: Float[Tensor, "b n"], k: int) -> Int[Tensor, "b k"]:
    """The `k` patches of lowest score."""
    return top_k(-scores, k)


def random_scores(
    b: int, n: int, *, device: torch.device | None = None, generator: torch.Generator | None = None
) -> Float[Tensor, "b n"]:
    """Scores whose top-k is a uniformly random selection, drawn on the device."""
    return torch.rand(b, n, device=device, generator=generator)


def top_then_random(
    scores: Float[Tensor, "b n"], noise: Float[Tensor, "b n"], k: int, random_share: float
) -> Int[Tensor, "b k"]:
    """The best `k - r` patches by `scores` and `r = round(k * random_share)` others by `noise` (DINO + random)."""
    r = round(k * random_share)
    best = scores.topk(k - r, dim=1, sorted=False).indices
    rest = noise.scatter(1, best, float("-inf")).topk(r, dim=1, sorted=False).indices
    return torch.cat((best, rest), dim=1).sort(dim=1).values
