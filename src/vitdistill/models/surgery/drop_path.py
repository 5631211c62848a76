"""Stochastic depth (drop path) of a built network: how often a block's branches are left out in training."""

from collections.abc import Sequence

from timm.layers import DropPath
from torch import nn

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone

BRANCHES = ("drop_path1", "drop_path2")


def set_drop_path(backbone: Backbone, rates: Sequence[float]) -> None:
    """Give every block its rate.

    Args:
        backbone: a ViT; changed in place.
        rates: one per block, in [0, 1).

    Raises:
        UserError: when a rate is out of range, or the blocks have no drop path.
    """
    if not all(0 <= rate < 1 for rate in rates):
        raise UserError("Drop path rates must lie in [0, 1)", next(rate for rate in rates if not 0 <= rate < 1))
    assert len(rates) == backbone.depth
    if not any(rates) and not has_drop_path(backbone):
        return
    if not has_drop_path(backbone):
        raise UserError(f"{backbone.name} has no drop path that could be set", remedy="Use --drop_path 0")
    for block, rate in zip(backbone.blocks, rates, strict=True):
        for branch in BRANCHES:
            setattr(block, branch, DropPath(rate) if rate > 0 else nn.Identity())


def has_drop_path(backbone: Backbone) -> bool:
    """Whether the blocks have branches that can be dropped (timm's plain block)."""
    return all(hasattr(block, branch) for block in backbone.blocks for branch in BRANCHES)


def rising(rate: float, depth: int) -> list[float]:
    """0 in the first block to `rate` in the last (timm's profile)."""
    return [rate * block / max(1, depth - 1) for block in range(depth)]


def constant_but_last(rate: float, depth: int) -> list[float]:
    """`rate` in all blocks but the last, which is never dropped (TinyMIM's student)."""
    return [rate] * (depth - 1) + [0.0]
