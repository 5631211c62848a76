"""DINOv2 in Hugging Face's names, with and without registers, and in blocks of blocks as its authors train it."""

import logging
import re
from typing import Any

import torch
from torch import nn

from vitdistill.models.weights import hf_vit
from vitdistill.models.weights.layout import (
    PATCHES,
    Arguments,
    Layout,
    Weights,
    anchored,
    check_epsilon,
    has,
    ratio,
    renamed,
    size_name,
    vit_arguments,
    without,
)

log = logging.getLogger(__name__)


def convert(weights: Weights, net: nn.Module) -> Weights:
    """Weights under timm's names.

    Registers have no positions, and timm's network adds none to its class token either: that token's position goes
    into the token. transformers 5 keeps the two halves of SwiGLU's first map apart in memory.
    """
    ours = hf_vit.convert(weights, net)
    for name in [name for name in ours if name.endswith(("mlp.gate_proj.weight", "mlp.gate_proj.bias"))]:
        up = name.replace("gate_proj", "up_proj")
        if up in ours:
            ours[name.replace("gate_proj", "fc1")] = torch.cat((ours.pop(name), ours.pop(up)))
    ours = renamed(ours, ((r"\.mlp\.weights_in\.", ".mlp.fc1."), (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.fc2.")))
    if "reg_token" in ours and {"cls_token", "pos_embed"} <= set(ours):
        ours["cls_token"] = ours["cls_token"] + ours["pos_embed"][:, :1]
        ours["pos_embed"] = ours["pos_embed"][:, 1:]
    width = ours["cls_token"].shape[-1] if "cls_token" in ours else 0
    if "head.weight" in ours and ours["head.weight"].shape[1] == 2 * width:
        log.warning("The classifier reads class token and mean of patches, which no network of timm does: left out")
        ours = without(ours, r"head\.")
    return ours


def arguments(config: dict[str, Any], weights: Weights) -> Arguments:
    """timm's DINOv2 of the same kind."""
    check_epsilon(config, 1e-6, 1e-6)
    given = vit_arguments(config, patch=14) | {"init_values": 1e-5}
    width = given["embed_dim"]
    registers = config.get("num_register_tokens", 4) if has(weights, r"embeddings\.register_tokens$") else 0
    swiglu = bool(config.get("use_swiglu_ffn", False))
    if swiglu:
        hidden = (int(int(width * config.get("mlp_ratio", 4)) * 2 / 3) + 7) // 8 * 8
        given["mlp_ratio"] = ratio(2 * hidden, width)
        given.pop("act_layer", None)
    if registers:
        given["reg_tokens"] = registers
    size = "giant" if swiglu else size_name(width, ("small", "base", "large"))
    return f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2", given


LAYOUT = Layout(
    name="DINOv2 in Hugging Face's names",
    anchor=anchored(PATCHES),
    matches=lambda weights: has(weights, r"encoder\.layer\.\d+\.layer_scale1\.lambda1$"),
    convert=convert,
    model_types=("dinov2", "dinov2_with_registers"),
    arguments=arguments,
)

_CHUNKED = r"blocks\.\d+\.\d+\.norm1\.weight"


def unchunked(weights: Weights, net: nn.Module) -> Weights:
    """DINOv2's own training keeps blocks in chunks, `blocks.1.7.`, whose second number counts through all of them."""
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): value for name, value in weights.items()}


CHUNKED = Layout(
    name="DINOv2 as its authors train it",
    anchor=anchored(_CHUNKED),
    matches=lambda weights: has(weights, rf"^{_CHUNKED}$"),
    convert=unchunked,
)
