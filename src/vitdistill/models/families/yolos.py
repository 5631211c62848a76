"""YOLOS (Fang et al., NeurIPS 2021): a plain ViT that finds objects, one of which each detection token may describe.

The architectures are registered with timm, so that `timm.create_model("yolos_tiny")` builds them once this package is
imported. Tensors have the names of the authors' files, and positions their order: class token, patches row by row,
detection tokens. Attention does not see the order of tokens, so the network runs detection tokens as a prefix, right
behind the class token, where all special tokens of a ViT stand.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.families.narrow import add_waves, begin_narrow, is_narrow
from vitdistill.models.families.registry import registered
from vitdistill.models.names import YOLOS
from vitdistill.models.sizes import pair
from vitdistill.models.weights.positions import resample

Size = tuple[int, int]

COORDINATES = 4  # of a box, behind the classes and "no object" in a prediction


class PredictionHead(nn.Module):
    """Three linear maps with ReLU between them."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), _last(width, outputs)])

    def forward(self, tokens: Float[Tensor, "b q d"]) -> Float[Tensor, "b q outputs"]:
        for layer in self.layers[:-1]:
            tokens = F.relu(layer(tokens))
        return self.layers[-1](tokens)


def _last(width: int, outputs: int) -> nn.Module:
    return nn.Linear(width, outputs) if outputs else nn.Identity()


class Yolos(VisionTransformer):
    """timm's blocks over a class token, detection tokens and patches, and two heads on the detection tokens.

    Its output is one tensor (b, q, classes + 1 + 4): class scores before the softmax, the last of which is "no object",
    then the box (centre x and y, width, height) as shares of the image. Images may have any size that patches fill;
    positions are interpolated from the grid of `img_size`, those between the blocks from that of `mid_size`.

    Example:
        >>> timm.create_model("yolos_tiny", num_classes=20)(torch.randn(1, 3, 512, 672)).shape
        torch.Size([1, 100, 25])
    """

    # Outputs of the classifier that are no class of the data: "no object".
    beside_classes = 1

    def __init__(
        self,
        img_size: int | Sequence[int] = (800, 1328),
        patch_size: int | Sequence[int] = 16,
        in_chans: int = 3,
        num_classes: int = 91,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        det_tokens: int = 100,
        mid_positions: bool = False,
        mid_size: int | Sequence[int] | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        init_values: float | None = None,
        pre_norm: bool = False,
        act_layer: str | None = None,
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0,
    ) -> None:
        """
        Args:
            img_size: height and width in pixels of the table of positions, and of images where nobody says otherwise.
            patch_size: in pixels.
            in_chans: channels of an image.
            num_classes: of objects, without "no object"; 0 leaves out the last layer of the class head.
            embed_dim: channels of a token.
            depth: blocks.
            num_heads: of attention.
            mlp_ratio: hidden channels of the MLPs, by `embed_dim`.
            det_tokens: how many objects can be found in an image.
            mid_positions: whether positions are added between blocks as well, from a table for each.
            mid_size: height and width in pixels of these tables; by default `img_size`.
            qkv_bias: whether queries, keys and values have a bias.
            qk_norm: whether queries and keys are normalised.
            init_values: of LayerScale; None for none.
            pre_norm: whether there is a norm before the blocks (CLIP).
            act_layer: activation of the MLPs, by timm's name; None for GELU.
            norm_eps: epsilon of the norms.
            drop_path_rate: of the last block; it rises over the blocks.

        Raises:
            UserError: when patches do not fill a size, or a number is out of range.
        """
        patch = pair(list(patch_size) if isinstance(patch_size, Sequence) else patch_size)
        sizes = {"img_size": img_size, **({} if mid_size is None else {"mid_size": mid_size})}
        for name, size in sizes.items():
            check_whole(pair(size), patch, name)
        if det_tokens < 1 or (mid_size is not None and not mid_positions):
            rule = "det_tokens of YOLOS must be at least 1" if det_tokens < 1 else "mid_size needs mid_positions"
            raise UserError(rule, det_tokens if det_tokens < 1 else mid_size)
        super().__init__(
            img_size=pair(img_size),
            patch_size=patch,
            in_chans=in_chans,
            num_classes=0,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            init_values=init_values,
            pre_norm=pre_norm,
            act_layer=act_layer,
            norm_layer=partial(nn.LayerNorm, eps=norm_eps),
            drop_path_rate=drop_path_rate,
        )
        self.patch_embed.strict_img_size = False
        self.det_tokens, self.num_classes = det_tokens, num_classes
        self.num_prefix_tokens = 1 + det_tokens
        self.table_grid = pair(self.patch_embed.grid_size)
        height, width = pair(img_size if mid_size is None else mid_size)
        self.mid_grid = height // patch[0], width // patch[1]
        self.det_token = nn.Parameter(torch.zeros(1, det_tokens, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self._count(self.table_grid), embed_dim))
        self.mid_pos_embed: nn.Parameter | None = None
        if mid_positions and depth > 1:  # a table of none would be a parameter that no loss reaches
            self.mid_pos_embed = nn.Parameter(torch.zeros(depth - 1, 1, self._count(self.mid_grid), embed_dim))
        self.class_embed = PredictionHead(embed_dim, num_classes + self.beside_classes if num_classes else 0)
        self.bbox_embed = PredictionHead(embed_dim, COORDINATES)
        for table in (self.det_token, self.pos_embed, self.mid_pos_embed):
            if table is not None:
                trunc_normal_(table, std=0.02)
        if is_narrow(embed_dim):
            begin_narrow(self.blocks)
            add_waves(self.pos_embed, self.table_grid)
            nn.init.normal_(self.det_token)  # as far apart as patches are

    def _count(self, grid: Size) -> int:
        return 1 + grid[0] * grid[1] + self.det_tokens

    # --- what timm asks of a network --------------------

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer of the class head by one with random weights; boxes stay as they are."""
        self.num_classes = num_classes
        like: Any = self.class_embed.layers[0].weight
        last = _last(self.embed_dim, num_classes + self.beside_classes if num_classes else 0)
        self.class_embed.layers[-1] = last.to(like.device, like.dtype)

    def get_classifier(self) -> nn.Module:
        return self.class_embed.layers[-1]

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token", "det_token"}  # the authors decay the tables between the blocks

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Levels of layer decay; detection tokens learn at the full rate, like the heads that read them."""
        return {"stem": r"^(?:cls_token|pos_embed|patch_embed)", "blocks": r"^blocks\.(\d+)"}

    # --- running it --------------------

    def grid_of(self, size: Sequence[Any]) -> Size:
        """Patches in a column and in a row of images of a size.

        Raises:
            UserError: when patches do not fill it.
        """
        height, width = map(int, size)  # which are no numbers while the network is traced
        patch = pair(self.patch_embed.patch_size)
        check_whole((height, width), patch, "an image")
        return height // patch[0], width // patch[1]

    def embed(self, images: Float[Tensor, "b ch height width"]) -> Float[Tensor, "b m d"]:
        """Class token, detection tokens and patches, with their positions."""
        grid = self.grid_of(images.shape[-2:])
        assert self.cls_token is not None and self.pos_embed is not None
        patches = self.patch_embed(images)
        first = torch.cat((self.cls_token, self.det_token), dim=1).expand(len(patches), -1, -1)
        return torch.cat((first, patches), dim=1) + self._as_run(self.pos_embed, self.table_grid, grid)

    def mid_positions(self, grid: Size) -> Sequence[Float[Tensor, "1 m d"]]:
        """What is added behind each block but the last, in the order of `embed`; nothing where there is none.

        Args:
            grid: patches in a column and in a row of the images.
        """
        if self.mid_pos_embed is None:
            return []
        return self._as_run(self.mid_pos_embed.flatten(0, 1), self.mid_grid, grid).split(1)

    def _as_run(self, table: Float[Tensor, "layers m d"], own: Size, grid: Size) -> Float[Tensor, "layers m2 d"]:
        cls, patches, det = table.split((1, own[0] * own[1], self.det_tokens), dim=1)
        return torch.cat((cls, det, resize_patches(patches, own, grid)), dim=1)

    def forward_features(self, images: Float[Tensor, "b ch height width"]) -> Tensor:  # type: ignore[override]
        tokens = self.norm_pre(self.embed(images))
        between = self.mid_positions(self.grid_of(images.shape[-2:]))
        for index, block in enumerate(self.blocks):
            tokens = block(tokens + between[index - 1] if between and index else tokens)
        return self.norm(tokens)

    def forward_head(self, tokens: Float[Tensor, "b m d"], pre_logits: bool = False) -> Float[Tensor, "b q _"]:
        """The prediction for tokens in the order of `embed`, patches left out or not."""
        found = tokens[:, 1 : 1 + self.det_tokens]
        if pre_logits:
            return found
        boxes = self.bbox_embed(found)
        # In float32 also under autocast: halves are too coarse for small boxes.
        boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32)).sigmoid()
        return torch.cat((self.class_embed(found).to(boxes.dtype), boxes), dim=-1)

    def forward(self, images: Float[Tensor, "b ch height width"]) -> Float[Tensor, "b q _"]:  # type: ignore[override]
        return self.forward_head(self.forward_features(images))


def resize_patches(patches: Float[Tensor, "layers n d"], old: Size, new: Size) -> Float[Tensor, "layers n2 d"]:
    """Positions of patches on another grid: bicubic interpolation without antialiasing, as the authors have it.

    They interpolate only where the number of patches differs, so that 32 x 54 patches would be read as 54 x 32; here
    the grids are compared.

    Args:
        patches: row by row, of each layer.
        old: patches in a column and in a row.
        new: the same, wanted.
    """
    return resample(patches, old, new, antialias=False)


def resize_table(
    table: Float[Tensor, "*layers m d"], old: Size, new: Size, det_tokens: int
) -> Float[Tensor, "*layers m2 d"]:
    """A table of positions on another grid, in the order in which it is stored: class token, patches, detection tokens.

    Args:
        table: of one layer or more.
        old: patches in a column and in a row.
        new: the same, wanted.
        det_tokens: how many detection tokens there are.
    """
    layers = table.reshape(-1, *table.shape[-2:])
    cls, patches, det = layers.split((1, old[0] * old[1], det_tokens), dim=1)
    resized = torch.cat((cls, resize_patches(patches, old, new), det), dim=1)
    return resized.reshape(*table.shape[:-2], *resized.shape[-2:])


def check_whole(size: Size, patch: Size, what: str) -> None:
    """
    Raises:
        UserError: when patches do not fill a size.
    """
    if any(pixels < side or pixels % side for pixels, side in zip(size, patch, strict=True)):
        whole = [max(pixels // side, 1) * side for pixels, side in zip(size, patch, strict=True)]
        raise UserError(
            f"{what} of YOLOS must be whole patches of {patch[0]}x{patch[1]} pixels",
            f"{size[0]}x{size[1]} pixels",
            f"Use {whole[0]}x{whole[1]}, or pad to a multiple",
        )


# Sizes of images are those of the tables of positions. Where the authors have 1333 pixels, that is 83 patches.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 192, "num_heads": 3, "img_size": (800, 1328)},
    "small": {"embed_dim": 384, "num_heads": 6, "img_size": (512, 864), "mid_positions": True},
    "small_dwr": {"embed_dim": 330, "depth": 14, "num_heads": 6, "img_size": (512, 864), "mid_positions": True},
    "base": {"embed_dim": 768, "num_heads": 12, "img_size": (800, 1344), "mid_positions": True},
}


def _register(size: str, own: dict[str, Any]) -> None:
    @registered(f"{YOLOS}{size}", img_size=own["img_size"])
    def make(pretrained: bool, **options: Any) -> tuple[Yolos, dict[str, Any]]:
        net = Yolos(**{**own, **options})
        return net, {
            "input_size": (net.patch_embed.proj.in_channels, *pair(net.patch_embed.img_size)),
            "num_classes": 91,  # of the published files: COCO's numbers, ten of which are never used
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "first_conv": "patch_embed.proj",
            "classifier": "class_embed.layers.2",
        }


for _size, _own in ARCHITECTURES.items():
    _register(_size, _own)
