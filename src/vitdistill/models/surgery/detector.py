"""From a ViT to a detector: detection tokens beside its patches, and two heads on them (YOLOS).

Blocks, patch embedding, final norm and class token stay as they are. Positions of patches are interpolated to the new
grid, and those of narrow networks get waves (`families/narrow.py`). Detection tokens, positions between the blocks and
heads begin at random. Of a Segmenter the encoder is taken.
"""

from typing import Any

import torch
from timm.layers import GELUTanh, QuickGELU
from timm.models.vision_transformer import Attention, Block, LayerScale
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.models.families.narrow import add_waves, is_narrow
from vitdistill.models.families.segmenter import SegmenterViT
from vitdistill.models.families.vit import ViT
from vitdistill.models.families.yolos import ARCHITECTURES, Size, Yolos, resize_patches
from vitdistill.models.families.yolos_vit import YolosViT
from vitdistill.models.names import YOLOS
from vitdistill.models.network import Network
from vitdistill.models.record import mark_new_head, record_of, set_statistics
from vitdistill.models.sizes import pair
from vitdistill.models.surgery.drop_path import set_drop_path
from vitdistill.models.weights.layout import ratio, size_name

ACTIVATIONS: dict[type[nn.Module], str | None] = {nn.GELU: None, QuickGELU: "quick_gelu", GELUTanh: "gelu_tanh"}


def detector(
    body: Network,
    classes: int,
    *,
    image_size: Size | None = None,
    det_tokens: int = 100,
    mid_positions: bool | None = None,
    new_head: bool = False,
    drop_path: float = 0.0,
) -> YolosViT:
    """The network as a detector of so many classes; a detector of these classes stays as it is.

    Of a detector of other classes, the last layer of the class head is replaced where `new_head` allows it. Of a DeiT
    with a distillation token, that token's position becomes the class token's, as the authors have it; the token
    itself, and registers, are left out.

    Args:
        body: a ViT, with a classifier or without, a Segmenter, whose encoder is taken, or a YOLOS.
        classes: of the data, without "no object".
        image_size: height and width in pixels of the table of positions, by default the body's own.
        det_tokens: how many objects can be found in an image, where the body is a ViT.
        mid_positions: whether positions are added between the blocks of what is made of a ViT; None where it is wider
            than YOLOS-Ti, as the authors have it.
        new_head: replace the class head of a detector.
        drop_path: stochastic depth rate of the last block, falling to 0 in the first.

    Raises:
        UserError: when the body is no ViT of which a detector can be made, or a detector of other classes whose head
            shall stay.

    Example:
        >>> student = detector(build("deit_tiny_distilled_patch16_224", pretrained=True), 20, image_size=(512, 800))
    """
    if isinstance(body, YolosViT):
        network = _with_classes(body, classes, new_head)
    else:
        network = _of_vit(body, classes, image_size, det_tokens, mid_positions)
    network.requires_grad_(True)
    set_drop_path(network, drop_path)
    return network


def _with_classes(body: YolosViT, classes: int, new_head: bool) -> YolosViT:
    if body.num_classes == classes and not new_head:
        return body
    if body.num_classes and not new_head:
        raise UserError(
            f"The stored detector must have the classes of the data; {body.name} has {body.num_classes} and the data "
            f"{classes}",
            remedy="Replace its class head with --new_head, or choose the data it was trained on",
        )
    body.net.reset_classifier(classes)
    mark_new_head(body.net)
    record = record_of(body.net)
    if record.architecture is not None:
        record.args, record.classes = {**record.args, "num_classes": classes}, []
    return body


def _of_vit(
    body: Network, classes: int, image_size: Size | None, det_tokens: int, mid_positions: bool | None
) -> YolosViT:
    network = _plain(body)
    net: Any = network.trunk
    size = network.input.size if image_size is None else pair(list(image_size))
    wide = network.width > ARCHITECTURES["tiny"]["embed_dim"]
    args = {
        **_arguments(network),
        "img_size": list(size),
        "det_tokens": det_tokens,
        "mid_positions": wide if mid_positions is None else mid_positions,
    }
    made = build(f"{YOLOS}{size_name(network.width, ('tiny', 'small', 'base'))}", args=args, num_classes=classes)
    assert isinstance(made, YolosViT)
    fresh = made.net
    weights = {name: value for name, value in net.state_dict().items() if name in fresh.state_dict()}
    if isinstance(net.norm, nn.Identity):  # mean pooling normalises behind it
        weights |= {name.removeprefix("fc_"): v for name, v in net.state_dict().items() if name.startswith("fc_norm.")}
    weights["pos_embed"] = _positions(network, fresh)
    missing = fresh.load_state_dict(weights, strict=False).missing_keys
    assert not [name for name in missing if name.startswith(("blocks.", "patch_embed.", "norm"))], missing
    if is_narrow(network.width):
        add_waves(fresh.pos_embed, fresh.table_grid)  # what was no detector need not have learned its places
    mean, std = network.input.mean, network.input.std
    set_statistics(fresh, mean, std)
    return made


def _plain(body: Network) -> ViT:
    """
    Raises:
        UserError: when it has anything that YOLOS has not.
    """
    why = ""
    if type(body) not in (ViT, SegmenterViT):
        why = "another kind of network"
    else:
        assert isinstance(body, ViT)
        net: Any = body.trunk
        known = all(
            type(block) is Block
            and type(block.attn) is Attention
            and isinstance(block.ls1, nn.Identity | LayerScale)
            and type(getattr(block.mlp, "act", None)) in ACTIVATIONS
            and isinstance(getattr(block.mlp, "norm", None), nn.Identity)
            and isinstance(block.attn.norm, nn.Identity)
            for block in body.blocks
        )
        why = "" if known else "blocks of another kind"
        if record_of(body.net).heads:
            why = "blocks that differ in their attention heads"
        if not isinstance(getattr(net.patch_embed, "norm", None), nn.Identity) or net.pos_embed is None:
            why = "another embedding of patches"
    if why:
        raise UserError(
            "A detector is made of a plain ViT or DeiT with positions", f"{body.name}, with {why}", "Choose a ViT, DeiT"
        )
    assert isinstance(body, ViT)
    return body


def _arguments(network: ViT) -> dict[str, Any]:
    """Of the architecture, as the network's own modules show them."""
    net: Any = network.trunk
    block: Any = network.blocks[0]
    norm = block.norm1
    act = ACTIVATIONS[type(block.mlp.act)]
    found: dict[str, Any] = {
        "patch_size": list(pair(net.patch_embed.patch_size)),
        "in_chans": network.channels,
        "embed_dim": network.width,
        "depth": network.depth,
        "num_heads": int(block.attn.num_heads),
        "mlp_ratio": ratio(block.mlp.fc1.out_features, network.width),
        "norm_eps": float(norm.eps),
    }
    found |= {} if block.attn.qkv.bias is not None else {"qkv_bias": False}
    found |= {"qk_norm": True} if not isinstance(block.attn.q_norm, nn.Identity) else {}
    found |= {"init_values": 1e-5} if isinstance(block.ls1, LayerScale) else {}
    found |= {"pre_norm": True} if not isinstance(net.norm_pre, nn.Identity) else {}
    return found | ({} if act is None else {"act_layer": act})


def _positions(network: ViT, fresh: Yolos) -> Tensor:
    """The table of positions: that of the class token, those of the patches on the new grid, and random ones."""
    net: Any = network.trunk
    table, grid = net.pos_embed.detach(), network.grid
    special, patches = table.split((table.shape[1] - grid.count, grid.count), dim=1)
    # Of class and distillation token, the latter's. DeiT3's special tokens have none, which is a position of zeros.
    of_dist = special.shape[1] == 2 and getattr(network.net, "dist_token", None) is not None
    first = special[:, 1:2] if of_dist else special[:, :1]
    first = torch.zeros_like(table[:, :1]) if special.shape[1] == 0 else first
    assert fresh.pos_embed is not None
    of_det = fresh.pos_embed.detach()[:, -fresh.det_tokens :]
    return torch.cat((first, resize_patches(patches, (grid.h, grid.w), fresh.table_grid), of_det.to(table)), dim=1)
