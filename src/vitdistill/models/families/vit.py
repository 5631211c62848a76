"""timm's VisionTransformer family: ViT, DeiT (with and without distillation token), DeiT3, CLIP, MAE, registers."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone, FusedQKVReader, QKVReader, SaliencyKind
from vitdistill.tokens.saliency import attention_received, cls_attention
from vitdistill.types import BackboneOutput, Capture, Part, TokenGrid


def is_plain(block: Any) -> bool:
    """Whether a block is timm's pre-norm block, whose qkv projection takes exactly `norm1` of its input."""
    return type(block) is Block


class ViT(Backbone):
    """Adapter over `timm.models.vision_transformer.VisionTransformer` and its subclasses.

    What differs within the family is decided by the network itself: whether prefix tokens have positions (DeiT3:
    no), a norm before the blocks (CLIP), mean pooling over the kept patches with `fc_norm` (MAE fine-tuned),
    LayerScale, register tokens, two heads (distilled DeiT).
    """

    def __init__(self, net: VisionTransformer) -> None:
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

    @property
    def prefix(self) -> int:
        return int(self.net.num_prefix_tokens)

    @property
    def blocks(self) -> Sequence[Any]:
        return list(self.net.blocks)

    def embed(self, images: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b m d"]:
        return self.net._pos_embed(self.net.patch_embed(images))

    def run_blocks(self, tokens: Float[Tensor, "b m d"], capture: Capture, hidden: dict[int, Tensor]) -> Tensor:
        wanted = {self.block_index(block) for block in capture.hidden}
        whole, only_qkv = self.blocks_run(capture)

        tokens = self.net.norm_pre(self.net.patch_drop(tokens))
        for index in range(whole):
            tokens = self.run_block(index, tokens, capture=capture)
            if index in wanted:
                hidden[index] = tokens
        if only_qkv:
            block = self.blocks[whole]
            block.attn.qkv(block.norm1(tokens))  # read by a hook; nothing behind it is wanted
        return tokens

    def blocks_run(self, capture: Capture) -> tuple[int, bool]:
        """How many blocks a pass runs whole, and whether it then runs the next one up to its q, k and v."""
        if capture.logits:
            return self.depth, False
        whole = {self.block_index(block) for block in (*capture.hidden, *(block for block, _ in capture.parts))}
        qkv = {self.block_index(block) for block in capture.qkv}
        last = max(whole | qkv, default=-1)
        stops_inside = last >= 0 and last not in whole and is_plain(self.blocks[last])
        return (last, True) if stops_inside else (last + 1, False)

    def head(self, tokens: Tensor) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        tokens = self.net.norm(tokens)
        return tokens, self.net.forward_head(tokens)

    def read_qkv(self, block: int) -> QKVReader:
        return FusedQKVReader(getattr(self.blocks[block], "attn", self.blocks[block]))

    def read_part(
        self, block: int, part: Part, found: dict[tuple[int, Part], Tensor]
    ) -> torch.utils.hooks.RemovableHandle:
        module = self.blocks[block]
        if not is_plain(module):
            return super().read_part(block, part, found)

        def keep_output(_module: nn.Module, _inputs: object, tokens: Tensor) -> None:
            found[block, part] = tokens

        def keep_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[block, part] = inputs[0]

        if part == "attention_residual":
            return module.norm2.register_forward_pre_hook(keep_input)
        # After LayerScale and before drop path: what the branch adds when it is not dropped.
        return (module.ls1 if part == "attention" else module.ls2).register_forward_hook(keep_output)

    def saliency(self, output: BackboneOutput, block: int = -1, kind: SaliencyKind = "cls") -> Float[Tensor, "b n"]:
        q, k, _ = output.qkv[self.block_index(block)]
        # Where the head does not read the class token (mean pooling), nothing trains its attention.
        reads_cls = self.net.cls_token is not None and self.net.global_pool in ("token", "")
        # The class token is the first prefix token in every member of the family.
        if kind == "cls" and reads_cls:
            return cls_attention(q[:, :, 0], k, prefix=self.prefix)
        return attention_received(q, k, prefix=self.prefix)
