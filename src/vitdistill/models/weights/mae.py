"""Hugging Face's ViTMAE: an encoder as ViT has it, and its decoder under three spellings."""

from typing import Any

from torch import nn

from vitdistill.models.weights import hf_vit
from vitdistill.models.weights.layout import (
    HUGGING_FACE,
    PATCHES,
    Arguments,
    Layout,
    Weights,
    anchored,
    fuse_qkv,
    has,
    renamed,
)

# Files of the hub, files that transformers 5 saved again, and its memory; the blocks' own names are those of ViT.
_DECODER = (
    (r"^(decoder_layers|decoder_encoder\.layer)\.(\d+)\.", r"layers.\2."),
    *HUGGING_FACE,
    (r"^(blocks)\.", r"decoder_\1."),
)


def convert(weights: Weights, net: nn.Module) -> Weights:
    """The encoder under timm's names, the decoder under those of MAE's release."""
    decoder = {name.removeprefix("decoder."): v for name, v in weights.items() if name.startswith("decoder.")}
    encoder = {name: value for name, value in weights.items() if not name.startswith("decoder.")}
    return hf_vit.convert(encoder, net) | fuse_qkv(renamed(decoder, _DECODER))


def arguments(config: dict[str, Any], weights: Weights) -> Arguments:
    """timm's ViT, under the tag that says MAE's input statistics."""
    name, given = hf_vit.arguments(config, weights)
    return f"{name}.mae" if name in ("vit_base_patch16_224", "vit_large_patch16_224") else name, given


LAYOUT = Layout(
    name="MAE in Hugging Face's names",
    anchor=anchored(PATCHES),
    matches=lambda weights: has(weights, r"^decoder\.decoder_pred\.weight$"),
    convert=convert,
    model_types=("vit_mae",),
    arguments=arguments,
)
