"""Weighted k-nearest-neighbour classification on frozen features (Wu et al. 2018; DINO, section 3.2)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from vitdistill.errors import UserError
from vitdistill.evaluation.accuracy import hits, percent
from vitdistill.evaluation.progress import track

# Similarities that are held at one time (float32: 256 MiB).
CHUNK_ELEMENTS = 2**26


def vote(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, "n"],
    queries: Float[Tensor, "b d"],
    classes: int,
    k: Sequence[int],
    temperature: float,
) -> Float[Tensor, "ks b c"]:
    """Votes of the nearest training images, one set per `k`.

    The k training images of highest cosine similarity vote for their classes with the weight exp(similarity /
    temperature).

    Args:
        train: features of training images, L2-normalised.
        labels: their class numbers.
        queries: features to classify, L2-normalised.
        classes: number of classes.
        k: neighbours that vote.
        temperature: the lower, the more the nearest decide.

    Returns:
        Logarithms of the votes, which cannot overflow at low temperatures; -inf for classes without any.
    """
    similarity, nearest = (queries @ train.T).topk(max(k), dim=1)
    weight, voted = similarity / temperature, labels[nearest]
    highest = weight[:, :1]  # of the nearest; relative to it no weight exceeds 1
    return torch.stack(
        [
            weight.new_zeros(len(queries), classes)
            .scatter_add_(1, voted[:, :count], (weight - highest)[:, :count].exp())
            .log()
            + highest
            for count in k
        ]
    )


def knn_accuracy(
    train: Float[Tensor, "n d"],
    train_labels: Int64[Tensor, "n"],
    queries: Float[Tensor, "q d"],
    query_labels: Int64[Tensor, "q"],
    classes: int,
    *,
    k: Sequence[int] = (10, 20),
    temperature: float = 0.07,
    chunk: int | None = None,
) -> list[dict[str, float]]:
    """Accuracy of weighted k-nearest-neighbour classification.

    Args:
        train: features of the training images.
        train_labels: their class numbers.
        queries: features of the images to classify, on the same device.
        query_labels: their class numbers.
        classes: number of classes.
        k: neighbours that vote; several give one result each.
        temperature: of the votes.
        chunk: queries compared at a time; by default as many as keep the similarities below 256 MiB.

    Returns:
        Per `k`: k, and top1 and top5 in percent. A class counts into the top five only if a neighbour voted for it.

    Raises:
        UserError: when a `k` is below 1 or above the number of training images, or the temperature is not positive.
    """
    k = list(dict.fromkeys(k))
    check_votes(k, temperature, len(train))
    train, queries = normalize(train, dim=1), normalize(queries, dim=1)
    chunk = chunk or max(1, CHUNK_ELEMENTS // len(train))
    counts = torch.zeros(len(k), 2, dtype=torch.int64, device=queries.device)
    starts = range(0, len(queries), chunk)
    for start in track(starts, "neighbours", len(starts)):
        part = slice(start, start + chunk)
        votes = vote(train, train_labels, queries[part], classes, k, temperature)
        counts += hits(votes, query_labels[part]).sum(dim=1)
    return [{"k": count, **score} for count, score in zip(k, percent(counts, len(queries)), strict=True)]


def check_votes(k: Sequence[int], temperature: float, images: int) -> None:
    """Check the options of the vote, before features are computed.

    Args:
        k: neighbours that vote.
        temperature: of the votes.
        images: number of training images.

    Raises:
        UserError: when a `k` is below 1 or above the number of images, or the temperature is not positive.
    """
    if not k or min(k) < 1:
        raise UserError("k must be at least 1", ", ".join(map(str, k)) or "none")
    if max(k) > images:
        raise UserError("k must be at most the number of training images", f"k {max(k)} and {images} images")
    if not 0 < temperature < float("inf"):
        raise UserError("The temperature must be positive", temperature)
