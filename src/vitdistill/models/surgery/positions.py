"""Fixed position embeddings put into a built network."""

import torch

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone
from vitdistill.tokens.positions import sincos_2d


def fix_positions(backbone: Backbone) -> None:
    """Put the fixed table into a ViT's position embedding and keep it from training.

    Raises:
        UserError: for networks without an absolute position embedding over their patches.
    """
    embedding = getattr(backbone.net, "pos_embed", None)
    if embedding is None or embedding.shape[1] not in (backbone.grid.count, backbone.grid.count + backbone.specials):
        raise UserError(f"{backbone.name} has no position embedding that could be fixed", remedy="Choose a ViT or DeiT")
    prefix = embedding.shape[1] - backbone.grid.count
    with torch.no_grad():
        embedding.copy_(sincos_2d(embedding.shape[2], backbone.grid, prefix))
    embedding.requires_grad_(False)
