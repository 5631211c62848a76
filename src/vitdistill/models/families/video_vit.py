"""A ViT over clips: timm's VisionTransformer with tubelet embedding and fixed positions (VideoMAE, MVD).

The architectures are registered with timm, so that `timm.create_model("video_vit_small_patch16_224", frames=16)` builds
them once this package is imported.
"""

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitdistill.errors import UserError, near
from vitdistill.models.families.registry import registered
from vitdistill.models.families.vit import ViT
from vitdistill.models.names import VIDEO
from vitdistill.models.network import Network
from vitdistill.models.sizes import pair
from vitdistill.tokens.positions import TABLES
from vitdistill.types import InputSpec, TokenGrid

VideoPositions = Literal["sincos_3d", "sinusoid_1d"]


class TubeletEmbed(nn.Module):
    """Patches over space and time: a 3D convolution whose kernel is its stride, flattened frame by frame."""

    def __init__(
        self,
        img_size: int | tuple[int, int] | list[int] = 224,
        patch_size: int | tuple[int, int] | list[int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        bias: bool = True,
        dynamic_img_pad: bool = False,
        *,
        frames: int = 16,
        tubelet: int = 2,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """
        Args:
            img_size: height and width of a frame, in pixels.
            patch_size: height and width of a tubelet, in pixels.
            in_chans: channels of a frame.
            embed_dim: channels of a token.
            bias: of the projection.
            dynamic_img_pad: must be False; part of timm's interface.
            frames: of a clip.
            tubelet: frames of a tubelet.
            device: of the weights.
            dtype: of the weights.

        Raises:
            UserError: when frames or pixels are no multiple of the tubelet.
        """
        super().__init__()
        self.img_size, self.patch_size = pair(img_size), pair(patch_size)
        self.frames, self.tubelet = frames, tubelet
        if frames < tubelet or frames % tubelet:
            low, high = frames // tubelet * tubelet, (frames // tubelet + 1) * tubelet
            sizes = f"{low} or {high}" if low else str(high)
            raise UserError(
                f"The frames of a clip must be a multiple of the tubelet's {tubelet}", frames, f"Use {sizes}"
            )
        (height, width), (patch_height, patch_width) = self.img_size, self.patch_size
        if height % patch_height or width % patch_width:
            raise UserError(
                f"The frame size must be a multiple of the patch size {patch_height}x{patch_width}", f"{height}x{width}"
            )
        self.grid_size = (height // patch_height, width // patch_width)
        self.num_patches = frames // tubelet * self.grid_size[0] * self.grid_size[1]
        kernel = (tubelet, *self.patch_size)
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel, kernel, bias=bias, device=device, dtype=dtype)

    def forward(self, clips: Float[Tensor, "b *clip"]) -> Float[Tensor, "b n d"]:
        """
        Args:
            clips: channels, frames, height, width.

        Raises:
            UserError: when clips have another shape.
        """
        wanted = (self.proj.in_channels, self.frames, *self.img_size)
        if (given := tuple(clips.shape[1:])) != wanted:
            swapped = len(given) == len(wanted) and (given[1], given[0], *given[2:]) == wanted
            raise UserError(
                f"Clips must be (batch, channels, frames, height, width), here (b, {', '.join(map(str, wanted))})",
                tuple(clips.shape),
                "Swap frames and channels: clips.transpose(1, 2)"
                if swapped
                else "Build the network with the frames and img_size of the clips, or resize these",
            )
        return self.proj(clips).flatten(2).transpose(1, 2)


class QueryValueBias(nn.Linear):
    """A fused qkv projection whose keys have no bias: that part of the bias is zero and gets no gradient."""

    def forward(self, input: Tensor) -> Tensor:
        third = self.out_features // 3
        bias = torch.cat((self.bias[:third], self.bias.new_zeros(third), self.bias[2 * third :]))
        return nn.functional.linear(input, self.weight, bias)

    @classmethod
    def replace_in(cls, blocks: Any) -> None:
        """Turn the qkv projections of blocks into ones without a bias of the keys."""
        for block in blocks:
            old = block.attn.qkv
            with torch.device("meta"):
                new = cls(old.in_features, old.out_features)
            new.weight, new.bias = old.weight, old.bias
            with torch.no_grad():
                third = old.out_features // 3
                new.bias[third : 2 * third].zero_()
            block.attn.qkv = new


def video_vit(
    *,
    frames: int = 16,
    tubelet: int = 2,
    positions: VideoPositions = "sincos_3d",
    **options: Any,
) -> VisionTransformer:
    """A video ViT without class token, mean-pooled, with fixed positions.

    Args:
        frames: of a clip.
        tubelet: frames that make one token.
        positions: sincos_3d (MVD's students) or sinusoid_1d (VideoMAE).
        options: of timm's VisionTransformer.
    """
    known = VideoPositions.__args__  # type: ignore[attr-defined]
    if positions not in known:
        raise UserError(f"positions must be one of {', '.join(known)}", repr(positions), near(positions, known))
    net = VisionTransformer(
        embed_layer=partial(TubeletEmbed, frames=frames, tubelet=tubelet),
        class_token=False,
        **{"global_pool": "avg", "fc_norm": False, "norm_layer": partial(nn.LayerNorm, eps=1e-6), **options},
    )
    QueryValueBias.replace_in(net.blocks)
    grid = TokenGrid(frames // tubelet, *net.patch_embed.grid_size)
    assert net.pos_embed is not None
    with torch.no_grad():
        net.pos_embed.copy_(TABLES[positions](net.embed_dim, grid))
    net.pos_embed.requires_grad_(False)
    return net


class VideoViT(ViT):
    """Adapter of a `VisionTransformer` with `TubeletEmbed`: its grid has time steps, its inputs are clips."""

    @property
    def grid(self) -> TokenGrid:
        embed = self.net.patch_embed
        return TokenGrid(embed.frames // embed.tubelet, *embed.grid_size)

    @property
    def input(self) -> InputSpec:
        embed = self.net.patch_embed
        patch = (int(embed.tubelet), *embed.patch_size)
        shape = (self.channels, int(embed.frames), *embed.img_size)
        return InputSpec(shape, *self._statistics, patch)

    @property
    def channels(self) -> int:
        return int(self.net.patch_embed.proj.in_channels)


def check_video(network: Network, role: str) -> VideoViT:
    """The network, if it takes clips.

    Raises:
        UserError: when it takes images.
    """
    if not isinstance(network, VideoViT):
        raise UserError(
            f"The {role} must be a video ViT",
            network.name,
            "Choose one of video_vit_{small,base,large,huge}_patch16_224",
        )
    return network


SIZES = {
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}


def _register(size: str) -> None:
    @registered(f"{VIDEO}{size}_patch16_224", img_size=224)
    def make(pretrained: bool, **options: Any) -> tuple[VisionTransformer, dict[str, Any]]:
        net = video_vit(**{"patch_size": 16, **SIZES[size], **options})
        return net, {
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "classifier": "head",
        }


for _size in SIZES:
    _register(_size)
