"""UperNet (Xiao et al., 2018) over a ViT, as TinyMIM is tested on ADE20K: blocks' outputs as maps of four sizes.

The heads are those of transformers. The architectures are registered with timm, so that
`timm.create_model("upernet_vit_base", num_classes=150)` builds them once this package is imported.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.layers.pos_embed_rel import gen_relative_position_index
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.backbone import Captured, SaliencyKind
from vitdistill.models.families.pixels import PixelNetwork, PixelViT, check_image_size, register
from vitdistill.models.macs import Macs, traced_macs
from vitdistill.models.names import UPERNET
from vitdistill.models.network import ClassParameter
from vitdistill.tokens.gather import keep_patches
from vitdistill.tokens.saliency import attention_received, cls_attention
from vitdistill.types import Capture, Output, Tokens

AUXILIARY = 256  # channels of the auxiliary head
DROPOUT = 0.1  # of whole channels, in front of both classifiers
BEYOND = 3  # offsets that are none of two patches: class token to patch, patch to class token, class token to itself


def default_taps(depth: int) -> list[int]:
    """The blocks that are read: those behind a third, a half, two thirds and all of the network.

    Example:
        >>> default_taps(12)
        [3, 5, 7, 11]
    """
    return [max(0, depth * part // 6 - 1) for part in (2, 3, 4, 6)]


class BiasedAttention(Attention):
    """timm's attention with a learned bias for each pair of tokens, by where they lie to each other."""

    @classmethod
    def over(cls, attention: Attention, heads: int, window: tuple[int, int]) -> "BiasedAttention":
        """The same attention with biases of zero.

        Args:
            attention: a class token comes before its patches; its parts are taken over.
            heads: of the new one.
            window: patches in a column and in a row.
        """
        width = attention.qkv.in_features
        with torch.device("meta"):
            new = cls(width, heads)
        for name in ("qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"):
            setattr(new, name, getattr(attention, name))
        offsets = (2 * window[0] - 1) * (2 * window[1] - 1) + BEYOND
        new.relative_position_bias_table = nn.Parameter(torch.zeros(offsets, heads))
        index = gen_relative_position_index(window, class_token=True)
        new.register_buffer("relative_position_index", index, persistent=False)
        return new

    def biases(self) -> Float[Tensor, "1 h m m"]:
        """Of all tokens of the window."""
        index = self.relative_position_index
        assert isinstance(index, Tensor) and isinstance(self.relative_position_bias_table, Tensor)
        table = self.relative_position_bias_table[index.flatten()]
        return table.unflatten(0, tuple(index.shape)).permute(2, 0, 1).contiguous()[None]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """
        Args:
            x: all tokens of the window, or some of them.
            attn_mask: the biases of these tokens, where they are not all.
            is_causal: of timm's interface.
        """
        return super().forward(x, self.biases() if attn_mask is None else attn_mask, is_causal)


class Pyramid(nn.Module):
    """Maps of the patch's size as maps of a quarter, a half, once and twice it, and the heads that read these."""

    def __init__(self, width: int, channels: int, classes: int) -> None:
        """
        Args:
            width: of the maps.
            channels: of the main head.
            classes: to tell apart.

        Raises:
            UserError: when transformers is not installed.
        """
        super().__init__()
        try:
            from transformers.models.upernet.configuration_upernet import UperNetConfig
            from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead
        except ImportError as error:
            raise UserError(
                "UperNet's heads are those of the transformers library", remedy="pip install 'vitdistill[hf]'"
            ) from error

        def deconvolution() -> nn.Module:
            return nn.ConvTranspose2d(width, width, 2, 2)

        config = UperNetConfig(
            backbone_config={"model_type": "vit"},  # which nothing here reads; the default would be a ResNet
            hidden_size=channels,
            auxiliary_in_channels=width,
            auxiliary_channels=AUXILIARY,
        )
        config.num_labels = classes
        finest = nn.Sequential(deconvolution(), nn.BatchNorm2d(width), nn.GELU(), deconvolution())
        self.necks = nn.ModuleList((finest, deconvolution(), nn.Identity(), nn.MaxPool2d(2)))
        self.decode_head = UperNetHead(config, in_channels=[width] * 4)
        self.auxiliary_head = UperNetFCNHead(config, in_channels=[width] * 4)
        for head in (self.decode_head, self.auxiliary_head):
            head.add_module("classifier", nn.Sequential(nn.Dropout2d(DROPOUT), head.classifier))

    def forward(self, maps: tuple[Any, ...]) -> Tensor | tuple[Tensor, Tensor]:
        """Scores on the finest map; in training those of the auxiliary head as well, on the grid of patches.

        Args:
            maps: of four blocks, each (b, d, rows, columns).

        Raises:
            UserError: in training on one image, of which batch norm has no statistics.
        """
        if self.training and len(maps[0]) < 2 and any(isinstance(part, nn.BatchNorm2d) for part in self.modules()):
            remedy = "Give --batch_size 2 or more, or --trainer.sync_batchnorm true on several devices"
            raise UserError("An UperNet must train on at least two images on each device", "one", remedy)
        sizes = [neck(one) for neck, one in zip(self.necks, maps, strict=True)]
        scores = self.decode_head(sizes)
        return (scores, self.auxiliary_head(sizes)) if self.training else scores


class UperNet(PixelNetwork):
    """A ViT with absolute and relative positions and LayerScale, four of whose blocks UperNet reads without a norm.

    Example:
        >>> timm.create_model("upernet_vit_base", num_classes=150, num_heads=[12] * 11 + [16])  # of TinyMIM-B
    """

    resampling: dict[str, Any] = {"mode": "bicubic", "antialias": False}  # noqa: RUF012 -- never changed

    def __init__(
        self,
        encoder: str,
        num_classes: int = 150,
        *,
        num_heads: int | Sequence[int] | None = None,
        channels: int | None = None,
        taps: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            encoder: architecture of timm.
            num_classes: to tell apart.
            num_heads: attention heads, of all blocks or of each; None is the architecture's.
            channels: of the main head; None is the encoder's width.
            taps: four blocks whose outputs are read, from 0; None is every third part of a network of twelve blocks
                (3, 5, 7, 11), and as far into one of another depth.
            options: of the encoder's architecture.

        Raises:
            UserError: when the encoder is no plain ViT with a class token, or a block or number of heads is impossible.
        """
        one = num_heads if isinstance(num_heads, int) else None
        options = {"init_values": 1.0, "drop_path_rate": 0.0, **options, "final_norm": False}
        super().__init__(encoder, num_classes, **options, **({} if one is None else {"num_heads": one}))
        net = self.encoder
        if net.num_prefix_tokens != 1 or not net.has_class_token:
            raise UserError(
                "The encoder of an UperNet must have a class token and no other special ones", encoder, "Choose a ViT"
            )
        depth = len(net.blocks)
        if one is None and num_heads is not None:
            heads = list(num_heads)  # type: ignore[arg-type]
        else:
            heads = [block.attn.num_heads for block in net.blocks]
        if len(heads) != depth or any(count < 1 or net.embed_dim % count for count in heads):
            raise UserError(
                f"num_heads of an UperNet must be one number that divides its {net.embed_dim} channels, or one for "
                f"each of its {depth} blocks",
                num_heads,
            )
        self.taps = default_taps(depth) if taps is None else list(taps)
        if len(self.taps) != 4 or not all(0 <= tap < depth for tap in self.taps):
            raise UserError(f"taps of an UperNet must be four blocks from 0 to {depth - 1}", taps)
        for block, count in zip(net.blocks, heads, strict=True):
            if type(block.attn) is not Attention:
                raise UserError("The encoder of an UperNet must be a plain ViT of timm", encoder)
            block.attn = BiasedAttention.over(block.attn, count, net.patch_embed.grid_size)
        self.decoder = Pyramid(net.embed_dim, channels or net.embed_dim, num_classes)

    def class_parameters(self) -> list[ClassParameter]:
        heads: Any = (self.decoder.decode_head, self.decoder.auxiliary_head)
        return [(head.classifier[1], name, 0) for head in heads for name in ("weight", "bias")]

    def decode(
        self, tapped: tuple[Any, ...], images: Float[Tensor, "b ch height width"]
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The map, and in training that of the auxiliary head.

        Args:
            tapped: patches behind the four blocks, each (b, n, d).
            images: whose size the maps get.
        """
        grid = self.grid_of(images)
        maps = tuple(patches.transpose(1, 2).unflatten(2, (grid.h, grid.w)) for patches in tapped)
        scores = self.decoder(maps)
        if isinstance(scores, tuple):
            return self.to_size(scores[0], images), self.to_size(scores[1], images)
        return self.to_size(scores, images)

    def forward(self, images: Float[Tensor, "b ch height width"]) -> Tensor | tuple[Tensor, Tensor]:
        """
        Raises:
            UserError: when images have another size than the network was built for.
        """
        check_image_size(self, images)
        net, outputs = self.encoder, []
        tokens = net.norm_pre(net.patch_drop(self.embed(images)))
        for block in net.blocks:
            tokens = block(tokens)
            outputs.append(tokens)
        return self.decode(tuple(outputs[tap][:, 1:] for tap in self.taps), images)


class UperNetViT(PixelViT):
    """Adapter over `UperNet`. Where patches are left out, the biases are gathered for the tokens that are there."""

    has_bias = True
    blocks_apart = False  # saliency adds a block's bias

    net: UperNet

    def run(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        keep: Int[Tensor, "bm k"] | None,
        capture: Capture,
        captured: Captured,
    ) -> Tensor:
        check_image_size(self.net, inputs)
        tokens = self.embed(inputs)
        if keep is not None:
            tokens = keep_patches(tokens, keep, prefix=self.specials)
        read = {(tap, "output") for tap in self.net.taps} if capture.head else set()
        capture = Capture(capture.points | read, capture.head)  # type: ignore[operator]
        return self.run_each(self.before_blocks(tokens), [(keep,)] * self.depth, capture, captured)

    def run_block(self, index: int, *arguments: Tensor | None, capture: Capture) -> Tensor:
        tokens, keep = arguments
        if keep is None:
            return super().run_block(index, tokens, capture=capture)
        seen = torch.cat((torch.zeros_like(keep[:, :1]), keep + 1), dim=1)
        biases = self.blocks[index].attn.biases()[0][:, seen[:, :, None], seen[:, None, :]].transpose(0, 1)
        return super().run_block(index, tokens, biases, capture=capture)

    def finish(
        self,
        tokens: Tensor,
        inputs: Float[Tensor, "b ch *pixels"],
        keep: Int[Tensor, "bm k"] | None,
        captured: Captured,
    ) -> tuple[Tokens, Tensor | tuple[Tensor, Tensor]]:
        tapped = []
        for tap in self.net.taps:
            read = captured[tap, "output"]
            assert isinstance(read, Tokens)
            tapped.append(self.row_by_row(read.patches, keep))
        return Tokens(tokens, self.specials), self.net.decode(tuple(tapped), inputs)

    def saliency(self, output: Output, block: int = -1, kind: SaliencyKind = "cls") -> Float[Tensor, "b n"]:
        q, k, _, specials = output.qkv(block)
        bias = self.blocks[self.block_index(block)].attn.biases()
        if self.saliency_kind(block, kind) == "cls":
            return cls_attention(q[:, :, 0], k, prefix=specials, bias=bias[:, :, 0])
        return attention_received(q, k, prefix=specials, bias=bias)

    def decoder_macs(self, layernorm: bool) -> Macs:
        shape = (self.width, self.grid.h, self.grid.w)
        traced = traced_macs(_OneMap(self.net.decoder), shape, layernorm=layernorm)
        return Macs(head=traced.other, layernorm=traced.layernorm)


class _OneMap(nn.Module):
    """The decoder on one map in place of four, which it costs as much."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, one: Float[Tensor, "b d rows columns"]) -> Tensor:
        return self.decoder((one,) * 4)


for _size in ("tiny", "small", "base"):
    # DeiT's ViTs of this size have ImageNet's statistics, which are TinyMIM's.
    register(
        f"{UPERNET}{_size}",
        UperNet,
        f"deit_{_size}_patch16_224",
        ("decoder.decode_head.classifier.1", "decoder.auxiliary_head.classifier.1"),
    )
