"""Multiply-accumulates (MACs) of one forward pass, from the shapes of the network's own modules.

The convention is the MaskedKD paper's, which calls a MAC a FLOP: linear maps, convolutions and the two attention
products; LayerNorm as 5 MACs per element; nothing for softmax, activations, biases, residuals, LayerScale and
positions. It reproduces the PFLOPs columns of the paper's tables within 0.3%. With `layernorm=False` it equals half of
`torch.utils.flop_counter.FlopCounterMode` exactly.

No weight is read, so networks may live on the `meta` device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from math import ceil, prod
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.cait import LayerScaleBlockClassAttn, TalkingHeadAttn
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone
from vitdistill.models.families.cait import CaiT
from vitdistill.models.families.swin import Swin
from vitdistill.models.families.video_vit import TubeletEmbed
from vitdistill.models.families.vit import ViT
from vitdistill.types import NOTHING, Capture

LAYERNORM_MACS_PER_ELEMENT = 5


@dataclass(frozen=True)
class Macs:
    """MACs of one image, by part. Add two passes with `+`, scale with `*`.

    Attributes:
        patch_embed: the convolution over all patches, kept or not.
        patch_merging: the reductions between Swin's stages.
        projections: q, k, v and output projections of self-attention.
        attention: q with k, and scores with v.
        mlp: the linear maps of the MLPs of the self-attention blocks.
        talking_heads: CaiT's maps between heads, before and after the softmax.
        class_attention: CaiT's class-attention blocks, all but their norms.
        layernorm: 5 MACs per normalised element.
        head: attention pooling where there is any, and the classifiers.
        other: the whole network, where it is measured by tracing and has no named parts.
    """

    patch_embed: int = 0
    patch_merging: int = 0
    projections: int = 0
    attention: int = 0
    mlp: int = 0
    talking_heads: int = 0
    class_attention: int = 0
    layernorm: int = 0
    head: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(asdict(self).values())

    @property
    def blocks(self) -> int:
        """What lies between patch embedding and head: the figure of the paper's Table 10."""
        return self.total - self.patch_embed - self.head

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __mul__(self, count: int) -> "Macs":
        return Macs(**{name: value * count for name, value in asdict(self).items()})

    def parts(self) -> dict[str, int]:
        """The parts that are not zero, by name."""
        return {name: value for name, value in asdict(self).items() if value}


def backbone_macs(
    backbone: Backbone,
    keep: int | None = None,
    *,
    layernorm: bool = True,
    image_size: tuple[int, int] | None = None,
    capture: Capture = NOTHING,
) -> Macs:
    """MACs of one forward pass over one image, as the adapter runs it.

    Args:
        backbone: on any device, `meta` included.
        keep: patches that enter the blocks, in the backbone's own grid; None for all. The patch embedding always
            covers every patch, since positions are added before any is dropped.
        layernorm: whether LayerNorm counts.
        image_size: height and width in pixels, for networks without a fixed one (CNNs); others know theirs.
        capture: where the pass stops: a ViT's that needs no logits ends where the capture looks last.

    Raises:
        UserError: when `keep` is not between 1 and the patches of the grid, or patches cannot be left out.
    """
    patches = backbone.grid.count
    if keep is not None and not backbone.maskable:
        raise UserError(
            f"{backbone.name} cannot leave out patches", f"keep {keep}", "Count it with every patch (--keep 1.0)"
        )
    if keep is not None and not 1 <= keep <= patches:
        raise UserError(f"Kept patches must be between 1 and {patches}", keep)
    kept = patches if keep is None else keep

    if isinstance(backbone, ViT) and _is_plain(backbone):
        return _vit(backbone, kept, layernorm, capture)
    if isinstance(backbone, CaiT) and _is_plain(backbone):
        return _cait(backbone, kept, layernorm)
    if isinstance(backbone, Swin):
        return _swin(backbone, layernorm)
    return _traced_backbone(backbone, keep, layernorm, image_size or backbone.image_size)


def block_macs(block: nn.Module, tokens: int, *, layernorm: bool = True) -> Macs:
    """MACs of one block.

    Args:
        block: a block with `attn` (fused `qkv`) and `mlp`, a class-attention block of CaiT, or a block of Swin.
        tokens: tokens that enter it, prefix tokens included (class attention: the class token included). A Swin
            block knows its own resolution, so there `tokens` is only checked against it.
        layernorm: whether LayerNorm counts.

    Raises:
        TypeError: for any other kind of block.
    """
    if isinstance(block, LayerScaleBlockClassAttn):
        return _class_attention_block(block, tokens, layernorm)
    if isinstance(block, SwinTransformerBlock):
        return _window_block(block, tokens, layernorm)
    if not _is_self_attention_block(block):
        raise TypeError(f"no analytic count for blocks of type {type(block).__name__}; use traced_macs")
    return _self_attention_block(block, tokens, layernorm)


# --- families ----------------------------------------------------------------------------------------------------


def _vit(backbone: ViT, kept: int, layernorm: bool, capture: Capture) -> Macs:
    net, tokens = backbone.net, backbone.prefix + kept
    total = _patch_embed(net.patch_embed, backbone.grid.count, layernorm)
    total += _norm(net.norm_pre, tokens, layernorm)
    whole, only_qkv = backbone.blocks_run(capture)
    for block in backbone.blocks[:whole]:
        total += block_macs(block, tokens, layernorm=layernorm)
    if only_qkv:
        stopped: Any = backbone.blocks[whole]
        total += _norm(stopped.norm1, tokens, layernorm) + Macs(projections=_linears(stopped.attn.qkv) * tokens)
    if not capture.logits:
        return total
    total += _norm(net.norm, tokens, layernorm) + _norm(net.fc_norm, 1, layernorm)
    return total + _head(net)


def _cait(backbone: CaiT, kept: int, layernorm: bool) -> Macs:
    net = backbone.net
    total = _patch_embed(net.patch_embed, backbone.grid.count, layernorm)
    for index, block in enumerate(backbone.blocks):
        tokens = kept if index < backbone.trunk_depth else kept + 1
        total += block_macs(block, tokens, layernorm=layernorm)
    return total + _norm(net.norm, kept + 1, layernorm) + _head(net)


def _swin(backbone: Swin, layernorm: bool) -> Macs:
    net = backbone.net
    total = _patch_embed(net.patch_embed, net.patch_embed.num_patches, layernorm)
    for stage in net.layers:
        positions = prod(stage.output_resolution)
        if isinstance(stage.downsample, PatchMerging):
            total += Macs(patch_merging=_linears(stage.downsample) * positions)
            total += _norm(stage.downsample.norm, positions, layernorm)
        for block in stage.blocks:
            total += block_macs(block, positions, layernorm=layernorm)
    return total + _norm(net.norm, backbone.grid.count, layernorm) + _head(net)


# --- blocks and parts --------------------------------------------------------------------------------------------


def _self_attention_block(block: nn.Module, tokens: int, layernorm: bool) -> Macs:
    attention: Any = block.attn
    macs = Macs(attention=2 * tokens**2 * attention.proj.in_features, mlp=_mlp(block) * tokens)
    if isinstance(attention, TalkingHeadAttn):
        mixing = _linears(attention.proj_l) + _linears(attention.proj_w)
        macs += Macs(
            projections=(_linears(attention) - mixing) * tokens,
            talking_heads=mixing * tokens**2,  # one h x h map per pair of tokens, twice
        )
    else:
        macs += Macs(projections=_linears(attention) * tokens)
    return macs + _norms_in(block, tokens, layernorm)


def _class_attention_block(block: LayerScaleBlockClassAttn, tokens: int, layernorm: bool) -> Macs:
    """The class token alone asks: q, output projection and MLP see one token, k and v all of them."""
    attention: Any = block.attn
    per_token = _linears(attention.k) + _linears(attention.v)
    once = _linears(attention.q) + _linears(attention.proj) + _mlp(block)
    scores = 2 * tokens * attention.q.out_features
    macs = Macs(class_attention=per_token * tokens + once + scores)
    return macs + _norm(block.norm1, tokens, layernorm) + _norm(block.norm2, 1, layernorm)


def _window_block(block: SwinTransformerBlock, tokens: int, layernorm: bool) -> Macs:
    """Windows that stick out over the edge are padded, and the padding is computed on."""
    height, width = block.input_resolution
    if tokens != height * width:
        raise ValueError(f"this Swin block sees {height}x{width} positions, not {tokens}")
    windows = ceil(height / block.window_size[0]) * ceil(width / block.window_size[1])
    area, attention = block.window_area, block.attn
    macs = Macs(
        projections=_linears(attention) * windows * area,
        attention=2 * windows * area**2 * attention.proj.in_features,
        mlp=_mlp(block) * tokens,
    )
    return macs + _norms_in(block, tokens, layernorm)


def _patch_embed(patch_embed: PatchEmbed | TubeletEmbed, patches: int, layernorm: bool) -> Macs:
    macs = Macs(patch_embed=patch_embed.proj.weight.numel() * patches)
    return macs if isinstance(patch_embed, TubeletEmbed) else macs + _norm(patch_embed.norm, patches, layernorm)


def _head(net: nn.Module) -> Macs:
    """All classifiers: a distilled DeiT has two."""
    return Macs(head=_linears(net.get_submodule("head")) + _linears(getattr(net, "head_dist", None)))


def _mlp(block: nn.Module) -> int:
    return _linears(block.get_submodule("mlp"))


def _linears(module: nn.Module | None) -> int:
    """MACs of the linear maps inside `module` for one token."""
    modules = module.modules() if module is not None else ()
    return sum(part.weight.numel() for part in modules if isinstance(part, nn.Linear))


def _norm(norm: nn.Module, tokens: int, layernorm: bool) -> Macs:
    if not layernorm or not isinstance(norm, nn.LayerNorm):
        return Macs()
    return Macs(layernorm=LAYERNORM_MACS_PER_ELEMENT * prod(norm.normalized_shape) * tokens)


def _norms_in(block: nn.Module, tokens: int, layernorm: bool) -> Macs:
    attention: Any = block.attn
    total = Macs()
    for name, module in block.named_modules():
        # Norms of q and k see every head as a row of its own.
        rows = tokens * attention.num_heads if name in ("attn.q_norm", "attn.k_norm") else tokens
        total += _norm(module, rows, layernorm)
    return total


# --- tracing -----------------------------------------------------------------------------------------------------


def traced_macs(module: nn.Module, *inputs: Any, layernorm: bool = True, **options: Any) -> Macs:
    """MACs of one call of any module, all under `other`: half of FlopCounterMode's count on the `meta` device.

    Args:
        module: on any device; its weights are not read and its mode is restored.
        inputs: positional inputs, tensors on the `meta` device.
        layernorm: whether LayerNorm counts.
        options: keyword inputs.
    """
    # Detached: FlopCounterMode's module tracker stumbles over views of parameters made without gradient.
    state = {name: tensor.detach().to("meta") for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    counter = FlopCounterMode(display=False)
    with _in_eval(module), _counting_norms(module) as normalised, torch.no_grad(), counter:
        functional_call(module, state, inputs, options)
    norms = LAYERNORM_MACS_PER_ELEMENT * sum(normalised) if layernorm else 0
    return Macs(other=counter.get_total_flops() // 2, layernorm=norms)


def _traced_backbone(backbone: Backbone, keep: int | None, layernorm: bool, size: tuple[int, int]) -> Macs:
    channels = getattr(backbone.net, "in_chans", len(backbone.mean))
    images = torch.empty(1, channels, *size, device="meta")
    selection = None if keep is None else torch.empty(1, keep, dtype=torch.long, device="meta")
    return traced_macs(backbone, images, layernorm=layernorm, keep=selection)


@contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def _counting_norms(module: nn.Module) -> Iterator[list[int]]:
    """Collects the elements that LayerNorms inside `module` put out."""
    elements: list[int] = []

    def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        elements.append(output.numel())

    norms = [part for part in module.modules() if isinstance(part, nn.LayerNorm)]
    handles = [norm.register_forward_hook(note) for norm in norms]
    try:
        yield elements
    finally:
        for handle in handles:
            handle.remove()


# --- what the analytic count covers ------------------------------------------------------------------------------


def _is_plain(backbone: Backbone) -> bool:
    """Whether patch embedding, blocks and pooling are of the kinds that the analytic count knows."""
    net = backbone.net
    return (
        isinstance(net.patch_embed, PatchEmbed | TubeletEmbed)
        and getattr(net, "attn_pool", None) is None
        and all(isinstance(b, LayerScaleBlockClassAttn) or _is_self_attention_block(b) for b in backbone.blocks)
    )


def _is_self_attention_block(block: nn.Module) -> bool:
    """Self-attention with a fused qkv and an MLP, and no linear map anywhere else."""
    attention, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
    if attention is None or mlp is None or not hasattr(attention, "num_heads"):
        return False
    known = {"qkv", "proj", "gate", "proj_l", "proj_w"}
    inside = {name for name, part in attention.named_modules() if isinstance(part, nn.Linear)}
    return {"qkv", "proj"} <= inside <= known and _linears(block) == _linears(attention) + _linears(mlp)
