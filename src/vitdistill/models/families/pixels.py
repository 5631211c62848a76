"""What networks share that tell the class of each pixel: a ViT of timm, and a decoder that reads all of its patches."""

from collections.abc import Callable
from typing import Any

import timm
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from vitdistill.errors import UserError
from vitdistill.models.backbone import Captured
from vitdistill.models.families.narrow import begin_narrow, is_narrow
from vitdistill.models.families.registry import registered
from vitdistill.models.families.vit import ViT
from vitdistill.models.macs import Macs, norm_macs
from vitdistill.models.network import ClassParameter
from vitdistill.models.weights.positions import resample
from vitdistill.types import NOTHING, Capture, Output, TokenGrid, Tokens

CROP = 512  # pixels of a side, as all published networks of these families see them

# What the adapter of ViTs, and what loads position embeddings, ask of a network, is the encoder's.
_OF_ENCODER = {
    *("attn_pool", "blocks", "cls_token", "embed_dim", "fc_norm", "global_pool", "grad_checkpointing", "norm"),
    *("norm_pre", "num_features", "num_prefix_tokens", "patch_drop", "patch_embed", "pos_embed", "dist_token"),
}


class PixelNetwork(nn.Module):
    """A ViT of timm and what makes a map of classes of its patches.

    Images whose sides are no multiple of the patch are padded with zeros on the right and at the bottom, and the map is
    cut back. Images of another size than the network was built for have their positions interpolated, by grid.

    Attributes:
        encoder: a `VisionTransformer` without a classifier.
        encoder_name: its architecture, as timm calls it.
        num_classes: of the map.
        resampling: how positions are interpolated, as `resample` takes it.
    """

    encoder: Any
    encoder_name: str
    resampling: dict[str, Any] = {"mode": "bilinear", "antialias": False}  # noqa: RUF012 -- never changed

    def __init__(self, encoder: str, num_classes: int, **options: Any) -> None:
        """
        Args:
            encoder: architecture of timm.
            num_classes: of the map.
            options: of the architecture.

        Raises:
            UserError: when it is no plain ViT of timm, or there are no classes to tell apart.
        """
        super().__init__()
        if num_classes < 2:
            raise UserError(f"A {type(self).__name__} needs at least 2 classes", num_classes)
        net = timm.create_model(encoder, num_classes=0, fc_norm=False, **options)
        if not isinstance(net, VisionTransformer) or type(net.patch_embed) is not PatchEmbed:
            raise UserError(f"The encoder of a {type(self).__name__} must be a plain ViT of timm", encoder)
        if net.attn_pool is not None or not all(type(block) is Block for block in net.blocks):
            why = "blocks of its own" if net.attn_pool is None else "attention that pools its patches"
            raise UserError(
                f"The encoder of a {type(self).__name__} must be a plain ViT of timm", f"{encoder}, with {why}"
            )
        net.patch_embed.strict_img_size = False
        if is_narrow(net.embed_dim):
            begin_narrow(net.blocks)
        self.encoder, self.encoder_name, self.num_classes = net, encoder, num_classes

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in _OF_ENCODER:
                return getattr(self.encoder, name)
            raise

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the encoder's blocks in the backward pass."""
        self.encoder.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Levels of layer decay: embeddings, each block of the encoder, and everything else."""
        return {
            "stem": r"^encoder\.(?:cls_token|dist_token|reg_token|pos_embed|patch_embed|norm_pre)",
            "blocks": [(r"^encoder\.blocks\.(\d+)", None)],
        }

    def class_parameters(self) -> list[ClassParameter]:
        """The parameters that have a row for each class."""
        raise NotImplementedError

    # --- from images to maps --------------------

    def padded(self, images: Float[Tensor, "b ch height width"]) -> Float[Tensor, "b ch height2 width2"]:
        """Images whose sides are multiples of the patch."""
        (height, width), (high, wide) = images.shape[-2:], self.encoder.patch_embed.patch_size
        return F.pad(images, (0, -width % wide, 0, -height % high))

    def grid_of(self, images: Float[Tensor, "b ch height width"]) -> TokenGrid:
        """Patches of images, once they are padded."""
        (height, width), (high, wide) = images.shape[-2:], self.encoder.patch_embed.patch_size
        return TokenGrid(1, -(-height // high), -(-width // wide))

    def positions(self, grid: TokenGrid) -> Float[Tensor, "1 m d"]:
        """The position embeddings of a grid."""
        table, own = self.encoder.pos_embed, self.encoder.patch_embed.grid_size
        prefix = table.shape[1] - own[0] * own[1]
        return resample(table, tuple(own), (grid.h, grid.w), prefix, **self.resampling)

    def embed(self, images: Float[Tensor, "b ch height width"]) -> Float[Tensor, "b m d"]:
        """Special and patch tokens with their positions."""
        patches, grid = self.encoder.patch_embed(self.padded(images)), self.grid_of(images)
        if (grid.h, grid.w) == tuple(self.encoder.patch_embed.grid_size) or self.encoder.pos_embed is None:
            return self.encoder._pos_embed(patches)
        # timm's own sum, with the table of this grid.
        table = {"encoder.pos_embed": self.positions(grid)}
        return functional_call(_Positions(self.encoder), table, (patches,))

    def to_size(
        self, maps: Float[Tensor, "b c rows columns"], images: Float[Tensor, "b ch height width"]
    ) -> Float[Tensor, "b c height width"]:
        """Maps on the grid of patches, or on a finer one, at the size of the images."""
        height, width = images.shape[-2:]
        patch, grid = self.encoder.patch_embed.patch_size, self.grid_of(images)
        maps = F.interpolate(maps, size=(grid.h * patch[0], grid.w * patch[1]), mode="bilinear", align_corners=False)
        return maps[..., :height, :width]


class _Positions(nn.Module):
    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        return self.encoder._pos_embed(patches)


class PixelViT(ViT):
    """Adapter over a `PixelNetwork`: blocks and what is captured are the encoder's, the prediction is a map.

    A pass that stops before the head may leave patches out, as that of any ViT: the masked teacher whose blocks are
    compared. The head reads a map, which has no holes, so a pass up to it sees every patch.
    """

    reads_grid = True
    purpose = "labels pixels"
    task = "segmentation"

    net: PixelNetwork

    @property
    def trunk(self) -> nn.Module:
        return self.net.encoder

    @property
    def head_parameters(self) -> set[nn.Parameter]:
        body = {id(parameter) for parameter in self.net.encoder.parameters()}
        return {parameter for parameter in self.net.parameters() if id(parameter) not in body}

    def forward(
        self,
        inputs: Float[Tensor, "b ch height width"],
        *,
        keep: Int[Tensor, "bm k"] | None = None,
        capture: Capture = NOTHING,
    ) -> Output:
        """
        Raises:
            UserError: also when patches are left out of a pass up to the head.
        """
        grid, capture = self.net.grid_of(inputs), self.with_head(capture)
        ends = {(block, point) for block, point in capture.points if point == "final"}
        if keep is not None and capture.head and keep.shape[1] < grid.count:
            raise self.has_holes(keep.shape[1], grid.count)
        read = (capture.points - ends) | {(block, "output") for block, _ in ends}
        output = super().forward(inputs, keep=keep, capture=Capture(read, capture.head))  # type: ignore[arg-type]
        for block, point in ends:
            output.final = Tokens(self.net.encoder.norm(output.tokens(block).all), self.specials)
            output.captured[block, point] = output.final
        output.captured = {asked: output.captured[asked] for asked in capture.points}
        output.grid = grid
        return output

    def final_capture(self) -> Capture:
        return Capture.at(-1, "final", head=False)

    def with_head(self, capture: Capture) -> Capture:
        """The capture; up to the head where what it asks for lies there."""
        return capture

    def has_holes(self, kept: int, patches: int) -> UserError:
        """What to raise when patches shall be left out of a pass up to the head."""
        return UserError(
            f"The head of {self.name} reads the whole grid of patches, so that none can be left out of a pass up to it",
            f"{kept} of {patches} patches",
            "Compare blocks (--distill manifold), or use --keep 1.0",
        )

    def embed(self, inputs: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b m d"]:
        return self.net.embed(inputs)

    def row_by_row(self, patches: Float[Tensor, "b n d"], keep: Int[Tensor, "bm n"] | None) -> Float[Tensor, "b n d"]:
        """All patches as the grid has them, whatever the order in which they were kept."""
        if keep is None:
            return patches
        return patches.gather(1, keep.argsort(dim=1)[:, :, None].expand_as(patches))

    def head(self, tokens: Tensor) -> tuple[Tokens, Tensor | tuple[Tensor, Tensor]]:
        raise NotImplementedError("the head goes by the size of the inputs; `finish` runs it")

    def finish(
        self,
        tokens: Tensor,
        inputs: Float[Tensor, "b ch *pixels"],
        keep: Int[Tensor, "bm k"] | None,
        captured: Captured,
    ) -> tuple[Tokens, Tensor | tuple[Tensor, Tensor]]:
        raise NotImplementedError

    def macs(
        self,
        kept: int | None = None,
        capture: Capture = NOTHING,
        *,
        layernorm: bool = True,
        size: tuple[int, int] | None = None,
    ) -> Macs:
        """As any network's; a pass that leaves patches out is taken to stop behind the last block, if not before."""
        capture = self.with_head(capture)
        points, decodes = capture.points, capture.head and kept in (None, self.grid.count)
        if capture.head:  # all blocks, and behind them what is the decoder's to count
            points |= {(-1, "output")}
        total = super().macs(kept, Capture(points, head=False), layernorm=layernorm)
        if not decodes and any(point == "final" for _, point in points):
            total += norm_macs(self.net.encoder.norm, self.specials + (kept or self.grid.count), layernorm)
        return total + self.decoder_macs(layernorm) if decodes else total

    def decoder_macs(self, layernorm: bool) -> Macs:
        """What lies behind the blocks."""
        raise NotImplementedError


def register(
    name: str, make: Callable[..., PixelNetwork], encoder: str, classifier: tuple[str, ...], **own: Any
) -> None:
    """Register an architecture with timm, built for 512 pixels and ADE20K's 150 classes where nothing else is said.

    Args:
        name: of the architecture.
        make: the network's class.
        encoder: architecture of timm, whose input statistics are the network's, where no other encoder is named.
        classifier: modules whose weights are those of the classes.
        own: arguments that this architecture has where nothing else is said.
    """

    @registered(name, img_size=CROP, module=make.__module__)
    def build(pretrained: bool, **options: Any) -> tuple[PixelNetwork, dict[str, Any]]:
        net = make(**{"encoder": encoder, "num_classes": 150, **own, **options})
        config = dict(net.encoder.pretrained_cfg or {})
        return net, {
            "input_size": (net.encoder.patch_embed.proj.in_channels, *net.encoder.patch_embed.img_size),
            "mean": config.get("mean", (0.5, 0.5, 0.5)),
            "std": config.get("std", (0.5, 0.5, 0.5)),
            "interpolation": "bilinear",
            "first_conv": "encoder.patch_embed.proj",
            "classifier": classifier,
        }


def check_image_size(net: PixelNetwork, images: Tensor) -> None:
    """
    Raises:
        UserError: when images have another size than the network was built for.
    """
    own = tuple(net.encoder.patch_embed.img_size)
    if tuple(images.shape[-2:]) != own:
        wanted, given = ("x".join(map(str, size)) for size in (own, images.shape[-2:]))
        raise UserError(f"This {type(net).__name__} takes images of {wanted} pixels", given, "Cut or resize them")


def trunc_normal(module: nn.Module) -> None:
    """Linear maps start as those of timm's ViTs do."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
