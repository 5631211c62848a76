"""Patch saliency from attention that a block computes anyway. Scores are detached and float32, also under autocast."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def cls_attention(
    q_cls: Float[Tensor, "b h d"],
    k: Float[Tensor, "b h m d"],
    *,
    prefix: int,
    over: Literal["all", "patches"] = "all",
    bias: Float[Tensor, "1 h m"] | None = None,
) -> Float[Tensor, "b n"]:
    """Attention of the class token to each patch, averaged over heads (MaskedKD, Eq. 2).

    Costs one row of q against k per head: m*d multiply-adds, 1/m of the block's attention scores.

    Args:
        q_cls: queries of the class token.
        k: keys of all tokens, prefix tokens first.
        prefix: number of prefix tokens, left out of the result.
        over: "all" normalises over every token and then drops the prefix columns (the authors' code); "patches"
            normalises over the patches alone (Eq. 2 as written). The kept sets differ by a patch or so.
        bias: added to the scores of all tokens (BEiT's relative positions).
    """
    q_cls, k = q_cls.detach().float(), k.detach().float()
    if over == "patches":
        k, bias = k[:, :, prefix:], None if bias is None else bias[:, :, prefix:]
        prefix = 0
    with without_autocast(k.device):
        scores = torch.einsum("bhd,bhmd->bhm", q_cls * q_cls.shape[-1] ** -0.5, k)
        scores = scores if bias is None else scores + bias.detach().float()
        return scores.softmax(dim=-1)[..., prefix:].mean(dim=1)


def attention_received(
    q: Float[Tensor, "b h m d"],
    k: Float[Tensor, "b h m d"],
    *,
    prefix: int,
    bias: Float[Tensor, "1 h m m"] | None = None,
) -> Float[Tensor, "b n"]:
    """Attention that each patch receives from the patches, averaged over heads and queries ("patch-patch", Table 6).

    Holds one head's (b, n, m) scores at a time.

    Args:
        q: queries of all tokens, prefix tokens first.
        k: keys of all tokens, prefix tokens first.
        prefix: number of prefix tokens; left out as queries and of the result, kept in the softmax.
        bias: added to the scores (Swin's and BEiT's relative position bias).
    """
    bias = None if bias is None else bias[:, :, prefix:]
    return attention_of_queries(q[:, :, prefix:], k, prefix=prefix, bias=bias)


def attention_of_queries(
    q: Float[Tensor, "b h r d"],
    k: Float[Tensor, "b h m d"],
    *,
    prefix: int,
    bias: Float[Tensor, "1 h r m"] | None = None,
) -> Float[Tensor, "b n"]:
    """Attention of some queries to each patch, over all tokens, averaged over heads and queries.

    Holds one head's (b, r, m) scores at a time.

    Args:
        q: queries of the tokens that look: a detector's detection tokens, or all patches.
        k: keys of all tokens, prefix tokens first.
        prefix: number of prefix tokens; left out of the result, kept in the softmax.
        bias: added to the scores.
    """
    q, k = q.detach().float() * q.shape[-1] ** -0.5, k.detach().float()
    total = torch.zeros(k.shape[0], k.shape[2], device=k.device)
    with without_autocast(k.device):
        for head in range(q.shape[1]):
            scores = q[:, head] @ k[:, head].transpose(-2, -1)
            if bias is not None:
                scores = scores + bias.detach().float()[:, head]
            total += scores.softmax(dim=-1).mean(dim=1)
    return total[:, prefix:] / q.shape[1]


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast would round the scores to bfloat16, where neighbours tie. The meta device knows no autocast."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
