"""Taking selected patches out of a token sequence and putting them back."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def keep_patches(
    tokens: Float[Tensor, "b m d"], keep: Int[Tensor, "bs k"], prefix: int = 0
) -> Float[Tensor, "bs pk d"]:
    """The prefix tokens followed by the patches in `keep` (patch coordinates), in the order given.

    Args:
        tokens: of every sample, prefix first.
        keep: one selection per sample, or the same number of selections of each, those of the first sample first.
        prefix: prefix tokens.
    """
    # One gather for all selections of a sample, so that its tokens are not copied for each.
    patches = take(tokens[:, prefix:], keep.reshape(len(tokens), -1)).reshape(*keep.shape, tokens.shape[-1])
    if not prefix:
        return patches
    return torch.cat((tokens[:, :prefix].repeat_interleave(len(keep) // len(tokens), dim=0), patches), dim=1)


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
