"""Fixed sine-cosine position embeddings, as MAE, TinyMIM and the video methods have them."""

import torch
from jaxtyping import Float
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone
from vitdistill.types import TokenGrid


def sincos_1d(width: int, positions: Float[Tensor, "n"]) -> Float[Tensor, "n {width}"]:
    """Sines in the first half of the channels, cosines in the second; wavelengths 2 pi ... 10000 * 2 pi."""
    omega = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions.double()[:, None] * omega
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def sincos_2d(width: int, grid: TokenGrid, prefix: int = 0) -> Float[Tensor, "1 m {width}"]:
    """MAE's table: half of the channels for the column, half for the row; zeros for prefix tokens.

    Args:
        width: channels, a multiple of 4.
        grid: patches; a table of one frame.
        prefix: prefix tokens, which stand first.

    Raises:
        UserError: when the width is no multiple of 4.
    """
    if width % 4:
        raise UserError("Sine-cosine positions need a width that is a multiple of 4", width)
    rows, columns = torch.meshgrid(*(torch.arange(float(size)) for size in (grid.h, grid.w)), indexing="ij")
    table = torch.cat((sincos_1d(width // 2, columns.flatten()), sincos_1d(width // 2, rows.flatten())), dim=1)
    return torch.cat((torch.zeros(prefix, width), table.float()))[None]


def fix_positions(backbone: Backbone) -> None:
    """Put the fixed table into a ViT's position embedding and keep it from training.

    Raises:
        UserError: for networks without an absolute position embedding over their patches.
    """
    embedding = getattr(backbone.net, "pos_embed", None)
    if embedding is None or embedding.shape[1] not in (backbone.grid.count, backbone.grid.count + backbone.prefix):
        raise UserError(f"{backbone.name} has no position embedding that could be fixed", remedy="Choose a ViT or DeiT")
    prefix = embedding.shape[1] - backbone.grid.count
    with torch.no_grad():
        embedding.copy_(sincos_2d(embedding.shape[2], backbone.grid, prefix))
    embedding.requires_grad_(False)
