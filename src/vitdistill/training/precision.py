"""Which precision "auto" means: decided once, from the device that the trainer will use."""

from typing import Any

import torch


def has_bf16(trainer_arguments: dict[str, Any] | None = None) -> bool:
    """Whether training will run on a GPU that computes bfloat16 in hardware (emulation is slow)."""
    if str((trainer_arguments or {}).get("accelerator", "auto")) in ("cpu", "mps"):
        return False
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def training_precision(name: str, trainer_arguments: dict[str, Any] | None = None) -> str:
    """Lightning's name of a precision; "auto" is bf16-mixed where `has_bf16`, else 32-true."""
    if name != "auto":
        return name
    return "bf16-mixed" if has_bf16(trainer_arguments) else "32-true"
