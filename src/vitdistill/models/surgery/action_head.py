"""What people do, from their boxes: a video ViT's own classifier, on features pooled by RoIAlign.

After Feichtenhofer et al., "SlowFast Networks for Video Recognition" (2019), Section 5, as VideoMAE and MVD use it: the
tokens after the final norm are averaged over time, RoIAlign cuts 7 x 7 features out of each box, their maximum over
space goes to a linear classifier with a sigmoid per class. The network keeps its architecture, so weights load as ever.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import roi_align

from vitdistill.errors import UserError
from vitdistill.models.build import rebuild
from vitdistill.models.families.video_vit import VideoViT, check_video
from vitdistill.models.network import Network
from vitdistill.models.record import record_of
from vitdistill.models.surgery.drop_path import set_drop_path
from vitdistill.models.weights.read import head_names

ALIGNED = 7  # features along each side of a box


def detector(
    body: Network, classes: int, *, head_init: float = 0.001, dropout: float = 0.0, drop_path: float = 0.0
) -> VideoViT:
    """The network with a fresh classifier of boxes, everything else as it is in `body`.

    A network that was fine-tuned for recognition normalises after pooling; here this norm takes each token.

    Args:
        body: a video ViT, pre-trained or fine-tuned for recognition.
        classes: of the data.
        head_init: factor on the initial weights of the classifier.
        dropout: probability of leaving out a channel in front of the classifier.
        drop_path: stochastic depth rate of the last block, falling to 0 in the first.

    Raises:
        UserError: when it sees images, or a rate is out of range.
    """
    video = check_video(body, "network that detects actions")
    if not 0 <= dropout < 1:
        raise UserError("dropout must lie in [0, 1)", dropout)
    network = rebuild(record_of(video.net), num_classes=classes, global_pool="avg", fc_norm=False, drop_rate=dropout)
    old_heads, heads = head_names(video.net), head_names(network.net)
    weights = {name: value for name, value in video.net.state_dict().items() if name not in old_heads}
    if isinstance(video.net.norm, nn.Identity):
        weights = {name.replace("fc_norm.", "norm."): value for name, value in weights.items()}
    result = network.net.load_state_dict(weights, strict=False)
    missing = [name for name in result.missing_keys if name not in heads]
    assert not missing and not result.unexpected_keys, (missing, result.unexpected_keys)
    with torch.no_grad():
        for parameter in network.net.head.parameters():
            parameter.mul_(head_init)
    network.requires_grad_(True)
    network.net.pos_embed.requires_grad_(False)
    set_drop_path(network, drop_path)
    assert isinstance(network, VideoViT)
    return network


def box_logits(
    backbone: VideoViT, patches: Float[Tensor, "b n d"], boxes: Float[Tensor, "b boxes 4"]
) -> Float[Tensor, "b boxes c"]:
    """Class scores of every box, before the sigmoid.

    Args:
        backbone: a network that `detector` made.
        patches: that it gave for clips, after the final norm.
        boxes: x1, y1, x2, y2 as shares of width and height, the same in all frames; finite.
    """
    grid = backbone.grid
    features = patches.transpose(1, 2).unflatten(2, (grid.t, grid.h, grid.w)).mean(dim=2)
    pooled = pool_boxes(features, boxes).to(patches.dtype)
    return backbone.net.head(backbone.net.head_drop(pooled))


def pool_boxes(
    features: Float[Tensor, "b d h w"], boxes: Float[Tensor, "b boxes 4"], size: int = ALIGNED
) -> Float[Tensor, "b boxes d"]:
    """The maximum over a box of its features, which RoIAlign interpolates at size x size places.

    Args:
        features: of the patches.
        boxes: x1, y1, x2, y2 as shares of width and height; what lies beyond the frame is cut off.
        size: places along each side of a box.
    """
    b, count, _ = boxes.shape
    height, width = features.shape[-2:]
    x1, y1, x2, y2 = boxes.float().clamp(0, 1).flatten(0, 1).unbind(dim=1)
    number = torch.arange(b, device=boxes.device, dtype=torch.float32).repeat_interleave(count)
    corners = torch.stack((number, x1 * width, y1 * height, x2 * width, y2 * height), dim=1)
    cut = roi_align(features.float(), corners, size, aligned=True)
    return cut.amax(dim=(-2, -1)).unflatten(0, (b, count))
