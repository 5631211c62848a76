"""Top-1 and top-5 hits.

By hand, unlike in training and `evaluate`: torchmetrics' `multiclass_accuracy` takes one classifier at a time, counts
classes that no neighbour voted for (score -inf) among the five best, and takes scores of nan for class 0.
"""

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

    Example:
        >>> hits(torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([2]))
        tensor([[False,  True]])
    """
    best = scores.topk(min(TOP[-1], scores.shape[-1]), dim=-1)
    found = (best.indices == targets[:, None]) & (best.values > -torch.inf)
    return torch.stack([found[..., :top].any(dim=-1) for top in TOP], dim=-1)
