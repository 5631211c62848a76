"""What a plain implementation of MVD's step does in place of ours: the pieces that `mvd_step.py` measures against."""

import random

import torch
from torch import Tensor, nn

from vitdistill.models.backbone import Backbone
from vitdistill.models.decoder import Decoder
from vitdistill.tokens.masking import Masking
from vitdistill.types import TokenGrid


def python_masks(masking: Masking, count: int, grid: TokenGrid) -> Tensor:
    """Tube masks one at a time, True where hidden, as a data loader makes them."""
    patches = grid.h * grid.w
    masks = []
    for _ in range(count):
        hidden = set(random.sample(range(patches), int(masking.ratio * patches)))
        masks.append([patch in hidden for patch in range(patches)] * grid.t)
    return torch.tensor(masks)


def plain_features(backbone: Backbone, inputs: Tensor) -> Tensor:
    """A teacher's last block, patch tokens only."""
    net = backbone.net
    tokens = net.blocks(net.norm_pre(net._pos_embed(net.patch_embed(inputs))))
    return tokens[:, net.num_prefix_tokens :]


def plain_image_features(backbone: Backbone, clips: Tensor, step: int, every_frame: bool) -> Tensor:
    """The image teacher's features of the first frame of each tubelet, one frame after the other."""
    seen = clips if every_frame else clips[:, :, ::step]
    frames = seen.transpose(1, 2).flatten(0, 1)
    features = plain_features(backbone, frames).unflatten(0, (len(clips), -1))
    return (features[:, ::step] if every_frame else features).flatten(1, 2)


def plain_decode(decoder: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """Predictions at the masked tokens: [visible, masked] through the decoder."""
    assert isinstance(decoder, Decoder)
    visible = decoder.embed(tokens)
    b, _, width = visible.shape
    positions = decoder.pos_embed.expand(b, -1, -1)
    hidden = torch.cat(
        (
            visible + positions[~mask].reshape(b, -1, width),
            decoder.mask_token + positions[mask].reshape(b, -1, width),
        ),
        dim=1,
    )
    for block in decoder.blocks:
        hidden = block(hidden)
    masked = hidden.shape[1] - tokens.shape[1]
    return decoder.pred(decoder.norm(hidden)[:, -masked:])
