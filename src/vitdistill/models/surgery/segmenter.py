"""From a ViT to a network that labels pixels: Segmenter's decoders, or UperNet's heads, on a trained body.

The body keeps its weights, its positions are interpolated as the published networks have it, and what is new starts at
random. Classifiers and pooling are left behind.
"""

from collections.abc import Sequence
from typing import Any

import timm
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.models.families.pixels import PixelViT
from vitdistill.models.families.segmenter import Decoder, SegmenterViT
from vitdistill.models.families.upernet import Necks, UperNetViT
from vitdistill.models.families.vit import ViT
from vitdistill.models.families.yolos import Yolos
from vitdistill.models.names import SEGMENTER, UPERNET
from vitdistill.models.network import Network
from vitdistill.models.record import record_of, set_statistics
from vitdistill.models.sizes import pair
from vitdistill.models.surgery.attention_heads import set_heads
from vitdistill.models.surgery.drop_path import set_drop_path
from vitdistill.models.weights.layout import size_name
from vitdistill.models.weights.positions import resample
from vitdistill.models.weights.read import head_names

# Arguments of a body that belong to what is left behind, or are given anew.
_LEFT_BEHIND = {
    *("num_classes", "img_size", "fc_norm", "final_norm", "drop_rate", "num_heads", "dist_token", "encoder"),
    *("decoder", "decoder_depth", "decoder_heads", "dropout", "channels", "necks", "taps"),
}
_WITHOUT_PLACE = ("norm.", "fc_norm.", "dist_token", "head_dist.")
_FRESH = ("relative_position_bias_table", "ls1.gamma", "ls2.gamma")  # of UperNet's blocks


def segmenter(
    body: Network,
    classes: int,
    *,
    decoder: Decoder = "mask",
    dropout: float = 0.1,
    image_size: int | Sequence[int] | None = None,
    drop_path: float = 0.0,
) -> SegmenterViT:
    """A Segmenter whose encoder is a trained ViT.

    Args:
        body: a ViT, or a Segmenter whose encoder is taken.
        classes: to tell apart.
        decoder: mask (a transformer) or linear.
        dropout: in the mask transformer.
        image_size: height and width in pixels; None keeps the body's.
        drop_path: stochastic depth rate of the encoder's last block, falling to 0 in the first.

    Raises:
        UserError: when the body is no plain ViT of timm over images.

    Example:
        >>> body = build("vit_small_patch16_384.augreg_in21k_ft_in1k", pretrained=True)
        >>> network = segmenter(body, classes=150, image_size=512, drop_path=0.1)
    """
    args: dict[str, Any] = {"decoder": decoder}
    if decoder == "mask":
        args["dropout"] = dropout
    if isinstance(body, UperNetViT):
        rule = "A Segmenter has no relative positions, which the blocks of an UperNet were trained with"
        raise UserError(rule, body.name, "Begin with the ViT that the UperNet was made of")
    heads = _heads_of(body)
    network = _over(body, SEGMENTER, classes, image_size, {**args, "num_heads": heads[0]})
    assert isinstance(network, SegmenterViT)
    set_heads(network, {block: count for block, count in enumerate(heads) if count != heads[0]})
    set_drop_path(network, drop_path)
    return network


def upernet(
    body: Network,
    classes: int,
    *,
    channels: int | None = None,
    necks: Necks = "plain",
    taps: Sequence[int] | None = None,
    image_size: int | Sequence[int] | None = None,
    drop_path: float = 0.0,
) -> UperNetViT:
    """An UperNet over a trained ViT, which gets relative positions (from zero) and LayerScale (from one).

    Blocks with heads of their own (the last of TinyMIM-B) keep them.

    Args:
        body: a ViT with a class token, a distilled DeiT, or an UperNet whose body is taken.
        classes: to tell apart.
        channels: of the main head; None is the width of the maps that it reads.
        necks: plain or wide, see `UperNet`.
        taps: four blocks whose outputs are read, from 0; see `UperNet`.
        image_size: height and width in pixels; None keeps the body's.
        drop_path: stochastic depth rate of the last block, falling to 0 in the first.

    Raises:
        UserError: when the body is no plain ViT of timm over images.

    Example:
        >>> network = upernet(build("runs/tinymim_vit_b"), classes=150, image_size=512, drop_path=0.1)
    """
    heads = _heads_of(body)
    args: dict[str, Any] = {"num_heads": heads if len(set(heads)) > 1 else heads[0], "necks": necks}
    args |= {"channels": channels} if channels is not None else {}
    args |= {"taps": list(taps)} if taps is not None else {}
    network = _over(body, UPERNET, classes, image_size, args)
    assert isinstance(network, UperNetViT)
    set_drop_path(network, drop_path)
    return network


def _encoder_of(body: Network) -> Any:
    """
    Raises:
        UserError: when a network is no plain ViT of timm over images.
    """
    if isinstance(body, PixelViT):
        return body.net.encoder
    plain = isinstance(body, ViT) and not isinstance(body.net, Yolos)  # whose detection tokens no decoder knows
    if plain and isinstance(body.net, VisionTransformer) and type(body.net.patch_embed) is PatchEmbed:
        return body.net
    raise UserError(
        "A network that labels pixels is made of a plain ViT of timm over images", body.name, "Choose a ViT"
    )


def _heads_of(body: Network) -> list[int]:
    """Attention heads of each block."""
    return [int(block.attn.num_heads) for block in _encoder_of(body).blocks]


def _over(
    body: Network, family: str, classes: int, image_size: int | Sequence[int] | None, args: dict[str, Any]
) -> Network:
    """A new network of a family, with the weights of a body in its encoder."""
    encoder, record = _encoder_of(body), record_of(body.net)
    if record.architecture is None:
        raise UserError("A network that was given as a module object can only be rebuilt in Python", body.name)
    name = body.net.encoder_name if isinstance(body, PixelViT) else record.architecture
    size = body.input.size if image_size is None else pair(image_size)
    network = build(
        f"{family}{size_name(encoder.embed_dim, ('tiny', 'small', 'base'))}",
        args={
            **{key: value for key, value in record.args.items() if key not in _LEFT_BEHIND},
            "encoder": name if timm.is_model(name.partition(".")[0]) else body.name,  # of the hub, its architecture
            "img_size": list(size),
            **args,
        },
        num_classes=classes,
    )
    assert isinstance(network, PixelViT)
    _load(network, encoder, set(head_names(body.net)))
    set_statistics(network.net, body.input.mean, body.input.std)
    return network


def _load(network: PixelViT, body: Any, heads: set[str]) -> None:
    """Put the weights of a body into an encoder.

    Args:
        network: with a fresh encoder.
        body: a ViT of timm.
        heads: names of its classifier.
    """
    encoder = network.net.encoder
    own, normed = encoder.state_dict(), not isinstance(body.norm, nn.Identity)
    weights = {name: value for name, value in body.state_dict().items() if name not in heads}
    if not normed:  # fine-tuned with mean pooling, behind which its norm lies
        weights = {name.replace("fc_norm.", "norm."): value for name, value in weights.items()}
    # What has no place: the norm where blocks are read without, and a distillation token without a position.
    weights = {name: value for name, value in weights.items() if name in own or not name.startswith(_WITHOUT_PLACE)}
    if (table := weights.get("pos_embed")) is not None:
        old, new = (tuple(net.patch_embed.grid_size) for net in (body, encoder))
        prefix = table.shape[1] - old[0] * old[1]
        weights["pos_embed"] = resample(table, old, new, prefix, **network.net.resampling)
    result = encoder.load_state_dict(weights, strict=False)
    missing = [name for name in result.missing_keys if not name.startswith("norm.") and not name.endswith(_FRESH)]
    assert not missing and not result.unexpected_keys, (missing, result.unexpected_keys)
