"""The image encoder of CLIP in Hugging Face's names; what belongs to its text encoder is left out."""

from typing import Any

import torch
from torch import nn

from vitdistill.models.weights.layout import (
    Arguments,
    Layout,
    Weights,
    anchored,
    check_epsilon,
    fuse_qkv,
    has,
    renamed,
    size_name,
    vit_arguments,
    without,
)

_RENAMES = (
    (r"^vision_model\.", ""),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.q_proj\.", ".attn.query."),
    (r"\.self_attn\.k_proj\.", ".attn.key."),
    (r"\.self_attn\.v_proj\.", ".attn.value."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"^pre_layrnorm\.", "norm_pre."),  # so spelt in every file
    (r"^post_layernorm\.", "norm."),
    (r"^(visual_projection|classifier)\.", "head."),
)


def convert(weights: Weights, net: nn.Module) -> Weights:
    """Weights under timm's names. The projection into the common space is the head, which has no bias: zeros.

    A classifier (CLIPForImageClassification) reads the mean of patches before the last norm, which is left out then.
    """
    tuned = has(weights, r"^classifier\.")
    ours = without(weights, r"text_model\.|text_projection|logit_scale|(vision_model\.)?embeddings\.position_ids")
    ours = fuse_qkv(renamed(ours, _RENAMES))
    for name in {"cls_token", "pos_embed"} & set(ours):
        ours[name] = ours[name].reshape(1, -1, ours[name].shape[-1])
    if "head.weight" in ours and "head.bias" not in ours:
        ours["head.bias"] = torch.zeros(len(ours["head.weight"]), dtype=ours["head.weight"].dtype)
    return without(ours, r"norm\.") if tuned else ours


def arguments(config: dict[str, Any], weights: Weights) -> Arguments:
    """timm's image encoder of CLIP, with QuickGELU where the config says so."""
    vision = config.get("vision_config") or config
    given = vit_arguments({"hidden_act": "quick_gelu", **vision}, patch=32)
    check_epsilon(vision, 1e-5, 1e-5)
    quick = given.get("act_layer") == "quick_gelu"
    if quick:
        given.pop("act_layer")
    if has(weights, r"^classifier\."):
        given |= {"global_pool": "avg", "final_norm": False}
    size = size_name(given["embed_dim"], ("base",))
    return f"vit_{size}_patch16_clip_{'quickgelu_' if quick else ''}224", given


LAYOUT = Layout(
    name="CLIP in Hugging Face's names",
    anchor=anchored(r"(?:vision_model\.)?embeddings\.patch_embedding\.weight"),
    matches=lambda weights: has(weights, r"^(vision_model\.)?pre_layrnorm\.weight$"),
    convert=convert,
    model_types=("clip", "clip_vision_model"),
    arguments=arguments,
)
