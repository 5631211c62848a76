"""Tiny timm networks of every family that the adapters know: 32 pixels, 16 patches, 10 classes."""

from typing import Any

import timm
import torch
from torch import nn

import vitdistill.models.families  # noqa: F401 -- registers our own architectures
from vitdistill.models.families.dist_token import append_dist_token

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 10}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", SMALL),
    "deit": ("deit_tiny_patch16_224", SMALL),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", SMALL),
    "dist_token": ("vit_tiny_patch16_224", {**SMALL, "dist_token": True}),
    "deit3": ("deit3_small_patch16_224", SMALL),
    "clip": ("vit_base_patch16_clip_quickgelu_224", SMALL),
    "mae_mean_pool": ("vit_base_patch16_224", {**SMALL, "global_pool": "avg"}),
    "no_class_token": ("vit_base_patch16_224", {**SMALL, "global_pool": "avg", "class_token": False}),
    "registers": ("vit_small_patch14_reg4_dinov2", SMALL),
    "qk_norm": ("vit_tiny_patch16_224", {**SMALL, "qk_norm": True}),
    "eva02": ("eva02_large_patch14_clip_224", SMALL),
    "dinov3": ("vit_small_patch16_dinov3", {**SMALL, "global_pool": "token", "dynamic_img_size": False}),
    "rope_mixed": ("vit_small_patch16_rope_mixed_ape_224", SMALL),
    "perception": ("vit_pe_core_tiny_patch16_384", {**SMALL, "attn_pool_num_heads": 2}),
    "sapiens": (
        "vit_base_patch16_sapiens2",
        {
            **SMALL,
            "embed_dim": 32,
            "num_heads": 4,
            "num_kv_heads": 2,
            "dynamic_img_size": False,
            "global_pool": "token",
        },
    ),
    "beit": ("beit_base_patch16_224", {**SMALL, "global_pool": "token", "use_shared_rel_pos_bias": True}),
    "cait": ("cait_xxs24_224", SMALL),
    "convvit": (
        "convvit_base_patch16_224",
        {
            "img_size": 32,
            "patch_size": (2, 2, 2),
            "embed_dim": (8, 12, 24),
            "depth": (1, 1, 3),
            "num_heads": 3,
            "num_classes": 10,
        },
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 32,
            "patch_size": 4,
            "window_size": 4,
            "embed_dim": 12,
            "depths": (2, 2),
            "num_heads": (2, 3),
            "num_classes": 10,
        },
    ),
}

# Networks whose prediction is what they find, (b, 6, 15), and which are tested with classifiers where that makes no
# difference.
DETECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "yolos": ("yolos_tiny", {**SMALL, "det_tokens": 6, "mid_positions": True}),
    "yolos_without_mid": ("yolos_tiny", {**SMALL, "det_tokens": 6}),
}


def tiny(family: str, seed: int = 0, **args: Any) -> nn.Module:
    """A network whose every parameter is random, so that nothing (LayerScale, biases, positions) hides behind 0 or 1.

    Args:
        family: a key of `FAMILIES` or `DETECTORS`.
        seed: of the weights.
        args: in place of the family's arguments.
    """
    name, defaults = {**FAMILIES, **DETECTORS}[family]
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(seed)
        options = {"drop_path_rate": 0.0, **defaults, **args}
        dist_token = options.pop("dist_token", False)
        net = timm.create_model(name, **options)
        if dist_token:
            append_dist_token(net)
        for parameter in net.parameters():
            parameter.copy_(0.5 * parameter + 0.2 * torch.randn_like(parameter))
    return net.eval()
