"""CaiT: a trunk of talking-heads blocks over the patches alone, then class-attention blocks over [class; patches]."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone, FusedQKVReader, QKVReader, SaliencyKind
from vitdistill.tokens.saliency import attention_received, cls_attention
from vitdistill.types import QKV, BackboneOutput, Capture, TokenGrid


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
    def prefix(self) -> int:
        return 0  # the class token joins only behind the trunk

    @property
    def trunk_depth(self) -> int:
        return len(self.net.blocks)

    @property
    def blocks(self) -> Sequence[Any]:
        return [*self.net.blocks, *self.net.blocks_token_only]

    def embed(self, images: Float[Tensor, "b ch height width"]) -> Float[Tensor, "b m d"]:
        return self.net.pos_drop(self.net.patch_embed(images) + self.net.pos_embed)

    def run_blocks(self, tokens: Float[Tensor, "b m d"], capture: Capture, hidden: dict[int, Tensor]) -> Tensor:
        """Trunk blocks give patches (b, n, d), class-attention blocks [class, patches] (b, 1 + n, d)."""
        wanted = {self.block_index(block) for block in capture.hidden}
        needed = wanted | {self.block_index(block) for block in capture.qkv}
        last = self.depth - 1 if capture.logits else max(needed, default=-1)

        patches, cls = tokens, self.net.cls_token.expand(tokens.shape[0], -1, -1)
        for index in range(last + 1):
            if index < self.trunk_depth:
                patches = tokens = self.run_block(index, patches, capture=capture)
            else:
                cls = self.run_block(index, patches, cls, capture=capture)
                tokens = torch.cat((cls, patches), dim=1) if index in wanted or index == last else tokens
            if index in wanted:
                hidden[index] = tokens
        return tokens

    def head(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.net.norm(tokens)
        return tokens, self.net.forward_head(tokens)

    def read_qkv(self, block: int) -> QKVReader:
        attention = self.blocks[block].attn
        return FusedQKVReader(attention) if block < self.trunk_depth else ClassAttentionReader(attention)

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
        return super().saliency_capture(index, kind)

    def saliency(self, output: BackboneOutput, block: int = -1, kind: SaliencyKind = "cls") -> Float[Tensor, "b n"]:
        index = self.block_index(block)
        q, k, _ = output.qkv[index]
        if index >= self.trunk_depth:
            return cls_attention(q[:, :, 0], k, prefix=1)
        return attention_received(q, k, prefix=0)


class ClassAttentionReader(QKVReader):
    """For class attention with separate q, k, v linears; the query has one token."""

    def __init__(self, attention: Any) -> None:
        self.attention = attention

    def attach(self, index: int, found: dict[int, QKV]) -> list[torch.utils.hooks.RemovableHandle]:
        seen: dict[str, Tensor] = {}
        heads = self.attention.num_heads

        def reader(role: str):  # type: ignore[no-untyped-def]
            def read(_module: nn.Module, _inputs: object, projected: Tensor) -> None:
                projected = projected.unsqueeze(1) if projected.dim() == 2 else projected
                b, m, _ = projected.shape
                seen[role] = projected.reshape(b, m, heads, -1).transpose(1, 2)
                if len(seen) == 3:
                    found[index] = QKV(seen["q"], seen["k"], seen["v"])

            return read

        return [getattr(self.attention, role).register_forward_hook(reader(role)) for role in ("q", "k", "v")]
