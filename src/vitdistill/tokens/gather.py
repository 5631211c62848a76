"""Taking selected patches out of a token sequence and putting them back."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def keep_patches(tokens: Float[Tensor, "b m d"], keep: Int[Tensor, "b k"], prefix: int = 0) -> Float[Tensor, "b pk d"]:
    """The prefix tokens followed by the patches in `keep` (patch coordinates), in the order given."""
    patches = take(tokens[:, prefix:], keep)
    return torch.cat((tokens[:, :prefix], patches), dim=1) if prefix else patches


def take(patches: Float[Tensor, "b n d"], keep: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    """Rows `keep` of every sample. The index is expanded, not repeated, so it costs no memory per channel."""
    return patches.gather(1, keep.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))


def restore(
    visible: Float[Tensor, "b k d"], keep: Int[Tensor, "b k"], fill: Float[Tensor, "b n d"]
) -> Float[Tensor, "b n d"]:
    """`fill` with rows `keep` replaced by `visible`: the inverse of `take` on the kept rows."""
    return fill.scatter(1, keep.unsqueeze(-1).expand(-1, -1, fill.shape[-1]), visible.to(fill.dtype))


def complement(keep: Int[Tensor, "b k"], count: int) -> Int[Tensor, "b r"]:
    """The patches not in `keep`, ascending, without a host-device synchronisation (`keep` has no repeats)."""
    dropped = torch.ones(keep.shape[0], count, device=keep.device, dtype=torch.int8).scatter(1, keep, 0)
    return dropped.argsort(dim=1, descending=True, stable=True)[:, : count - keep.shape[1]]
