"""Swin as a student: its last stage attends globally over one window, which gives the saliency."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone, FusedQKVReader, QKVReader, SaliencyKind
from vitdistill.tokens.saliency import attention_received
from vitdistill.types import BackboneOutput, Capture, TokenGrid


class Swin(Backbone):
    """Adapter over `timm.models.swin_transformer.SwinTransformer`.

    The grid is that of the last stage (7x7 at 224 pixels). Its saliency is the attention that each position
    receives, averaged over heads and queries, with the relative position bias; the criterion carries it to the
    teacher's grid by bilinear interpolation.
    """

    maskable = False

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
    def prefix(self) -> int:
        return 0

    @property
    def blocks(self) -> Sequence[Any]:
        """Blocks of the last stage only: the earlier ones see windows of the image, not all of it."""
        return list(self.net.layers[-1].blocks)

    def embed(self, images: Float[Tensor, "b ch height width"]) -> Tensor:
        return self.net.patch_embed(images)

    def run_blocks(self, tokens: Tensor, capture: Capture, hidden: dict[int, Tensor]) -> Tensor:
        if capture.hidden:
            raise UserError(f"{self.name} does not hand out block outputs", remedy="Choose a ViT, DeiT or CaiT")
        return self.net.layers(tokens)

    def head(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.net.norm(tokens)
        return tokens.flatten(1, 2), self.net.forward_head(tokens)

    def read_qkv(self, block: int) -> QKVReader:
        return FusedQKVReader(self.blocks[block].attn)

    def saliency(self, output: BackboneOutput, block: int = -1, kind: SaliencyKind = "cls") -> Float[Tensor, "b n"]:
        index = self.block_index(block)
        q, k, _ = output.qkv[index]
        return attention_received(q, k, prefix=0, bias=self.blocks[index].attn._get_rel_pos_bias())
