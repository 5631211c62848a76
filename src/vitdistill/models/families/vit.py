"""timm's VisionTransformer family: ViT, DeiT (with and without distillation token), DeiT3, CLIP, MAE, registers."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import AttentionPoolLatent, PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitdistill.errors import UserError
from vitdistill.models.backbone import (
    Backbone,
    Captured,
    FusedQKVReader,
    QKVReader,
    SaliencyKind,
    is_sharded,
    kind_of,
)
from vitdistill.models.macs import (
    Macs,
    check_kept,
    head_macs,
    is_countable,
    linears,
    norm_macs,
    pool_macs,
    self_attention_macs,
)
from vitdistill.tokens.saliency import attention_received, cls_attention, without_autocast
from vitdistill.types import NOTHING, Capture, Output, Point, TokenGrid, Tokens


class ViT(Backbone):
    """Adapter over `timm.models.vision_transformer.VisionTransformer` and its subclasses.

    What differs within the family is decided by the network itself: whether special tokens have positions (DeiT3:
    no), a norm before the blocks (CLIP), mean pooling over the kept patches with `fc_norm` (MAE fine-tuned),
    LayerScale, register tokens, two heads (distilled DeiT).
    """

    def __init__(self, net: nn.Module) -> None:
        if getattr(net, "dynamic_img_size", False):
            raise UserError(
                "A backbone with dynamic image size has no fixed patch grid",
                remedy="Build it with a fixed img_size and dynamic_img_size=False",
            )
        super().__init__(net)

    @property
    def grid(self) -> TokenGrid:
        height, width = self.net.patch_embed.grid_size
        return TokenGrid(1, int(height), int(width))

    def _patch(self, height: int, width: int) -> tuple[int, int, int]:
        # Where patches do not fill the image, its size does not tell theirs.
        embed = self.net.patch_embed
        return (1, *embed.patch_size) if isinstance(embed, PatchEmbed) else super()._patch(height, width)

    @property
    def specials(self) -> int:
        return int(self.net.num_prefix_tokens)

    @property
    def blocks(self) -> Sequence[Any]:
        return list(self.net.blocks)

    def embed(self, inputs: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b m d"]:
        return self.net._pos_embed(self.net.patch_embed(inputs))

    def run_blocks(self, tokens: Float[Tensor, "b m d"], capture: Capture, captured: Captured) -> Tensor:
        return self.run_each(self.before_blocks(tokens), [()] * self.depth, capture, captured)

    def before_blocks(self, tokens: Float[Tensor, "b m d"]) -> Float[Tensor, "b m2 d"]:
        """What the first block takes, from the tokens that are kept."""
        return self.net.norm_pre(self.net.patch_drop(tokens))

    def run_each(
        self,
        tokens: Float[Tensor, "b m d"],
        beside: Sequence[tuple[Any, ...]],
        capture: Capture,
        captured: Captured,
    ) -> Tensor:
        """Run the blocks one after the other.

        Args:
            tokens: that enter the first block.
            beside: what each block takes besides the tokens.
            capture: see `run_blocks`.
            captured: see `run_blocks`.
        """
        whole, only_qkv = self.blocks_run(capture)
        for index in range(whole):
            tokens = self.run_block(index, tokens, *beside[index], capture=capture)
            if (index, "output") in capture.points:
                captured[index, "output"] = Tokens(tokens, self.specials)
        if only_qkv:
            self.project(self.blocks[whole], tokens, *beside[whole])
        return tokens

    def project(self, block: Any, tokens: Float[Tensor, "b m d"], *beside: Any) -> None:
        """Run a block as far as its q, k and v are read by a hook; nothing behind them is wanted."""
        block.attn.qkv(block.norm1(tokens))

    def is_known(self, block: Any) -> bool:
        """Whether the inside of a block is known: here, timm's pre-norm block, whose qkv takes `norm1` of its input."""
        return kind_of(block) is Block

    def blocks_run(self, capture: Capture) -> tuple[int, bool]:
        """How many blocks a pass runs whole, and whether it then runs the next one up to its q, k and v."""
        if capture.head:
            return self.depth, False
        whole = {self.block_index(block) for block, point in capture.points if point != "qkv"}
        last = max((self.block_index(block) for block, _ in capture.points), default=-1)
        # The weights of a sharded block are there in its own forward pass alone, so it runs whole.
        stops_inside = last >= 0 and last not in whole and self.is_known(self.blocks[last])
        stops_inside = stops_inside and not is_sharded(self.blocks[last])
        return (last, True) if stops_inside else (last + 1, False)

    def head(self, tokens: Tensor) -> tuple[Tokens, Tensor | tuple[Tensor, Tensor]]:
        tokens = self.net.norm(tokens)
        return Tokens(tokens, self.specials), self.net.forward_head(tokens)

    def read_qkv(self, block: int) -> QKVReader:
        return FusedQKVReader(getattr(self.blocks[block], "attn", self.blocks[block]), self.specials)

    def read_branch(self, block: int, point: Point, captured: Captured) -> RemovableHandle:
        module = self.blocks[block]
        if not self.is_known(module):
            return super().read_branch(block, point, captured)

        def keep_output(_module: nn.Module, _inputs: object, tokens: Tensor) -> None:
            captured[block, point] = Tokens(tokens, self.specials)

        def keep_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            captured[block, point] = Tokens(inputs[0], self.specials)

        if point == "attention_residual":
            return module.norm2.register_forward_pre_hook(keep_input)
        # After LayerScale and before drop path: what the branch adds when it is not dropped.
        return (module.ls1 if point == "attention" else module.ls2).register_forward_hook(keep_output)

    def reached(
        self,
        capture: Capture,
        roles: frozenset[str] = frozenset("qkv"),
        *,
        prediction: bool = True,
        special: bool = True,
    ) -> set[nn.Parameter]:
        if capture.head:
            return super().reached(capture, roles, prediction=prediction, special=special)
        whole, only_qkv = self.blocks_run(capture)
        last = whole if only_qkv else whole - 1
        unreached = self.head_parameters | set(self.net.norm.parameters())
        for index, block in enumerate(self.blocks):
            points = {point for asked, point in capture.points if self.block_index(asked) == index}
            if index < last or (index == last and (points & {"output", "ffn"} or not self.is_known(block))):
                continue
            unreached |= set(block.parameters()) - self.reached_within(block, points, roles)
        return set(self.net.parameters()) - unreached

    def reached_within(self, block: Any, points: set[Point], roles: frozenset[str]) -> set[nn.Parameter]:
        """The parameters of a known block on which its queries, keys, values or attention branch depend."""
        modules: list[nn.Module] = []
        if "qkv" in points:
            modules += [block.norm1, block.attn.qkv]
            modules += [block.attn.q_norm] if "q" in roles else []
            modules += [block.attn.k_norm] if "k" in roles else []
        if points & {"attention", "attention_residual"}:
            modules += [block.norm1, block.attn, block.ls1]
        return {parameter for module in modules for parameter in module.parameters()}

    def saliency_capture(self, block: int = -1, kind: SaliencyKind = "cls") -> Capture:
        if self.saliency_kind(block, kind) == "pool" and self._pools_by_attention:
            return Capture.at(block, "output")
        return super().saliency_capture(block, kind)  # refuses other networks

    def saliency_kind(self, block: int, kind: SaliencyKind) -> SaliencyKind:
        """The attention that ranks patches in a block when `kind` is asked for.

        Nothing trains the class token's attention where the head does not read it: there, the attention of the head
        itself stands in for it (SigLIP), or, under mean pooling, attention received.

        Raises:
            UserError: when `kind` is pool and the block is not the last.
        """
        is_last = self.block_index(block) == self.depth - 1
        if kind == "pool" and self._pools_by_attention and not is_last:
            raise UserError(
                "The saliency 'pool' is the attention of the head, behind the last block",
                f"block {self.block_index(block)}",
                "Use --saliency_layer last",
            )
        if kind == "cls" and (self.net.cls_token is None or self.net.global_pool not in ("token", "")):
            return "pool" if self._pools_by_attention and is_last else "patch"
        return kind

    @property
    def _pools_by_attention(self) -> bool:
        pool = getattr(self.net, "attn_pool", None)
        return isinstance(pool, AttentionPoolLatent) and pool.pos_embed is None

    def saliency(self, output: Output, block: int = -1, kind: SaliencyKind = "cls") -> Float[Tensor, "b n"]:
        kind = self.saliency_kind(block, kind)
        if kind == "pool":
            return self._attention_of_head(output.tokens(block))
        q, k, _, specials = output.qkv(block)
        # The class token is the first special token in every member of the family, a distillation token the second.
        if kind == "cls":
            return cls_attention(q[:, :, 0], k, prefix=specials)
        if kind == "cls+dist":
            return (cls_attention(q[:, :, 0], k, prefix=specials) + cls_attention(q[:, :, 1], k, prefix=specials)) / 2
        return attention_received(q, k, prefix=specials)

    @torch.no_grad()
    def _attention_of_head(self, tokens: Tokens) -> Float[Tensor, "b n"]:
        """What the queries of attention pooling attend to, averaged over heads and queries."""
        pool, specials, heads = self.net.attn_pool, tokens.specials, (self.net.attn_pool.num_heads, -1)
        with without_autocast(tokens.all.device):
            normed = self.net.norm(tokens.all.to(pool.kv.weight.dtype))
            if not getattr(self.net, "pool_include_prefix", True):
                normed, specials = normed[:, specials:], 0
            bias = None if pool.kv.bias is None else pool.kv.bias.chunk(2)[0]
            k = pool.k_norm(F.linear(normed, pool.kv.weight.chunk(2)[0], bias).unflatten(2, heads).transpose(1, 2))
            q = pool.q_norm(pool.q(pool.latent).unflatten(2, heads).transpose(1, 2))
        rows = [cls_attention(one.expand(len(k), -1, -1), k, prefix=specials) for one in q.unbind(2)]
        return torch.stack(rows).mean(dim=0)

    def macs(
        self,
        kept: int | None = None,
        capture: Capture = NOTHING,
        *,
        layernorm: bool = True,
        size: tuple[int, int] | None = None,
    ) -> Macs:
        if not self.is_countable():
            return super().macs(kept, capture, layernorm=layernorm, size=size)
        check_kept(self, kept)
        net, tokens = self.net, self.specials + (self.grid.count if kept is None else kept)
        total = Macs(patch_embed=net.patch_embed.proj.weight.numel() * self.grid.count)
        if isinstance(net.patch_embed, PatchEmbed):
            total += norm_macs(net.patch_embed.norm, self.grid.count, layernorm)
        total += norm_macs(getattr(net, "norm_pre", None), tokens, layernorm)
        whole, only_qkv = self.blocks_run(capture)
        for block in self.blocks[:whole]:
            total += self.block_macs(block, tokens, layernorm)
        if only_qkv:
            total += self.project_macs(self.blocks[whole], tokens, layernorm)
        if not capture.head:
            return total
        total += norm_macs(net.norm, tokens, layernorm) + norm_macs(net.fc_norm, 1, layernorm)
        return total + pool_macs(net, tokens, layernorm) + head_macs(net)

    def is_countable(self) -> bool:
        """Whether all that the network computes is known, or must be traced."""
        return is_countable(self.net, self.blocks)

    def block_macs(self, block: Any, tokens: int, layernorm: bool) -> Macs:
        """A whole block over so many tokens."""
        return self_attention_macs(block, tokens, layernorm)

    def project_macs(self, block: Any, tokens: int, layernorm: bool) -> Macs:
        """What `project` computes."""
        return norm_macs(block.norm1, tokens, layernorm) + Macs(projections=linears(block.attn.qkv) * tokens)
