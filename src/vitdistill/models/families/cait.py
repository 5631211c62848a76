"""CaiT: a trunk of talking-heads blocks over the patches alone, then class-attention blocks over [class; patches]."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone, Captured, FusedQKVReader, QKVReader, SaliencyKind
from vitdistill.models.macs import Macs, check_kept, head_macs, linears, mlp_macs, norm_macs, self_attention_macs
from vitdistill.tokens.saliency import attention_received, cls_attention
from vitdistill.types import NOTHING, QKV, Capture, Output, TokenGrid, Tokens


class CaiT(Backbone):
    """Adapter over `timm.models.cait.Cait`.

    Blocks are counted through the trunk and on through the class-attention blocks, so -1 is the last
    class-attention block, the one whose cls row gives the saliency. Leaving out patches happens before the trunk:
    its talking heads mix after the softmax, so padding would change the result where gathering does not.
    """

    @property
    def grid(self) -> TokenGrid:
        height, width = self.net.patch_embed.grid_size
        return TokenGrid(1, int(height), int(width))

    @property
    def specials(self) -> int:
        return 0  # the class token joins only behind the trunk

    @property
    def final_specials(self) -> int:
        return 1

    @property
    def trunk_depth(self) -> int:
        return len(self.net.blocks)

    @property
    def blocks(self) -> Sequence[Any]:
        return [*self.net.blocks, *self.net.blocks_token_only]

    def embed(self, inputs: Float[Tensor, "b ch height width"]) -> Float[Tensor, "b m d"]:
        return self.net.pos_drop(self.net.patch_embed(inputs) + self.net.pos_embed)

    def run_blocks(self, tokens: Float[Tensor, "b m d"], capture: Capture, captured: Captured) -> Tensor:
        """Trunk blocks give patches (b, n, d), class-attention blocks [class, patches] (b, 1 + n, d)."""
        last = self._blocks_run(capture) - 1
        patches, cls = tokens, self.net.cls_token.expand(tokens.shape[0], -1, -1)
        for index in range(last + 1):
            wanted = (index, "output") in capture.points
            if index < self.trunk_depth:
                patches = tokens = self.run_block(index, patches, capture=capture)
            else:
                cls = self.run_block(index, patches, cls, capture=capture)
                tokens = torch.cat((cls, patches), dim=1) if wanted or index == last else tokens
            if wanted:
                captured[index, "output"] = Tokens(tokens, int(index >= self.trunk_depth))
        return tokens

    def _blocks_run(self, capture: Capture) -> int:
        """How many blocks a pass runs."""
        return (
            self.depth
            if capture.head
            else 1 + max((self.block_index(block) for block, _ in capture.points), default=-1)
        )

    def head(self, tokens: Tensor) -> tuple[Tokens, Tensor]:
        tokens = self.net.norm(tokens)
        return Tokens(tokens, 1), self.net.forward_head(tokens)

    def read_qkv(self, block: int) -> QKVReader:
        attention = self.blocks[block].attn
        return FusedQKVReader(attention, 0) if block < self.trunk_depth else ClassAttentionReader(attention)

    def reached(
        self,
        capture: Capture,
        roles: frozenset[str] = frozenset("qkv"),
        *,
        prediction: bool = True,
        special: bool = True,
    ) -> set[nn.Parameter]:
        """Patches do not depend on the class token: the class-attention blocks pass them on as they are."""
        read_class = special or (capture.head and prediction)
        last = self._blocks_run(capture) - 1
        unreached = set() if capture.head else self.head_parameters | set(self.net.norm.parameters())
        unreached |= set() if prediction else self.head_parameters
        if last < self.trunk_depth or not read_class:
            unreached.add(self.net.cls_token)
        for index, block in enumerate(self.blocks):
            points = {point for asked, point in capture.points if self.block_index(asked) == index}
            if index < self.trunk_depth:
                passed_on = index < last or capture.head or "output" in points
                modules = [block.norm1, block.attn.qkv] if "qkv" in points else []
            else:
                passed_on = read_class and (index < last or capture.head or "output" in points)
                modules = (
                    [block.norm1, *(getattr(block.attn, role) for role in sorted(roles))] if "qkv" in points else []
                )
            if not passed_on:
                inside = {parameter for module in modules for parameter in module.parameters()}
                unreached |= set(block.parameters()) - inside
        return set(self.net.parameters()) - unreached

    def saliency_capture(self, block: int = -1, kind: SaliencyKind = "cls") -> Capture:
        """Class saliency comes from the class-attention blocks, patch saliency from the trunk."""
        index = self.block_index(block)
        if kind == "cls" and index < self.trunk_depth:
            raise UserError(
                f"The trunk of {self.name} has no class token, so class saliency needs one of its last "
                f"{self.depth - self.trunk_depth} blocks",
                f"block {index}",
                "Use --saliency_layer last, or --saliency patch for a trunk block",
            )
        if kind == "patch" and index >= self.trunk_depth:
            raise UserError(
                f"The last {self.depth - self.trunk_depth} blocks of {self.name} have queries of the class token only, "
                f"so patch saliency needs one of the blocks 0 to {self.trunk_depth - 1}",
                f"block {index}",
                "Choose one with --saliency_layer, or use --saliency cls",
            )
        return super().saliency_capture(block, kind)

    def saliency(self, output: Output, block: int = -1, kind: SaliencyKind = "cls") -> Float[Tensor, "b n"]:
        q, k, _, specials = output.qkv(block)
        if self.block_index(block) >= self.trunk_depth:
            return cls_attention(q[:, :, 0], k, prefix=specials)
        return attention_received(q, k, prefix=specials)

    def macs(
        self,
        kept: int | None = None,
        capture: Capture = NOTHING,
        *,
        layernorm: bool = True,
        size: tuple[int, int] | None = None,
    ) -> Macs:
        check_kept(self, kept)
        net, patches = self.net, self.grid.count if kept is None else kept
        total = Macs(patch_embed=net.patch_embed.proj.weight.numel() * self.grid.count)
        total += norm_macs(net.patch_embed.norm, self.grid.count, layernorm)
        for index, block in enumerate(self.blocks[: self._blocks_run(capture)]):
            in_trunk = index < self.trunk_depth
            total += (
                self_attention_macs(block, patches, layernorm)
                if in_trunk
                else class_attention_macs(block, patches + 1, layernorm)
            )
        return total + norm_macs(net.norm, patches + 1, layernorm) + head_macs(net) if capture.head else total


def class_attention_macs(block: Any, tokens: int, layernorm: bool = True) -> Macs:
    """The class token alone asks: q, output projection and MLP see one token, k and v all of them.

    Args:
        block: a class-attention block.
        tokens: that enter it, the class token included.
        layernorm: whether LayerNorm counts.
    """
    attention = block.attn
    per_token = linears(attention.k) + linears(attention.v)
    once = linears(attention.q) + linears(attention.proj) + mlp_macs(block)
    scores = 2 * tokens * attention.q.out_features
    macs = Macs(class_attention=per_token * tokens + once + scores)
    return macs + norm_macs(block.norm1, tokens, layernorm) + norm_macs(block.norm2, 1, layernorm)


class ClassAttentionReader(QKVReader):
    """For class attention with separate q, k, v linears; the query has one token."""

    def __init__(self, attention: Any) -> None:
        self.attention = attention

    def attach(self, index: int, captured: Captured) -> list[RemovableHandle]:
        seen: dict[str, Tensor] = {}
        heads = self.attention.num_heads

        def reader(role: str):  # type: ignore[no-untyped-def]
            def read(_module: nn.Module, _inputs: object, projected: Tensor) -> None:
                projected = projected.unsqueeze(1) if projected.dim() == 2 else projected
                b, m, _ = projected.shape
                seen[role] = projected.reshape(b, m, heads, -1).transpose(1, 2)
                if len(seen) == 3:
                    captured[index, "qkv"] = QKV(seen["q"], seen["k"], seen["v"], 1)

            return read

        return [getattr(self.attention, role).register_forward_hook(reader(role)) for role in ("q", "k", "v")]
