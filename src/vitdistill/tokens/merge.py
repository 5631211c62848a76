"""Merging similar tokens: bipartite soft matching (ToMe, Bolya et al., 2023), written from its description.

A matching says of every token in which token of the output it ends. Special tokens stand first and stay by themselves.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitdistill.tokens.merge_schedule import merged_of
from vitdistill.tokens.saliency import without_autocast


class Matching(NamedTuple):
    """Where tokens go.

    Attributes:
        place: of each token in the output; tokens of one place are merged.
        left: tokens of the output.
    """

    place: Int[Tensor, "b m"]
    left: int


@torch.no_grad()
def match(metric: Float[Tensor, "b m d"], merge: int, protected: int = 0) -> Matching:
    """Match the most similar tokens: each of a half with its best in the other half, and of these the best pairs.

    Tokens 0, 2, 4, ... are one half, 1, 3, 5, ... the other. Those of the first half that are not merged come first in
    the output, then all of the second; special tokens before both. Among the former the order of the input stays where
    there are special tokens, and is that of the scores elsewhere, as in the authors' code, since the next matching
    halves the output by this order.

    Args:
        metric: what similarity is taken of; it is compared in float32.
        merge: pairs to merge; no more are than half of the tokens that may be merged.
        protected: special tokens before the others, of which none is merged.

    Example:
        >>> tokens, keys = torch.randn(2, 197, 384), torch.randn(2, 197, 64)
        >>> tokens, size = merge_tokens(tokens, None, match(keys, 8, protected=1))
        >>> tokens.shape
        torch.Size([2, 189, 384])
    """
    batch, tokens, _ = metric.shape
    merge = merged_of(merge, tokens, protected)
    every = torch.arange(tokens, device=metric.device).expand(batch, -1)
    if not merge:
        return Matching(every, tokens)
    with without_autocast(metric.device):
        unit = metric.to(torch.promote_types(metric.dtype, torch.float32))
        unit = unit / unit.norm(dim=-1, keepdim=True)
        first, second = unit[:, ::2], unit[:, 1::2]
        scores = first @ second.transpose(-2, -1)
    kept = (protected + 1) // 2, protected // 2  # special tokens of the two halves
    scores[:, : kept[0]] = -torch.inf
    scores[:, :, : kept[1]] = -torch.inf
    best, partner = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    gone, stays = order[:, :merge], order[:, merge:]
    if protected:
        stays = stays.sort(dim=-1).values

    # The tokens of the output by their place in the input: special ones, those that stay, and the second half.
    stays, others = 2 * stays, every[:, 1::2]
    output = torch.cat((every[:, :protected], stays[:, kept[0] :], others[:, kept[1] :]), dim=1)
    places = torch.arange(tokens - merge, device=metric.device).expand(batch, -1)
    place = torch.empty_like(every, memory_format=torch.contiguous_format).scatter(1, output, places)
    target = place.gather(1, 2 * partner.gather(1, gone) + 1)
    return Matching(place.scatter(1, 2 * gone, target), tokens - merge)


def merge_tokens(
    tokens: Float[Tensor, "b m d"], size: Float[Tensor, "b m"] | None, matching: Matching
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n"]]:
    """Tokens averaged over what is merged, and of how many of the first tokens each is made.

    Args:
        tokens: before; averages are taken in float32.
        size: of them; None where each is one.
        matching: of `match`.
    """
    exact = torch.promote_types(tokens.dtype, torch.float32)
    if size is None:
        size = torch.ones(tokens.shape[:2], dtype=exact, device=tokens.device)
    sums = size.new_zeros(len(size), matching.left).scatter_add(1, matching.place, size)
    weighted = tokens.to(exact) * size[..., None]
    index = matching.place[..., None].expand_as(weighted)
    merged = weighted.new_zeros(len(size), matching.left, tokens.shape[-1]).scatter_add(1, index, weighted)
    return (merged / sums[..., None]).to(tokens.dtype), sums


def traced(earlier: Int[Tensor, "b m0"] | None, matching: Matching) -> Int[Tensor, "b m0"]:
    """In which token each of the first tokens has ended after one more matching.

    Args:
        earlier: the same before it; None where it is the first.
        matching: of `match`.
    """
    return matching.place if earlier is None else matching.place.gather(1, earlier)


def sources(place: Int[Tensor, "b m0"], count: int) -> Int[Tensor, "b n m0"]:
    """Which of the first tokens are in each of `count` tokens, as zeros and ones.

    Args:
        place: of `traced`.
        count: tokens of the last output.
    """
    return torch.nn.functional.one_hot(place, count).transpose(1, 2)


def unmerge(tokens: Float[Tensor, "b n d"], place: Int[Tensor, "b m0"]) -> Float[Tensor, "b m0 d"]:
    """Every first token's place filled with the token in which it has ended.

    Args:
        tokens: merged.
        place: of `traced`.
    """
    return tokens.gather(1, place[..., None].expand(-1, -1, tokens.shape[-1]))
