"""Learned position embeddings on another grid: interpolated from the grid on which they were trained."""

from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.sizes import pair

Size = tuple[int, int]

# The architecture's argument that says what a file without a record does not; it is no argument of timm's.
FILE_SIZE = "file_img_size"
POSITIONS = ("pos_embed", "encoder.pos_embed")  # what the table is called, in a ViT and in a network that has one


def resample(
    table: Float[Tensor, "layers m d"],
    old: Size,
    new: Size,
    prefix: int = 0,
    *,
    mode: str = "bicubic",
    antialias: bool = True,
) -> Float[Tensor, "layers _ d"]:
    """Position embeddings of another grid: by default bicubic interpolation with antialiasing, as timm has it.

    Args:
        table: embeddings of `prefix` special tokens, which stay, then of the patches in rows; of one layer or more.
        old: patches in a column and in a row of the table.
        new: the same, wanted.
        prefix: special tokens.
        mode: of the interpolation.
        antialias: whether what shrinks is smoothed.
    """
    if old == new:
        return table
    special, patches = table[:, :prefix], table[:, prefix:].to(torch.promote_types(table.dtype, torch.float32))
    image = patches.unflatten(1, old).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new, mode=mode, antialias=antialias, align_corners=False)
    return torch.cat((special, image.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)), dim=1)


def on_own_grid(
    weights: dict[str, Tensor], net: Any, kernel: Tensor | None, trained_at: Any, asked: bool = False
) -> dict[str, Tensor]:
    """Weights with the position embedding of the network's grid, where network and file have one over patches.

    Args:
        weights: under the network's names.
        net: of timm.
        kernel: of the file's patch embedding, whose height and width are those of its patches.
        trained_at: image size in pixels that the file was trained on, if that is known.
        asked: it is the user who says so.

    Raises:
        UserError: when the grid of the file cannot be told.
    """
    name = next((name for name in POSITIONS if name in weights), "")
    table = weights.get(name)
    if table is None or not has_grid(net) or table.ndim != 3 or not table.is_floating_point():
        return weights
    new = pair(net.patch_embed.grid_size)
    prefix = net.pos_embed.shape[1] - new[0] * new[1]
    patch = pair(net.patch_embed.patch_size) if kernel is None or kernel.ndim != 4 else tuple(kernel.shape[-2:])
    try:
        old = grid_of(table.shape[1] - prefix, new, patch, trained_at, asked)
    except UserError:
        own = set(net.state_dict())
        tokens = {name for name in own ^ set(weights) if name.endswith("_token")}
        if tokens or any(name.startswith("blocks.") and name not in weights for name in own):
            return weights  # of another architecture, which strict loading says better
        raise
    how = getattr(net, "resampling", {})  # of networks that do not have it as timm has it
    return weights if old is None else {**weights, name: resample(table, old, new, prefix, **how)}


def has_grid(net: nn.Module) -> bool:
    """Whether a network of timm adds one learned vector to each patch, and perhaps to some special tokens."""
    own, grid = getattr(net, "pos_embed", None), getattr(getattr(net, "patch_embed", None), "grid_size", None)
    if not isinstance(own, nn.Parameter) or own.ndim != 3 or not grid:
        return False
    return 0 <= own.shape[1] - grid[0] * grid[1] <= getattr(net, "num_prefix_tokens", 1)


def grid_of(count: int, new: Size, patch: Sequence[int], trained_at: Any, asked: bool = False) -> Size | None:
    """Patches in a column and in a row of a table of `count` positions; None where strict loading has to complain.

    Without a known image size a table is square. One that is not square is of the network's own grid if the count
    says so, and of an unknown one otherwise.

    Raises:
        UserError: when it may be one or the other.
    """
    if trained_at is not None:
        size = pair(trained_at)
        grid = size[0] // patch[0], size[1] // patch[1]
        if grid[0] * grid[1] == count:
            return grid
        if asked:
            got = f"{size[0]}x{size[1]}, which is {grid[0]}x{grid[1]} patches, for {count} positions"
            raise UserError(f"{FILE_SIZE} must be the image size that the file was trained on", got)
    side = isqrt(max(count, 0))
    square = (side, side) if side * side == count and count > 0 else None
    if count == new[0] * new[1]:
        if square in (None, new):
            return new
        both = f"{side}x{side} or {new[0]}x{new[1]} patches"
    elif square is not None:
        return square
    elif count < 2:
        return None
    else:
        both = "which is no square"
    raise UserError(
        "The file must say on which grid its position embeddings were trained",
        f"{count} positions, {both}",
        f"Set {FILE_SIZE} among the architecture's arguments to the height and width in pixels it was trained on",
    )
