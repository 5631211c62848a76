"""Fixed sine-cosine position embeddings, as MAE, TinyMIM and the video methods have them."""

import torch
from jaxtyping import Float
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.types import TokenGrid


def sincos_1d(width: int, positions: Float[Tensor, "n"], spread: float = 10000.0) -> Float[Tensor, "n {width}"]:
    """Sines in the first half of the channels, cosines in the second; wavelengths 2 pi ... 2 pi times the spread."""
    omega = spread ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions.double()[:, None] * omega
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def sincos_2d(
    width: int, grid: TokenGrid, prefix: int = 0, *, step: float = 1.0, spread: float = 10000.0
) -> Float[Tensor, "1 m {width}"]:
    """MAE's table: half of the channels for the column, half for the row; zeros for prefix tokens.

    Args:
        width: channels, a multiple of 4.
        grid: patches; a table of one frame.
        prefix: prefix tokens, which stand first.
        step: from one patch to the next; MAE has 1, so that the shortest wave is 2 pi patches long.
        spread: by how much the longest wave is longer than the shortest.

    Raises:
        UserError: when the width is no multiple of 4.
    """
    if width % 4:
        raise UserError("Sine-cosine positions need a width that is a multiple of 4", width)
    places = (step * torch.arange(float(size)) for size in (grid.h, grid.w))
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*places, indexing="ij"))
    table = torch.cat([sincos_1d(width // 2, axis, spread) for axis in (columns, rows)], dim=1)
    return torch.cat((torch.zeros(prefix, width), table.float()))[None]


def sincos_3d(width: int, grid: TokenGrid) -> Float[Tensor, "1 n {width}"]:
    """MVD's table: a quarter of the channels for time, then three quarters for space, columns before rows.

    Raises:
        UserError: when the width is no multiple of 16.
    """
    if width % 16:
        raise UserError("Sine-cosine positions over space and time need a width that is a multiple of 16", width)
    time = sincos_1d(width // 4, torch.arange(float(grid.t)))
    space = sincos_2d(width // 4 * 3, TokenGrid(1, grid.h, grid.w))[0]
    steps, patches = grid.t, grid.h * grid.w
    time = time[:, None].expand(-1, patches, -1).float()
    return torch.cat((time, space[None].expand(steps, -1, -1)), dim=2).reshape(1, grid.count, width)


def sinusoid_1d(width: int, grid: TokenGrid) -> Float[Tensor, "1 n {width}"]:
    """VideoMAE's table: sines in the even channels, cosines in the odd ones, over all tokens in one row."""
    channel = torch.arange(width, dtype=torch.float64)
    angles = torch.arange(grid.count, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / width)
    return torch.where(channel % 2 == 0, angles.sin(), angles.cos()).float()[None]


TABLES = {"sincos_2d": sincos_2d, "sincos_3d": sincos_3d, "sinusoid_1d": sinusoid_1d}
