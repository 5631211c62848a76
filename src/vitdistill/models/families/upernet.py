"""UperNet (Xiao et al., 2018) over a ViT, as TinyMIM is tested on ADE20K: blocks' outputs as maps of four sizes.

The heads are those of transformers. The architectures are registered with timm, so that
`timm.create_model("upernet_vit_base", num_classes=150)` builds them once this package is imported.
`upernet_vit_tiny_star` is that of TinyMIM's released tiny* network: a class and a distillation token, 12 heads in every
block, and wide necks.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers.pos_embed_rel import gen_relative_position_index
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torchvision.ops import Permute

from vitdistill.errors import UserError, near
from vitdistill.models.backbone import Captured, SaliencyKind
from vitdistill.models.families.pixels import PixelNetwork, PixelViT, check_image_size, register, trunc_normal
from vitdistill.models.macs import Macs, traced_macs
from vitdistill.models.names import UPERNET
from vitdistill.models.network import ClassParameter
from vitdistill.tokens.gather import keep_patches
from vitdistill.tokens.saliency import attention_received, cls_attention
from vitdistill.types import Capture, Output, Tokens

AUXILIARY = 256  # channels of the auxiliary head
DROPOUT = 0.1  # of whole channels, in front of both classifiers
BEYOND = 3  # offsets that are none of two patches: special token to others, others to special token, and to itself
EXPANDED = 1280  # channels of the coarsest map of wide necks, in front of its convolution
QUERIES = {"cls": (0,), "cls+dist": (0, 1)}  # special tokens whose attention is saliency, by its kind


def default_taps(depth: int) -> list[int]:
    """The blocks that are read: those behind a third, a half, two thirds and all of the network.

    Example:
        >>> default_taps(12)
        [3, 5, 7, 11]
    """
    return [max(0, depth * part // 6 - 1) for part in (2, 3, 4, 6)]


def relative_positions(window: tuple[int, int], specials: int) -> Int[Tensor, "m m"]:
    """The offset of each token (row) to each other (column), by number: those of two patches come first.

    Special tokens have three each, the class token the last three. Of a pair of two special tokens the earlier one, the
    class token, decides. With a class token alone it is timm's numbering.

    Args:
        window: patches in a column and in a row.
        specials: tokens before the patches.
    """
    index = F.pad(gen_relative_position_index(window), (specials, 0, specials, 0))
    for special in reversed(range(specials)):
        to_others = _patch_offsets(window) + BEYOND * (specials - 1 - special)
        index[special, :], index[:, special], index[special, special] = to_others, to_others + 1, to_others + 2
    return index


def _patch_offsets(window: tuple[int, int]) -> int:
    return (2 * window[0] - 1) * (2 * window[1] - 1)


class BiasedAttention(Attention):
    """timm's attention with a learned bias for each pair of tokens, by where they lie to each other."""

    @classmethod
    def over(cls, attention: Attention, heads: int, window: tuple[int, int], specials: int) -> "BiasedAttention":
        """The same attention with biases of zero.

        Args:
            attention: its parts are taken over.
            heads: of the new one.
            window: patches in a column and in a row.
            specials: tokens before the patches.
        """
        width = attention.qkv.in_features
        with torch.device("meta"):
            new = cls(width, heads)
        for name in ("qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"):
            setattr(new, name, getattr(attention, name))
        offsets = _patch_offsets(window) + BEYOND * specials
        new.relative_position_bias_table = nn.Parameter(torch.zeros(offsets, heads))
        new.register_buffer("relative_position_index", relative_positions(window, specials), persistent=False)
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


def _doubled(width: int, out: int) -> nn.Module:
    return nn.ConvTranspose2d(width, out, 2, 2)


def _twice_doubled(width: int, middle: int, out: int) -> nn.Module:
    return nn.Sequential(_doubled(width, middle), nn.BatchNorm2d(middle), nn.GELU(), _doubled(middle, out))


def _plain_necks(width: int) -> tuple[int, list[nn.Module]]:
    finest = _twice_doubled(width, width, width)
    return width, [finest, _doubled(width, width), nn.Identity(), nn.MaxPool2d(2)]


def _wide_necks(width: int) -> tuple[int, list[nn.Module]]:
    """Those of TinyMIM's tiny*. 1280 channels and the norm's epsilon, torch's 1e-5, are the same for every width."""
    out = 4 * width
    expansion = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, EXPANDED), nn.GELU()).apply(trunc_normal)
    coarsest = nn.Sequential(
        Permute([0, 2, 3, 1]), *expansion, Permute([0, 3, 1, 2]), nn.Conv2d(EXPANDED, out, 3, stride=2, padding=1)
    )
    return out, [_twice_doubled(width, 2 * width, out), _doubled(width, out), nn.Conv2d(width, out, 1), coarsest]


Necks = Literal["plain", "wide"]
# From the width of the blocks' maps to that of the four maps that the heads read, and what makes these.
NECKS: dict[str, Callable[[int], tuple[int, list[nn.Module]]]] = {"plain": _plain_necks, "wide": _wide_necks}


class Pyramid(nn.Module):
    """Maps of the patch's size as maps of a quarter, a half, once and twice it, and the heads that read these."""

    def __init__(self, width: int, channels: int | None, classes: int, necks: Necks = "plain") -> None:
        """
        Args:
            width: of the maps.
            channels: of the main head; None is the width of the maps behind the necks.
            classes: to tell apart.
            necks: plain or wide, see `UperNet`.

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

        width, modules = NECKS[necks](width)
        config = UperNetConfig(
            backbone_config={"model_type": "vit"},  # which nothing here reads; the default would be a ResNet
            hidden_size=channels or width,
            auxiliary_in_channels=width,
            auxiliary_channels=AUXILIARY,
        )
        config.num_labels = classes
        self.necks = nn.ModuleList(modules)
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
        >>> timm.create_model("upernet_vit_tiny_star", num_classes=150, channels=192)  # the light head of tiny*
    """

    resampling: dict[str, Any] = {"mode": "bicubic", "antialias": False}  # noqa: RUF012 -- never changed

    def __init__(
        self,
        encoder: str,
        num_classes: int = 150,
        *,
        num_heads: int | Sequence[int] | None = None,
        channels: int | None = None,
        necks: Necks = "plain",
        taps: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            encoder: architecture of timm.
            num_classes: to tell apart.
            num_heads: attention heads, of all blocks or of each; None is the architecture's.
            channels: of the main head; None is the width of the maps that it reads.
            necks: what makes four sizes of the blocks' maps. plain keeps the encoder's width: transposed convolutions
                enlarge two maps, one stays, max pooling halves the last. wide puts out four times the width:
                transposed convolutions with twice and four times the channels, a 1x1 convolution, and for the last map
                LayerNorm, a linear map to 1280 channels and GELU on each patch, then a 3x3 convolution with stride 2.
            taps: four blocks whose outputs are read, from 0; None is every third part of a network of twelve blocks
                (3, 5, 7, 11), and as far into one of another depth.
            options: of the encoder's architecture.

        Raises:
            UserError: when the encoder is no plain ViT with a class token (beside which a distillation token may
                stand), or necks, a block or number of heads are impossible.
        """
        if necks not in NECKS:
            raise UserError(f"necks must be one of {', '.join(NECKS)}", repr(necks), near(str(necks), NECKS))
        one = num_heads if isinstance(num_heads, int) else None
        options = {"init_values": 1.0, "drop_path_rate": 0.0, **options, "final_norm": False}
        super().__init__(encoder, num_classes, **options, **({} if one is None else {"num_heads": one}))
        net = self.encoder
        if net.num_reg_tokens or not net.has_class_token:
            rule = "The encoder of an UperNet must have a class token, and no other special ones but for distillation"
            raise UserError(rule, encoder, "Choose a ViT or a DeiT")
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
            block.attn = BiasedAttention.over(block.attn, count, net.patch_embed.grid_size, net.num_prefix_tokens)
        self.decoder = Pyramid(net.embed_dim, channels, num_classes, necks)

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
        return self.decode(tuple(outputs[tap][:, net.num_prefix_tokens :] for tap in self.taps), images)


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
        specials = torch.arange(self.specials, device=keep.device).expand(len(keep), -1)
        seen = torch.cat((specials, keep + self.specials), dim=1)
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
        if queries := QUERIES.get(self.saliency_kind(block, kind)):
            rows = [cls_attention(q[:, :, one], k, prefix=specials, bias=bias[:, :, one]) for one in queries]
            return torch.stack(rows).mean(dim=0)
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


_CLASSES = ("decoder.decode_head.classifier.1", "decoder.auxiliary_head.classifier.1")
# DeiT's ViTs of these sizes have ImageNet's statistics, which are TinyMIM's.
for _size in ("tiny", "small", "base"):
    register(f"{UPERNET}{_size}", UperNet, f"deit_{_size}_patch16_224", _CLASSES)
register(f"{UPERNET}tiny_star", UperNet, "deit_tiny_distilled_patch16_224", _CLASSES, num_heads=12, necks="wide")
