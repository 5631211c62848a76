"""Names that need no download: small architectures for the bundled data, and networks trained on it."""

from pathlib import Path
from typing import Any

# In the first epochs the linear decoder is ahead of the mask transformer, at a lower cost (one seed).
_SCENES: dict[str, Any] = {"img_size": 48, "patch_size": 6, "num_classes": 11, "decoder": "linear"}
# Small networks for the bundled data: timm architectures with other sizes.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits_vit_small": (
        "vit_tiny_patch16_224",
        {"img_size": 12, "patch_size": 2, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 10},
    ),
    "digits_vit_base": (
        "vit_tiny_patch16_224",
        {"img_size": 12, "patch_size": 2, "embed_dim": 96, "depth": 4, "num_heads": 3, "num_classes": 10},
    ),
    "moving_digits_vit_small": (
        "video_vit_small_patch16_224",
        {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 10},
    ),
    "moving_digits_vit_base": (
        "video_vit_base_patch16_224",
        {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4, "num_classes": 10},
    ),
    **{
        f"sounds_ast_{size}": (
            "ast_tiny",
            {
                "img_size": [64, 98],  # mel bins and frames: 5x9 patches of 16x16 every 10
                "statistics": [-6.85, 3.28],  # of the bundled sounds' log-mel energies
                "embed_dim": width,
                "depth": depth,
                "num_heads": 3,
                "num_classes": 9,
            },
        )
        for size, width, depth in (("small", 48, 3), ("base", 96, 4))
    },
    "scenes_segmenter_small": ("segmenter_tiny", {**_SCENES, "embed_dim": 48, "depth": 3, "num_heads": 3}),
    "scenes_segmenter_base": ("segmenter_tiny", {**_SCENES, "embed_dim": 64, "depth": 4, "num_heads": 4}),
    "scenes_yolos_small": (
        "yolos_tiny",
        {
            **{"img_size": 48, "patch_size": 6, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 10},
            **{"det_tokens": 8, "mid_positions": True},
        },
    ),
    "scenes_yolos_base": (
        "yolos_tiny",
        {
            **{"img_size": 48, "patch_size": 6, "embed_dim": 96, "depth": 4, "num_heads": 4, "num_classes": 10},
            **{"det_tokens": 8, "mid_positions": True},
        },
    ),
}
ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUNDLED = {
    "digits-teacher": ASSETS / "digits_teacher",
    "digits-mae": ASSETS / "digits_mae",
    "moving-digits-mae": ASSETS / "moving_digits_mae",
    "moving-digits-videomae": ASSETS / "moving_digits_videomae",
}
