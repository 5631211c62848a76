"""Segmenter (Strudel et al., 2021): a ViT, and a transformer over its patches and one embedding for each class.

The architectures are registered with timm, so that `timm.create_model("segmenter_small", num_classes=150)` builds them
once this package is imported. Their tensors have the names of the published files.
"""

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitdistill.errors import UserError, near
from vitdistill.models.backbone import Captured, FusedQKVReader, SaliencyKind
from vitdistill.models.families.narrow import is_narrow
from vitdistill.models.families.pixels import PixelNetwork, PixelViT, register, trunc_normal
from vitdistill.models.macs import Macs, linears, norm_macs, self_attention_macs
from vitdistill.models.names import SEGMENTER
from vitdistill.models.network import ClassParameter
from vitdistill.tokens.saliency import attention_of_queries
from vitdistill.types import QKV, Capture, Output, Point, TokenGrid, Tokens

Decoder = Literal["mask", "linear"]
EPS = 1e-5  # of every LayerNorm, where timm's ViTs have 1e-6
HEAD = 64  # channels of an attention head of the decoder


class MaskTransformer(nn.Module):
    """Scores of patches for classes: how alike a patch and a class embedding are, after they have seen each other."""

    def __init__(self, width: int, classes: int, *, depth: int = 2, heads: int | None = None, dropout: float = 0.1):
        """
        Args:
            width: channels of the patches.
            classes: to tell apart.
            depth: blocks.
            heads: attention heads; None is one for each 64 channels.
            dropout: in attention and MLPs.
        """
        super().__init__()
        heads = heads or max(1, width // HEAD)
        norm = partial(nn.LayerNorm, eps=EPS)
        self.cls_emb = nn.Parameter(torch.empty(1, classes, width))
        self.proj_dec = nn.Linear(width, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True, proj_drop=dropout, attn_drop=dropout, norm_layer=norm)  # type: ignore[arg-type]
            for _ in range(depth)
        )
        self.decoder_norm = norm(width)
        self.proj_patch = nn.Parameter(width**-0.5 * torch.randn(width, width))
        self.proj_classes = nn.Parameter(width**-0.5 * torch.randn(width, width))
        self.mask_norm = norm(classes)
        self.apply(trunc_normal)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)

    def forward(self, patches: Float[Tensor, "b n d"], grid: TokenGrid) -> Float[Tensor, "b c rows columns"]:
        patches = self.proj_dec(patches)
        tokens = torch.cat((patches, self.cls_emb.expand(patches.shape[0], -1, -1)), dim=1)  # classes at the end
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.decoder_norm(tokens)
        count = self.cls_emb.shape[1]
        patches, classes = tokens[:, :-count] @ self.proj_patch, tokens[:, -count:] @ self.proj_classes
        patches = patches / patches.norm(dim=-1, keepdim=True)
        classes = classes / classes.norm(dim=-1, keepdim=True)
        masks = self.mask_norm(patches @ classes.transpose(1, 2))
        return masks.transpose(1, 2).unflatten(2, (grid.h, grid.w))

    def class_parameters(self) -> list[ClassParameter]:
        """The parameters that have a row for each class."""
        return [(self, "cls_emb", 1), (self.mask_norm, "weight", 0), (self.mask_norm, "bias", 0)]

    def macs(self, patches: int, layernorm: bool) -> Macs:
        """Of one image with so many patches."""
        (_, classes, width), tokens = self.cls_emb.shape, patches + self.cls_emb.shape[1]
        blocks = sum((self_attention_macs(block, tokens, layernorm) for block in self.blocks), Macs())
        norms = norm_macs(self.decoder_norm, tokens, layernorm) + norm_macs(self.mask_norm, patches, layernorm)
        inside = blocks.total - blocks.layernorm
        ends = patches * width**2 + tokens * width**2 + patches * classes * width  # proj_dec, both projections, masks
        return Macs(head=inside + ends, layernorm=blocks.layernorm) + norms


class LinearDecoder(nn.Module):
    """Scores of each patch for classes, from the patch alone.

    In narrow networks its weights begin as torch's do: 0.02 is so little there that training is slow (on the bundled
    scenes, 48 wide, 13.6% mean IoU after 500 steps, and 20.4% with 0.08; one seed).
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)
        if not is_narrow(width):
            trunc_normal(self.head)

    def forward(self, patches: Float[Tensor, "b n d"], grid: TokenGrid) -> Float[Tensor, "b c rows columns"]:
        return self.head(patches).transpose(1, 2).unflatten(2, (grid.h, grid.w))

    def class_parameters(self) -> list[ClassParameter]:
        """The parameters that have a row for each class."""
        return [(self.head, "weight", 0), (self.head, "bias", 0)]

    def macs(self, patches: int, layernorm: bool) -> Macs:
        """Of one image with so many patches."""
        return Macs(head=linears(self.head) * patches)


class Segmenter(PixelNetwork):
    """A ViT, whose patches a decoder scores for each class; the scores are enlarged to the size of the image.

    Example:
        >>> timm.create_model("segmenter_small", num_classes=150)
        >>> timm.create_model("segmenter_tiny", decoder="linear", img_size=48, patch_size=4, embed_dim=48, depth=3,
        ...     num_heads=3, num_classes=11)
    """

    def __init__(
        self,
        encoder: str,
        num_classes: int = 150,
        *,
        decoder: Decoder = "mask",
        decoder_depth: int = 2,
        decoder_heads: int | None = None,
        dropout: float = 0.1,
        **options: Any,
    ) -> None:
        """
        Args:
            encoder: architecture of timm.
            num_classes: to tell apart.
            decoder: mask (a transformer) or linear.
            decoder_depth: blocks of the transformer.
            decoder_heads: attention heads of the transformer; None is one for each 64 channels.
            dropout: in the transformer.
            options: of the encoder's architecture.

        Raises:
            UserError: when the encoder is no plain ViT, or there is no such decoder.
        """
        known = Decoder.__args__  # type: ignore[attr-defined]
        if decoder not in known:
            raise UserError(f"decoder must be one of {', '.join(known)}", repr(decoder), near(str(decoder), known))
        super().__init__(encoder, num_classes, **options)
        for module in self.encoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = EPS
        width = self.encoder.embed_dim
        if decoder == "linear":
            self.decoder: MaskTransformer | LinearDecoder = LinearDecoder(width, num_classes)
            return
        if width % (decoder_heads or max(1, width // HEAD)):
            raise UserError(
                f"The {width} channels of the decoder must be a multiple of its attention heads",
                decoder_heads or width // HEAD,
                "Set decoder_heads among the architecture's arguments",
            )
        self.decoder = MaskTransformer(width, num_classes, depth=decoder_depth, heads=decoder_heads, dropout=dropout)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {"decoder.cls_emb"}

    def class_parameters(self) -> list[ClassParameter]:
        return self.decoder.class_parameters()

    def forward_features(self, images: Float[Tensor, "b ch height width"]) -> Float[Tensor, "b m d"]:
        """Special and patch tokens behind the final norm."""
        net = self.encoder
        return net.norm(net.blocks(net.norm_pre(net.patch_drop(self.embed(images)))))

    def decode(
        self, patches: Float[Tensor, "b n d"], images: Float[Tensor, "b ch height width"]
    ) -> Float[Tensor, "b c height width"]:
        """The map, from all patches behind the final norm."""
        return self.to_size(self.decoder(patches, self.grid_of(images)), images)

    def forward(self, images: Float[Tensor, "b ch height width"]) -> Float[Tensor, "b c height width"]:
        return self.decode(self.forward_features(images)[:, self.encoder.num_prefix_tokens :], images)


class SegmenterViT(PixelViT):
    """Adapter over `Segmenter`.

    Its saliency is that of its encoder, whose class token no loss trains: it keeps what it learned before. `decoder` is
    what the class embeddings attend to in the last block of the mask transformer, which the labels train.
    """

    net: Segmenter

    def with_head(self, capture: Capture) -> Capture:
        inside = any(point == "decoder" for _, point in capture.points)
        return Capture(capture.points, head=True) if inside else capture

    def finish(
        self,
        tokens: Tensor,
        inputs: Float[Tensor, "b ch *pixels"],
        keep: Int[Tensor, "bm k"] | None,
        captured: Captured,
    ) -> tuple[Tokens, Tensor | tuple[Tensor, Tensor]]:
        final = Tokens(self.net.encoder.norm(tokens), self.specials)
        return final, self.net.decode(self.row_by_row(final.patches, keep), inputs)

    def decoder_macs(self, layernorm: bool) -> Macs:
        patches = self.grid.count
        return norm_macs(self.net.encoder.norm, self.specials + patches, layernorm) + self.net.decoder.macs(
            patches, layernorm
        )

    # --- looking inside --------------------

    def read_branch(self, block: int, point: Point, captured: Captured) -> RemovableHandle:
        if point != "decoder":
            return super().read_branch(block, point, captured)
        decoder = self._mask_transformer(block)
        attention: Any = decoder.blocks[-1].attn
        classes = decoder.cls_emb.shape[1]

        def read(_module: nn.Module, _inputs: object, projected: Tensor) -> None:
            q, k, v, _ = FusedQKVReader(attention, 0).split(projected)
            # Special tokens stand first in a `QKV`, and at the end of this sequence.
            k, v = (torch.cat((x[:, :, -classes:], x[:, :, :-classes]), dim=2) for x in (k, v))
            captured[block, point] = QKV(q[:, :, -classes:], k, v, classes)

        return attention.qkv.register_forward_hook(read)

    def _mask_transformer(self, block: int) -> MaskTransformer:
        if not isinstance(self.net.decoder, MaskTransformer):
            raise UserError(
                "The saliency 'decoder' needs a Segmenter whose decoder is a mask transformer",
                f"{self.name} with a linear one",
                "Use --saliency cls or patch",
            )
        if self.block_index(block) != self.depth - 1:
            raise UserError(
                "The saliency 'decoder' is the attention of the decoder, behind the last block",
                f"block {self.block_index(block)}",
                "Use --saliency_layer last",
            )
        return self.net.decoder

    def saliency_capture(self, block: int = -1, kind: SaliencyKind = "cls") -> Capture:
        if kind == "decoder":
            self._mask_transformer(block)
            return Capture.at(block, "decoder")
        return super().saliency_capture(block, kind)

    def saliency(self, output: Output, block: int = -1, kind: SaliencyKind = "cls") -> Float[Tensor, "b n"]:
        if kind != "decoder":
            return super().saliency(output, block, kind)
        read = output.captured[block, "decoder"]
        assert isinstance(read, QKV)
        # All queries are those of classes.
        return attention_of_queries(read.q, read.k, prefix=read.specials)


_CLASSES = ("decoder.mask_norm", "decoder.head", "decoder")
for _size in ("tiny", "small", "base"):
    register(f"{SEGMENTER}{_size}", Segmenter, f"vit_{_size}_patch16_384", _CLASSES)
