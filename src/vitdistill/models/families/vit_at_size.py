"""A ViT that also takes images of another size than its own: the small crops of DINO."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from vitdistill.errors import UserError
from vitdistill.models.families.vit import ViT
from vitdistill.models.network import Network
from vitdistill.models.weights.positions import has_grid, resample
from vitdistill.types import InputSpec, TokenGrid

LocalPositions = Literal["dino", "timm"]


class ViTAtSize(ViT):
    """The same network, with its own weights, over images of another size; position embeddings are interpolated.

    They are interpolated anew in every pass, and carry gradients to the table of the network's own size.

    Example:
        >>> small = ViTAtSize(student, (96, 96))
        >>> small(crops).final.special[:, 0]  # crops of 96 x 96 pixels, of a network over 224 x 224
    """

    def __init__(self, network: Network, size: tuple[int, int], positions: LocalPositions = "dino") -> None:
        """
        Args:
            network: the adapter of a ViT; its network is shared, not copied.
            size: height and width in pixels.
            positions: dino interpolates as DINO's authors do, whose coordinates are those of a grid that is 0.1 patches
                larger; timm as timm does, with antialiasing.

        Raises:
            UserError: when it is no ViT with a learned or fixed position embedding, or patches do not fill the size.
        """
        if type(network) is not ViT or not has_grid(network.net):
            raise UserError(
                "Crops of another size need a ViT with one position embedding over all patches",
                network.name,
                "Choose a ViT or DeiT, or leave out the small crops (--views.locals 0)",
            )
        super().__init__(network.net)
        patch = network.input.patch
        assert patch is not None
        check_whole(size, patch)
        self.size, self.positions = size, positions
        self._grid = TokenGrid(1, size[0] // patch[1], size[1] // patch[2])

    @property
    def grid(self) -> TokenGrid:
        return self._grid

    @property
    def input(self) -> InputSpec:
        own = super().input
        return InputSpec((own.shape[0], *self.size), own.mean, own.std, own.patch)

    def embed(self, inputs: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b m d"]:
        table = self.net.pos_embed
        height, width = self.net.patch_embed.grid_size
        prefix = table.shape[1] - height * width
        interpolate = resample if self.positions == "timm" else resample_by_factor
        own = interpolate(table, (height, width), (self.grid.h, self.grid.w), prefix)
        return functional_call(_Embedding(self.net), {"net.pos_embed": own}, (inputs,))


def resample_by_factor(
    table: Float[Tensor, "1 m d"], old: tuple[int, int], new: tuple[int, int], prefix: int = 0
) -> Float[Tensor, "1 _ d"]:
    """Position embeddings of another grid as DINO's authors have them: bicubic, by a factor of (patches + 0.1) / own.

    The added tenth keeps rounding from losing a patch; since the factor also gives the coordinates, it shifts them.

    Args:
        table: embeddings of `prefix` special tokens, which stay, then of the patches in rows.
        old: patches in a column and in a row of the table.
        new: the same, wanted.
        prefix: special tokens.
    """
    if old == new:
        return table
    special, patches = table[:, :prefix], table[:, prefix:].float()
    image = patches.reshape(1, *old, -1).permute(0, 3, 1, 2)
    factors = tuple((wanted + 0.1) / had for wanted, had in zip(new, old, strict=True))
    image = F.interpolate(image, scale_factor=factors, mode="bicubic", align_corners=False)
    return torch.cat((special, image.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)), dim=1)


def check_whole(size: tuple[int, int], patch: tuple[int, int, int]) -> None:
    """
    Raises:
        UserError: when patches do not fill images of this size.
    """
    if any(edge < 1 or edge % step for edge, step in zip(size, patch[1:], strict=True)):
        below = max(size[0] // patch[1], 1) * patch[1]
        raise UserError(
            f"The small crops must be whole patches of {patch[1]}x{patch[2]} pixels",
            f"{size[0]}x{size[1]} pixels",
            f"Use --views.local_size {below}",
        )


class _Embedding(nn.Module):
    """Patch embedding and positions of timm's ViT, for images of any size that its patches fill."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        embed = self.net.patch_embed
        strict, embed.strict_img_size = embed.strict_img_size, False
        try:
            return self.net._pos_embed(embed(inputs))
        finally:
            embed.strict_img_size = strict
