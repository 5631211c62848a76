"""DINOv3's ViTs in Hugging Face's names; timm's counterparts are the `*_dinov3_qkvb` architectures."""

import re
from typing import Any

import torch
from torch import nn

from vitdistill.errors import UserError
from vitdistill.models.weights.layout import (
    Arguments,
    Layout,
    Weights,
    anchored,
    check_epsilon,
    has,
    renamed,
    size_name,
    vit_arguments,
    without,
)

_RENAMES = (
    (r"^embeddings\.(cls_token)$", r"\1"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^(model\.)?layer\.(\d+)\.", r"blocks.\2."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)


def convert(weights: Weights, net: nn.Module) -> Weights:
    """Weights under timm's names; biases of q and v that are zero are left out for a network without them."""
    ours = renamed(without(weights, r"embeddings\.mask_token$"), _RENAMES)
    gated = has(ours, r"\.mlp\.gate_proj\.")
    ours = renamed(ours, ((r"\.gate_proj\.", ".fc1_g."), (r"\.up_proj\.", ".fc1_x." if gated else ".fc1.")))
    biased = any(name.endswith("attn.q_bias") for name in net.state_dict())
    for name in [name for name in ours if name.endswith(".attention.q_proj.weight")]:
        stem = name.removesuffix("attention.q_proj.weight")
        parts = [ours.pop(f"{stem}attention.{role}_proj.weight") for role in "qkv"]
        ours[f"{stem}attn.qkv.weight"] = torch.cat(parts)
        for role in "qkv":
            bias = ours.pop(f"{stem}attention.{role}_proj.bias", None)
            if role != "k" and biased:
                ours[f"{stem}attn.{role}_bias"] = parts[0].new_zeros(len(parts[0])) if bias is None else bias
            elif bias is not None and bias.any():  # strict loading will name it
                ours[f"{stem}attn.{role}_bias"] = bias
    return ours


def arguments(config: dict[str, Any], weights: Weights) -> Arguments:
    """timm's DINOv3 with the biases of queries and values."""
    check_epsilon(config, 1e-5, 1e-5)
    defaults = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    given = vit_arguments({**defaults, **config})
    given["num_reg_tokens"] = config.get("num_register_tokens", 0)
    given["rope_temperature"] = config.get("rope_theta", 100.0)
    plus = bool(config.get("use_gated_mlp", False))
    size = size_name(given["embed_dim"], ("small",) if plus else ("small", "base", "large"))
    if plus and given.pop("act_layer", "gelu") != "silu":
        raise UserError("A gated MLP of DINOv3 must have the activation silu", config.get("hidden_act", "gelu"))
    return f"vit_{size}{'_plus' if plus else ''}_patch16_dinov3_qkvb", given


LAYOUT = Layout(
    name="DINOv3 in Hugging Face's names",
    anchor=anchored(r"embeddings\.patch_embeddings\.weight"),
    matches=lambda weights: (
        "embeddings.patch_embeddings.weight" in weights
        and any(re.search(r"(^|\.)layer\.\d+\.layer_scale1\.lambda1$", name) for name in weights)
    ),
    convert=convert,
    model_types=("dinov3_vit",),
    arguments=arguments,
)
