"""Stochastic depth (drop path) of a built network: how often a block's branches are left out in training.

timm sets the rates when it builds a network. Here they are set on a network that exists, with its weights: on whatever
timm's blocks call `drop_path`, `drop_path1`, ..., in any family (ViT, CaiT, all stages of Swin, ResNet, ConvNeXt, ...).
"""

import re
from collections.abc import Sequence

from timm.layers import DropPath
from timm.models.cait import Cait
from torch import nn

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone
from vitdistill.models.network import Network

_BRANCH = re.compile(r"([a-z]+_)?drop_path\d*")


def set_drop_path(network: Network, rates: float | Sequence[float]) -> None:
    """Give every block its rate.

    Args:
        network: changed in place.
        rates: in [0, 1): one per block, or one number for the profile that timm builds the family with: rising from 0
            in the first block to this rate in the last; in CaiT this rate in all blocks of the trunk and none in the
            class-attention blocks (Touvron et al., 2021).

    Raises:
        UserError: when a rate is out of range, or above 0 for a network without drop path.

    Example:
        >>> swin = build("swin_tiny_patch4_window7_224")
        >>> set_drop_path(swin, 0.22)
        >>> drop_path_rates(swin)
        [0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.22]
    """
    blocks = _blocks(network)
    given = [rates] if isinstance(rates, int | float) else list(rates)
    for rate in given:
        if not 0 <= rate < 1:
            raise UserError("Drop path rates must lie in [0, 1)", rate)
    if not blocks:
        if any(given):
            raise UserError(f"{network.name} has no drop path that could be set", max(given), "Use --drop_path 0")
        return
    if not isinstance(rates, int | float):
        per_block = given
    elif isinstance(network.net, Cait):
        trunk = len(network.net.blocks)
        per_block = [float(rates)] * trunk + [0.0] * (len(blocks) - trunk)
    else:
        per_block = rising(rates, len(blocks))
    for branches, rate in zip(blocks, per_block, strict=True):
        for owner, name in branches:
            # Where nothing is dropped, ResNets have None and all others an Identity; a ResNet takes this, too.
            setattr(owner, name, DropPath(rate) if rate > 0 else nn.Identity())


def drop_path_rates(network: Network) -> list[float]:
    """The rate of every block that can be dropped, in the order in which they run; empty where there is none."""
    return [
        max(float(getattr(getattr(owner, name), "drop_prob", 0.0)) for owner, name in branches)
        for branches in _blocks(network)
    ]


def _blocks(network: Network) -> list[list[tuple[nn.Module, str]]]:
    """The branches that can be dropped, as (module, attribute), block by block.

    A block is one of the adapter's, or, outside of these, the module that has the branches.
    """
    blocks_of = network.blocks if isinstance(network, Backbone) else []
    block_of = {module: block for block in blocks_of for module in block.modules()}
    blocks: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    trunk = network.trunk if isinstance(network, Backbone) else network.net
    for owner in trunk.modules():
        for name, value in {**vars(owner), **owner._modules}.items():
            if _BRANCH.fullmatch(name) and (value is None or isinstance(value, nn.Identity | DropPath)):
                blocks.setdefault(block_of.get(owner, owner), []).append((owner, name))
    return list(blocks.values())


def rising(rate: float, depth: int) -> list[float]:
    """0 in the first block to `rate` in the last, in equal steps.

    timm's `calculate_drop_path_rates` gives the same rounded to float32; runs that were made with these stay exact.
    """
    return [rate * block / max(1, depth - 1) for block in range(depth)]


def constant_but_last(rate: float, depth: int) -> list[float]:
    """`rate` in all blocks but the last, which is never dropped (TinyMIM's student)."""
    return [rate] * (depth - 1) + [0.0]
