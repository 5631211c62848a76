"""Changing how many attention heads a block has: its width stays, so weights are the same and only split otherwise.

TinyMIM aligns the student's last block with its teacher's block this way. Nothing in the weights shows it, so the
counts are part of the network's record and come back wherever the network is built from a run.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone
from vitdistill.models.record import attach_record, record_of


def head_count(backbone: Backbone, block: int) -> int:
    """Attention heads of a block.

    Raises:
        UserError: when there is no such block, or it has no attention with heads.
    """
    return int(_attention(backbone, block).num_heads)


def possible_head_counts(width: int) -> list[int]:
    """Head counts into which a width can be split."""
    return [count for count in range(1, width + 1) if width % count == 0]


def set_heads(backbone: Backbone, heads: Mapping[int, int]) -> None:
    """Give blocks other head counts, and remember them in the network's record.

    Args:
        backbone: changed in place; no weight changes.
        heads: block (from 0, or negative from the end) -> heads.

    Raises:
        UserError: when a width cannot be split into that many heads, naming the counts that would do, or the
            attention normalises q and k per head, which fixes the width of a head.
    """
    changed = {}
    for block, count in heads.items():
        index = backbone.block_index(block)
        attention = _attention(backbone, index)
        if attention.num_heads == count:
            continue
        _check(backbone, index, attention, count)
        attention.num_heads, attention.head_dim = count, attention.qkv.out_features // 3 // count
        attention.scale = attention.head_dim**-0.5
        changed[index] = count
    record = record_of(backbone.net)
    record.heads = {**record.heads, **changed}
    counts = set(record.heads.values())
    if len(record.heads) == backbone.depth and len(counts) == 1:
        # The same everywhere is what the architecture's own argument says, and timm builds it without help.
        record.args, record.heads = {**record.args, "num_heads": counts.pop()}, {}
    attach_record(backbone.net, record)


def _attention(backbone: Backbone, block: int) -> Any:
    attention = getattr(backbone.blocks[backbone.block_index(block)], "attn", None)
    if attention is None or not hasattr(attention, "qkv") or not hasattr(attention, "num_heads"):
        raise UserError(
            f"Block {block} of {backbone.name} must have attention heads over a fused qkv projection",
            type(attention).__name__,
            "Choose a ViT or DeiT",
        )
    return attention


def _check(backbone: Backbone, block: int, attention: Any, count: int) -> None:
    if getattr(backbone.net, "rope", None) is not None or backbone.has_bias or attention.qkv is None:
        raise UserError(
            f"Block {block} of {backbone.name} has {attention.num_heads} heads, and its rotary or relative positions, "
            "or separate projections, fix their width",
            f"{count} heads",
            f"Choose a teacher whose block has {attention.num_heads} heads, or a plain ViT as the student",
        )
    width = attention.qkv.out_features // 3
    if count < 1 or width % count:
        counts = ", ".join(map(str, possible_head_counts(width)))
        raise UserError(
            f"Block {block} of {backbone.name} has {width} channels, which must be a multiple of the heads",
            f"{count} heads",
            f"{counts} would do",
        )
    for name in ("q_norm", "k_norm"):
        if not isinstance(getattr(attention, name, nn.Identity()), nn.Identity):
            raise UserError(
                f"Block {block} of {backbone.name} normalises q and k per head, so its heads cannot be split otherwise",
                remedy="Build it without qk_norm",
            )
