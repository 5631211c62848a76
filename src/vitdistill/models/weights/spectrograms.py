"""Weights for a network over spectrograms: DeiT's of images, and those of an AST over other spectrograms.

As the authors of AST have it (Gong et al., "AST: Audio Spectrogram Transformer", 2021, Sec. 2.2).
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitdistill.models.sizes import pair

Grid = tuple[int, int]  # patches along frequency and along time
SPECIALS = 2  # class and distillation token, whose positions stay


def grid_over(size: Grid, patch: Grid, stride: Grid) -> Grid:
    """Patches along frequency and time: those of a convolution without padding.

    Args:
        size: mel bins and frames.
        patch: mel bins and frames of a patch.
        stride: from one patch to the next.
    """
    down, across = ((whole - one) // step + 1 for whole, one, step in zip(size, patch, stride, strict=True))
    return down, across


def one_channel(kernel: Float[Tensor, "d ch height width"]) -> Float[Tensor, "d 1 height width"]:
    """A patch kernel of images for a spectrogram: the sum over the colours, so that a grey image gives the same."""
    return kernel.sum(dim=1, keepdim=True)


def positions_on(table: Float[Tensor, "1 m d"], old: Grid, new: Grid, prefix: int = SPECIALS) -> Float[Tensor, "1 _ d"]:
    """Position embeddings of another grid: first along time, then along frequency.

    Along an axis that shrinks, the middle is cut out; along one that grows, values are interpolated linearly.

    Args:
        table: embeddings of `prefix` special tokens, which stay, then of patches, all times of a frequency together.
        old: patches of the table along frequency and time.
        new: the same, wanted.
        prefix: special tokens.

    Example:
        >>> positions_on(table_of_deit, (14, 14), (12, 50)).shape
        torch.Size([1, 602, 384])
    """
    special, patches = table[:, :prefix], table[:, prefix:].float()
    plane = patches.reshape(1, *old, -1).permute(0, 3, 1, 2)
    for axis in (1, 0):
        had, wanted = old[axis], new[axis]
        if wanted <= had:
            plane = plane.narrow(axis + 2, had // 2 - wanted // 2, wanted)
        else:
            size = (plane.shape[2], wanted) if axis == 1 else (wanted, plane.shape[3])
            plane = F.interpolate(plane, size=size, mode="bilinear", align_corners=False)
    return torch.cat((special, plane.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)), dim=1)


def fitted(weights: dict[str, Tensor], net: Any, recorded: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights for an AST: kernel and positions of its own spectrograms, without DeiT's heads, which name images.

    Args:
        weights: under the network's names, of an AST or of a distilled DeiT.
        net: the AST.
        recorded: arguments of the network that the file was trained as, as far as they are known.
    """
    kernel, table = weights.get("patch_embed.proj.weight"), weights.get("pos_embed")
    if kernel is None or kernel.ndim != 4 or table is None or table.ndim != 3:
        return weights  # strict loading says what is missing
    if of_images := kernel.shape[1] == 3 and net.patch_embed.proj.in_channels == 1:
        weights = {name: value for name, value in weights.items() if not name.startswith(("head.", "head_dist."))}
        weights["patch_embed.proj.weight"] = one_channel(kernel)
    patch = (int(kernel.shape[2]), int(kernel.shape[3]))
    new = net.patch_embed.grid_size
    old = _grid_of(table.shape[1] - SPECIALS, new, patch, recorded, images=of_images)
    return weights if old is None else {**weights, "pos_embed": positions_on(table, old, new)}


def _grid_of(count: int, own: Grid, patch: Grid, recorded: Mapping[str, Any], *, images: bool) -> Grid | None:
    """The grid of a table of so many positions; None where it cannot be told, and strict loading has to complain."""
    size = recorded.get("img_size")
    if size is not None:
        stride = recorded.get("stride") or (patch if images else (10, 10))
        grid = grid_over(pair(size), patch, pair(stride))
        if grid[0] * grid[1] == count:
            return grid
    side = isqrt(max(count, 0))
    if images:
        return (side, side) if side * side == count > 0 else None
    # Clips differ in their length, and hardly ever in their mel bins.
    return (own[0], count // own[0]) if count > 0 and count % own[0] == 0 else None
