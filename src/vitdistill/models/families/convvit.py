"""ConvViT, the network of ConvMAE (Gao et al., 2022): two stages of convolutions, then a ViT over their tokens.

The architecture is registered with timm, so that `timm.create_model("convvit_base_patch16_224")` builds it once this
package is imported. Its tensors have the names of the published files.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from timm.layers import DropPath, LayerNorm2d, Mlp, trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.families.registry import registered
from vitdistill.models.families.vit import ViT
from vitdistill.models.macs import Macs, check_kept, head_macs, norm_macs
from vitdistill.models.names import CONVVIT
from vitdistill.models.sizes import pair
from vitdistill.models.surgery.drop_path import rising
from vitdistill.types import NOTHING, Capture, InputSpec, TokenGrid


class StageEmbed(nn.Module):
    """What begins a stage: patches of the map before it, normalised over channels, and GELU."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)
        self.norm = LayerNorm2d(dim, eps=1e-5)
        self.act = nn.GELU()

    def forward(self, maps: Float[Tensor, "b ch height width"]) -> Float[Tensor, "b d rows columns"]:
        return self.act(self.norm(self.proj(maps)))


class ConvBlock(nn.Module):
    """A block of the first two stages: a depthwise convolution stands where a ViT has attention, hence its name."""

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(dim, eps=1e-5)
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.attn = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv2 = nn.Conv2d(dim, dim, 1)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = LayerNorm2d(dim, eps=1e-5)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), use_conv=True)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, maps: Float[Tensor, "b d rows columns"]) -> Float[Tensor, "b d rows columns"]:
        maps = maps + self.drop_path1(self.conv2(self.attn(self.conv1(self.norm1(maps)))))
        return maps + self.drop_path2(self.mlp(self.norm2(maps)))


class ConvViT(nn.Module):
    """Convolutions over 4 x 4 and 8 x 8 pixels, then ViT blocks over patches of 16 x 16; mean-pooled, no class token.

    Example:
        >>> timm.create_model("convvit_base_patch16_224", num_classes=10)
        >>> timm.create_model("convvit_base_patch16_224", img_size=32, patch_size=(2, 2, 2), embed_dim=(16, 24, 48),
        ...     depth=(1, 1, 3), num_heads=3)
    """

    # What the adapter of ViTs asks of a network.
    num_prefix_tokens = 0
    cls_token = None
    global_pool = "avg"

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: Sequence[int] = (4, 2, 2),
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: Sequence[int] = (256, 384, 768),
        depth: Sequence[int] = (2, 2, 11),
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        """
        Args:
            img_size: height and width in pixels.
            patch_size: of each stage's patches, in pixels of the map before it.
            in_chans: channels of an image.
            num_classes: of the classifier; 0 for none.
            embed_dim: channels of each stage.
            depth: blocks of each stage.
            num_heads: attention heads of the last stage.
            mlp_ratio: hidden channels of the MLPs, by those of their stage.
            drop_path_rate: of the last block; it rises over the blocks of all stages.

        Raises:
            UserError: when there are not three stages, or patches do not fill the image.
        """
        super().__init__()
        for name, values in (("patch_size", patch_size), ("embed_dim", embed_dim), ("depth", depth)):
            if isinstance(values, str) or len(tuple(values)) != 3:
                raise UserError(
                    f"{name} of a ConvViT must be three numbers, one a stage", values, f"{name} [4,2,2], say"
                )
        self.img_size, self.patch_size = pair(img_size), patch_size[0] * patch_size[1] * patch_size[2]
        if any(side % self.patch_size or not side for side in self.img_size):
            shown = "x".join(map(str, self.img_size))
            raise UserError(
                f"The image size of a ConvViT must be a multiple of its patch size {self.patch_size}", shown
            )
        self.grid_size = (self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size)
        first, second, dim = embed_dim
        rates = rising(drop_path_rate, sum(depth))
        self.patch_embed1 = StageEmbed(in_chans, first, patch_size[0])
        self.patch_embed2 = StageEmbed(first, second, patch_size[1])
        self.patch_embed3 = StageEmbed(second, dim, patch_size[2])
        self.patch_embed4 = nn.Linear(dim, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid_size[0] * self.grid_size[1], dim))
        self.blocks1 = nn.ModuleList(ConvBlock(first, mlp_ratio, rate) for rate in rates[: depth[0]])
        self.blocks2 = nn.ModuleList(ConvBlock(second, mlp_ratio, rate) for rate in rates[depth[0] : -depth[2]])
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks3 = nn.ModuleList(
            Block(dim, num_heads, mlp_ratio, qkv_bias=True, drop_path=rate, norm_layer=norm)  # type: ignore[arg-type]
            for rate in rates[-depth[2] :]
        )
        self.norm = nn.Identity()  # pre-training has one here; pooled features are normalised by fc_norm
        self.fc_norm = norm(dim)
        self.num_features = self.embed_dim = dim
        self.grad_checkpointing = False
        self.reset_classifier(num_classes)
        self.apply(_initialise)
        trunc_normal_(self.pos_embed, std=0.02)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by one with random weights."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        _initialise(self.head)

    def get_classifier(self) -> nn.Module:
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks of the last stage in the backward pass."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}

    def embed(self, images: Float[Tensor, "b ch height width"]) -> Float[Tensor, "b n d"]:
        """The tokens that enter the last stage, row by row, with their positions.

        Raises:
            UserError: when images have another size.
        """
        if tuple(images.shape[-2:]) != self.img_size:
            given, own = ("x".join(map(str, size)) for size in (images.shape[-2:], self.img_size))
            raise UserError(
                f"This ConvViT takes images of {own} pixels", given, "Resize them, or build it for their size"
            )
        maps = self.patch_embed1(images)
        for block in self.blocks1:
            maps = block(maps)
        maps = self.patch_embed2(maps)
        for block in self.blocks2:
            maps = block(maps)
        return self.patch_embed4(self.patch_embed3(maps).flatten(2).transpose(1, 2)) + self.pos_embed

    def forward_features(self, images: Float[Tensor, "b ch height width"]) -> Float[Tensor, "b n d"]:
        tokens = self.embed(images)
        for block in self.blocks3:
            tokens = block(tokens)
        return tokens

    def forward_head(self, tokens: Float[Tensor, "b k d"], pre_logits: bool = False) -> Float[Tensor, "b c"]:
        features = self.fc_norm(tokens.mean(dim=1))
        return features if pre_logits else self.head(features)

    def forward(self, images: Float[Tensor, "b ch height width"]) -> Float[Tensor, "b c"]:
        return self.forward_head(self.forward_features(images))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class ConvStagesViT(ViT):
    """Adapter of `ConvViT`: the convolutions see the whole image, and patches are left out behind them.

    Blocks count through the last stage; those of the others cannot be looked into. A token knows its neighbours'
    pixels when it enters the blocks, so patches that are left out are not hidden altogether.
    """

    @property
    def grid(self) -> TokenGrid:
        return TokenGrid(1, *self.net.grid_size)

    @property
    def input(self) -> InputSpec:
        patch = int(self.net.patch_size)
        return InputSpec((self.channels, *self.net.img_size), *self._statistics, (1, patch, patch))

    @property
    def blocks(self) -> Sequence[Any]:
        return list(self.net.blocks3)

    def embed(self, inputs: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b m d"]:
        return self.net.embed(inputs)

    def before_blocks(self, tokens: Float[Tensor, "b m d"]) -> Float[Tensor, "b m d"]:
        return tokens

    def is_countable(self) -> bool:
        return True

    def macs(
        self,
        kept: int | None = None,
        capture: Capture = NOTHING,
        *,
        layernorm: bool = True,
        size: tuple[int, int] | None = None,
    ) -> Macs:
        check_kept(self, kept)
        net, tokens = self.net, self.grid.count if kept is None else kept
        total, positions = Macs(), net.img_size[0] * net.img_size[1]
        stages = ((net.patch_embed1, net.blocks1), (net.patch_embed2, net.blocks2), (net.patch_embed3, ()))
        for embed, blocks in stages:
            positions //= embed.proj.stride[0] * embed.proj.stride[1]
            total += Macs(patch_embed=embed.proj.weight.numel() * positions)
            total += norm_macs(embed.norm, positions, layernorm)
            for block in blocks:
                weights = (part.weight.numel() for part in block.modules() if isinstance(part, nn.Conv2d))
                total += Macs(convolutions=sum(weights) * positions)
                total += norm_macs(block.norm1, positions, layernorm) + norm_macs(block.norm2, positions, layernorm)
        total += Macs(patch_embed=net.patch_embed4.weight.numel() * positions)
        whole, only_qkv = self.blocks_run(capture)
        for block in self.blocks[:whole]:
            total += self.block_macs(block, tokens, layernorm)
        if only_qkv:
            total += self.project_macs(self.blocks[whole], tokens, layernorm)
        return total + norm_macs(net.fc_norm, 1, layernorm) + head_macs(net) if capture.head else total


def _register(size: str, **own: Any) -> None:
    @registered(f"{CONVVIT}{size}_patch16_224", img_size=224)
    def make(pretrained: bool, **options: Any) -> tuple[ConvViT, dict[str, Any]]:
        net = ConvViT(**{**own, **options})
        return net, {
            "input_size": (net.patch_embed1.proj.in_channels, *net.img_size),
            "num_classes": 1000,  # of the published files
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "interpolation": "bicubic",
            "crop_pct": 0.875,  # 224 of 256
            "first_conv": "patch_embed1.proj",
            "classifier": "head",
        }


_register("base")
