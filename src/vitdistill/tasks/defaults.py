"""What a task is trained with where nothing else is said: values of shared options, by the task and its data.

What a task leaves out here is as the verb has it. Needs no torch: `--help` shows these values.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdistill.data.open import SCENES, SOUNDS, address_of

Values = Mapping[str, Any]  # of options, those of a group as a mapping of their own

# YOLOS on VOC: two images on each of eight GPUs, the schedule of ViDT.
BOXES: Values = {
    "epochs": 50,
    "batch_size": 2,
    "drop_path": 0.0,
    "augment": {"recipe": "none"},
    "optim": {
        "lr": 5e-5,
        "lr_batch": 16,
        "weight_decay": 1e-4,
        "layer_decay": None,
        "clip": 0.1,
        "warmup_epochs": 0,
        "min_lr": 1e-7,
    },
}
# Networks of 48 to 64 channels that learn digits from random weights.
BOXES_OF_SCENES: Values = {
    "epochs": 40,
    "batch_size": 8,
    "drop_path": 0.0,
    "augment": {"recipe": "none"},
    "optim": {"lr": 1e-3, "lr_batch": 8, "weight_decay": 1e-4, "layer_decay": None, "clip": 0.1, "warmup_epochs": 2},
}
# TinyMIM on ADE20K, whose AdamW suits networks with and without pre-training, as long as Segmenter trains.
SEGMENTS: Values = {
    "epochs": 64,
    "batch_size": 8,
    "augment": {"recipe": "photometric"},
    "optim": {"lr": 1e-4, "lr_batch": 16, "schedule": "poly", "power": 1.0, "warmup_epochs": 1, "min_lr": 0.0},
}
# Digits are grey, and no digits when they are flipped.
SEGMENTS_OF_SCENES: Values = {
    "epochs": 24,
    "batch_size": 16,
    "drop_path": 0.0,
    "augment": {"recipe": "none"},
    "optim": {"lr": 3e-3, "lr_batch": 16, "layer_decay": None, "clip": 1.0, "warmup_epochs": 2},
}
# AST on ESC-50, from ImageNet's weights: the rate is multiplied by 0.85 after each epoch from the fifth on.
SOUND: Values = {
    "epochs": 25,
    "batch_size": 48,
    "drop_path": 0.0,
    "augment": {"recipe": "sound"},
    "optim": {
        "name": "adam",
        "betas": (0.95, 0.999),
        "lr": 1e-4,
        "lr_batch": 0,
        "weight_decay": 5e-7,
        "layer_decay": None,
        "schedule": "multistep",
        "decay_epochs": tuple(range(5, 25)),
        "decay_rate": 0.85,
        "warmup_epochs": 0,
    },
}
# Without clipping, a fresh transformer of their width does not begin to learn.
BUNDLED_SOUNDS: Values = {
    "epochs": 20,
    "batch_size": 25,
    "drop_path": 0.0,
    "augment": {"recipe": "sound"},
    "optim": {"lr": 1e-3, "lr_batch": 25, "layer_decay": None, "clip": 1.0, "warmup_epochs": 2},
}


def of_classification(data: Any) -> Values:
    """The verb's own, which are for images; of sounds those of AST."""
    if isinstance(data, str) and data == SOUNDS:
        return BUNDLED_SOUNDS
    return SOUND if _are_sounds(data) else {}


def of_actions(data: Any) -> Values:
    """The verb's own, but that boxes move with a flip only."""
    return {"augment": {"recipe": "flip"}}


def of_boxes(data: Any) -> Values:
    """Those of YOLOS, and for the bundled scenes of what is trained on them."""
    return BOXES_OF_SCENES if isinstance(data, str) and data == SCENES else BOXES


def of_segmentation(data: Any) -> Values:
    """Those of ADE20K, and for the bundled scenes of what is trained on them."""
    return SEGMENTS_OF_SCENES if isinstance(data, str) and data == SCENES else SEGMENTS


def _are_sounds(data: Any) -> bool:
    """Whether what `--data` names, or an open source, holds sounds; what cannot be read does not."""
    if not isinstance(data, str | Path):
        return getattr(getattr(data, "train", None), "word", None) == "sound"
    try:
        address = address_of(data)
        if address is not None:
            return address.scheme == "esc50"
        from vitdistill.data.media import has_sounds

        return has_sounds(Path(data).expanduser())
    except (OSError, ValueError):  # said by whoever opens it
        return False
