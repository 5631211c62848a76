"""Hugging Face's ViT and DeiT, with and without a distillation token, on disk and in memory."""

from typing import Any

from torch import nn

from vitdistill.models.weights.layout import (
    HUGGING_FACE,
    PATCHES,
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


def convert(weights: Weights, net: nn.Module) -> Weights:
    """Weights under timm's names, without the pooler and what masked modelling adds.

    A DeiT that was fine-tuned by its class token alone has one classifier. timm has it as a ViT with one register
    token that has a position, which is where its distillation token goes.
    """
    ours = fuse_qkv(renamed(weights, HUGGING_FACE))
    ours = without(ours, r"pooler\.|decoder\.|embeddings\.mask_token$")
    if "dist_token" in ours and not hasattr(net, "dist_token") and getattr(net, "reg_token", None) is not None:
        ours["reg_token"] = ours.pop("dist_token")
    return ours


def arguments(config: dict[str, Any], weights: Weights) -> Arguments:
    """timm's ViT or DeiT."""
    check_epsilon(config, 1e-6, 1e-12)
    given = vit_arguments(config)
    distilled = has(weights, r"embeddings\.distillation_token$")
    if distilled and not (has(weights, r"(^|\.)classifier\.weight$")):
        size = size_name(given["embed_dim"], ("tiny", "small", "base"))
        return f"deit_{size}_distilled_patch16_224", given
    if distilled:
        return f"deit_{size_name(given['embed_dim'], ('tiny', 'small', 'base'))}_patch16_224", given | {"reg_tokens": 1}
    size = size_name(given["embed_dim"], ("tiny", "small", "base", "large"))
    return f"vit_{size}_patch16_224", given


LAYOUT = Layout(
    name="a ViT or DeiT in Hugging Face's names",
    anchor=anchored(PATCHES),
    matches=lambda weights: has(weights, r"^(vit\.|deit\.)?embeddings\.patch_embeddings\.projection\.weight$"),
    convert=convert,
    model_types=("vit", "deit"),
    arguments=arguments,
)
