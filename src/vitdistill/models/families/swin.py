"""Swin as a student: its last stage attends globally over one window, which gives the saliency."""

from collections.abc import Sequence
from math import ceil, prod
from typing import Any

from jaxtyping import Float
from timm.models.swin_transformer import PatchMerging, SwinTransformer
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone, Captured, FusedQKVReader, QKVReader, SaliencyKind
from vitdistill.models.macs import Macs, block_norm_macs, check_kept, head_macs, linears, mlp_macs, norm_macs
from vitdistill.tokens.saliency import attention_received
from vitdistill.types import NOTHING, Capture, Output, TokenGrid, Tokens


class Swin(Backbone):
    """Adapter over `timm.models.swin_transformer.SwinTransformer`.

    The grid is that of the last stage (7x7 at 224 pixels). Its saliency is the attention that each position
    receives, averaged over heads and queries, with the relative position bias; the criterion carries it to the
    teacher's grid by bilinear interpolation.
    """

    maskable = False
    blocks_apart = False  # saliency adds a block's bias

    def __init__(self, net: SwinTransformer) -> None:
        super().__init__(net)
        attention = self.blocks[-1].attn
        if attention.window_area != self.grid.count:
            raise UserError(
                "The last Swin stage must be one window, so that its attention is global",
                f"a {self.grid} stage with windows of {attention.window_size}",
                "Choose an image size of 32 x the window size",
            )

    @property
    def grid(self) -> TokenGrid:
        height, width = self.net.layers[-1].output_resolution
        return TokenGrid(1, int(height), int(width))

    @property
    def specials(self) -> int:
        return 0

    @property
    def blocks(self) -> Sequence[Any]:
        """Blocks of the last stage only: the earlier ones see windows of the image, not all of it."""
        return list(self.net.layers[-1].blocks)

    def embed(self, inputs: Float[Tensor, "b ch height width"]) -> Tensor:
        return self.net.patch_embed(inputs)

    def run_blocks(self, tokens: Tensor, capture: Capture, captured: Captured) -> Tensor:
        if any(point == "output" for _, point in capture.points):
            raise UserError(f"{self.name} does not hand out block outputs", remedy="Choose a ViT, DeiT or CaiT")
        return self.net.layers(tokens)

    def head(self, tokens: Tensor) -> tuple[Tokens, Tensor]:
        tokens = self.net.norm(tokens)
        return Tokens(tokens.flatten(1, 2), 0), self.net.forward_head(tokens)

    def read_qkv(self, block: int) -> QKVReader:
        return FusedQKVReader(self.blocks[block].attn, 0)

    def saliency(self, output: Output, block: int = -1, kind: SaliencyKind = "cls") -> Float[Tensor, "b n"]:
        q, k, _, _ = output.qkv(block)
        bias = self.blocks[self.block_index(block)].attn._get_rel_pos_bias()
        return attention_received(q, k, prefix=0, bias=bias)

    def macs(
        self,
        kept: int | None = None,
        capture: Capture = NOTHING,
        *,
        layernorm: bool = True,
        size: tuple[int, int] | None = None,
    ) -> Macs:
        check_kept(self, kept)
        net = self.net
        total = Macs(patch_embed=net.patch_embed.proj.weight.numel() * net.patch_embed.num_patches)
        total += norm_macs(net.patch_embed.norm, net.patch_embed.num_patches, layernorm)
        for stage in net.layers:
            positions = prod(stage.output_resolution)
            if isinstance(stage.downsample, PatchMerging):
                total += Macs(patch_merging=linears(stage.downsample) * positions)
                total += norm_macs(stage.downsample.norm, positions, layernorm)
            for block in stage.blocks:
                total += window_macs(block, layernorm)
        return total + norm_macs(net.norm, self.grid.count, layernorm) + head_macs(net) if capture.head else total


def window_macs(block: Any, layernorm: bool = True) -> Macs:
    """A block over windows. Those that stick out over the edge are padded, and the padding is computed on.

    Args:
        block: knows its own resolution.
        layernorm: whether LayerNorm counts.
    """
    (height, width), attention, area = block.input_resolution, block.attn, block.window_area
    windows = ceil(height / block.window_size[0]) * ceil(width / block.window_size[1])
    macs = Macs(
        projections=linears(attention) * windows * area,
        attention=2 * windows * area**2 * attention.proj.in_features,
        mlp=mlp_macs(block) * height * width,
    )
    return macs + block_norm_macs(block, height * width, layernorm)
