"""Multiply-accumulates (MACs) of one forward pass, from the shapes of the network's own modules.

The convention is the MaskedKD paper's, which calls a MAC a FLOP: linear maps, convolutions and the two attention
products; LayerNorm as 5 MACs per element; nothing for softmax, activations, biases, residuals, LayerScale and
positions. It reproduces the PFLOPs columns of the paper's tables within 0.3%. With `layernorm=False` it equals half of
`torch.utils.flop_counter.FlopCounterMode` exactly.

No weight is read, so networks may live on the `meta` device.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any

import torch
from timm.layers import AttentionPoolLatent, PatchEmbed
from timm.models.cait import TalkingHeadAttn
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from vitdistill.errors import UserError

LAYERNORM_MACS_PER_ELEMENT = 5


@dataclass(frozen=True)
class Macs:
    """MACs of one image, by part. Add two passes with `+`, scale with `*`.

    Attributes:
        patch_embed: the convolution over all patches, kept or not.
        convolutions: ConvViT's blocks of convolutions, which see the whole image.
        patch_merging: the reductions between Swin's stages.
        projections: q, k, v and output projections of self-attention.
        attention: q with k, and scores with v.
        mlp: the linear maps of the MLPs of the self-attention blocks.
        talking_heads: CaiT's maps between heads, before and after the softmax.
        class_attention: CaiT's class-attention blocks, all but their norms.
        layernorm: 5 MACs per normalised element.
        matching: how similar tokens are that may be merged.
        head: attention pooling where there is any, and the classifiers.
        other: the whole network, where it is measured by tracing and has no named parts.
    """

    patch_embed: int = 0
    convolutions: int = 0
    patch_merging: int = 0
    projections: int = 0
    attention: int = 0
    mlp: int = 0
    talking_heads: int = 0
    class_attention: int = 0
    layernorm: int = 0
    matching: int = 0
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


def check_kept(network: Any, kept: int | None) -> None:
    """
    Args:
        network: any `Network`.
        kept: patches that enter its blocks; None for all.

    Raises:
        UserError: when `kept` is not between 1 and the patches of the grid, or patches cannot be left out.
    """
    if kept is None:
        return
    if not network.maskable:
        raise UserError(
            f"{network.name} cannot leave out patches", f"keep {kept}", "Count it with every patch (--keep 1.0)"
        )
    if not 1 <= kept <= network.grid.count:
        raise UserError(f"Kept patches must be between 1 and {network.grid.count}", kept)


# --- blocks and parts --------------------------------------------------------------------------------------------


def self_attention_macs(block: Any, tokens: int, layernorm: bool = True) -> Macs:
    """A block of self-attention with a fused qkv and an MLP, CaiT's talking heads included.

    Args:
        block: on any device.
        tokens: that enter it, special tokens included.
        layernorm: whether LayerNorm counts.

    Raises:
        TypeError: for any other kind of block.
    """
    if not is_self_attention_block(block):
        raise TypeError(f"no analytic count for blocks of type {type(block).__name__}; use traced_macs")
    attention = block.attn
    macs = Macs(attention=2 * tokens**2 * attention.proj.in_features, mlp=mlp_macs(block) * tokens)
    if isinstance(attention, TalkingHeadAttn):
        mixing = linears(attention.proj_l) + linears(attention.proj_w)
        macs += Macs(
            projections=(linears(attention) - mixing) * tokens,
            talking_heads=mixing * tokens**2,  # one h x h map per pair of tokens, twice
        )
    else:
        macs += Macs(projections=linears(attention) * tokens)
    return macs + block_norm_macs(block, tokens, layernorm)


def mlp_branch_macs(block: Any, tokens: int, layernorm: bool = True) -> Macs:
    """The part of `self_attention_macs` that lies behind attention: `norm2` and MLP."""
    total = Macs(mlp=mlp_macs(block) * tokens)
    for module in (block.norm2, *block.mlp.modules()):
        total += norm_macs(module, tokens, layernorm)
    return total


def head_macs(net: nn.Module) -> Macs:
    """All classifiers: a distilled DeiT has two."""
    return Macs(head=linears(net.get_submodule("head")) + linears(getattr(net, "head_dist", None)))


def pool_macs(net: Any, tokens: int, layernorm: bool = True) -> Macs:
    """Attention pooling (SigLIP, Perception Encoder): keys and values of all tokens, the rest for the latent query.

    Args:
        net: a ViT, with `attn_pool` or without.
        tokens: that leave its final norm, special tokens included.
        layernorm: whether LayerNorm counts.
    """
    pool = getattr(net, "attn_pool", None)
    if pool is None:
        return Macs()
    tokens -= 0 if getattr(net, "pool_include_prefix", True) else net.num_prefix_tokens
    once = linears(pool) - linears(pool.kv)
    scores = 2 * tokens * pool.num_heads * pool.head_dim
    total = Macs(head=linears(pool.kv) * tokens + (once + scores) * pool.latent_len)
    total += norm_macs(pool.norm, pool.latent_len, layernorm)
    # Norms of q and k see every head as a row of its own.
    total += norm_macs(pool.q_norm, pool.latent_len * pool.num_heads, layernorm)
    return total + norm_macs(pool.k_norm, tokens * pool.num_heads, layernorm)


def mlp_macs(block: nn.Module) -> int:
    """MACs of a block's MLP for one token."""
    return linears(block.get_submodule("mlp"))


def linears(module: nn.Module | None) -> int:
    """MACs of the linear maps inside `module` for one token."""
    modules = module.modules() if module is not None else ()
    return sum(part.weight.numel() for part in modules if isinstance(part, nn.Linear))


def norm_macs(norm: nn.Module | None, tokens: int, layernorm: bool) -> Macs:
    """A LayerNorm over `tokens` rows; nothing for other modules, or where LayerNorm does not count."""
    if not layernorm or not isinstance(norm, nn.LayerNorm):
        return Macs()
    return Macs(layernorm=LAYERNORM_MACS_PER_ELEMENT * prod(norm.normalized_shape) * tokens)


def block_norm_macs(block: nn.Module, tokens: int, layernorm: bool) -> Macs:
    """All norms inside a block."""
    attention: Any = block.attn
    total = Macs()
    for name, module in block.named_modules():
        # Norms of q and k see every head as a row of its own.
        rows = tokens * attention.num_heads if name in ("attn.q_norm", "attn.k_norm") else tokens
        total += norm_macs(module, rows, layernorm)
    return total


def is_countable(net: Any, blocks: Sequence[nn.Module]) -> bool:
    """Whether patch embedding, blocks and pooling of a ViT are of the kinds that are counted without tracing.

    A patch embedding of another kind counts as one convolution when it says so by an attribute `tubelet`.
    """
    embed = net.patch_embed
    return (
        (isinstance(embed, PatchEmbed) or hasattr(embed, "tubelet"))
        and isinstance(getattr(net, "attn_pool", None), AttentionPoolLatent | None)
        and all(is_self_attention_block(block) for block in blocks)
    )


def is_self_attention_block(block: nn.Module) -> bool:
    """Self-attention with a fused qkv and an MLP, and no linear map anywhere else."""
    attention, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
    if attention is None or mlp is None or not hasattr(attention, "num_heads"):
        return False
    known = {"qkv", "proj", "gate", "proj_l", "proj_w"}
    inside = {name for name, part in attention.named_modules() if isinstance(part, nn.Linear)}
    return {"qkv", "proj"} <= inside <= known and linears(block) == linears(attention) + linears(mlp)


# --- tracing -----------------------------------------------------------------------------------------------------


def traced_macs(module: nn.Module, shape: Sequence[int], kept: int | None = None, *, layernorm: bool = True) -> Macs:
    """MACs of one call of any module, all under `other`: half of FlopCounterMode's count on the `meta` device.

    Args:
        module: on any device; its weights are not read and its mode is restored.
        shape: of one input, without its batch dimension.
        kept: patches that enter the blocks of a `Network`; None for all.
        layernorm: whether LayerNorm counts.
    """
    inputs = torch.empty(1, *shape, device="meta")
    options = {} if kept is None else {"keep": torch.empty(1, kept, dtype=torch.long, device="meta")}
    # Detached: FlopCounterMode's module tracker stumbles over views of parameters made without gradient.
    state = {name: tensor.detach().to("meta") for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    counter = FlopCounterMode(display=False)
    with _in_eval(module), _counting_norms(module) as normalised, torch.no_grad(), counter:
        functional_call(module, state, (inputs,), options)
    norms = LAYERNORM_MACS_PER_ELEMENT * sum(normalised) if layernorm else 0
    return Macs(other=counter.get_total_flops() // 2, layernorm=norms)


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
