"""Top-1 and top-5 hits."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

TOP = (1, 5)


def percent(found: Tensor, images: int) -> list[dict[str, float]]:
    """Counts of hits (heads, 2) as top1 and top5 in percent of the images, per head."""
    return [
        {f"top{top}": round(100 * count / images, 4) for top, count in zip(TOP, counts, strict=True)}
        for counts in found.tolist()
    ]


def hits(scores: Float[Tensor, "*heads b c"], targets: Int64[Tensor, "b"]) -> Bool[Tensor, "*heads b 2"]:
    """Whether the target is the class with the highest score, and whether it is among the five highest.

    A class of score -inf (no neighbour voted for it) or nan is never a hit.

    Args:
        scores: of each class; any number of classifiers at once.
        targets: class numbers.
    """
    best = scores.topk(min(TOP[-1], scores.shape[-1]), dim=-1)
    found = (best.indices == targets[:, None]) & (best.values > -torch.inf)
    return torch.stack([found[..., :top].any(dim=-1) for top in TOP], dim=-1)
