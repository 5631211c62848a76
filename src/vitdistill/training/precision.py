"""Which precision "auto" means: decided once, from the device that the trainer will use."""

from typing import Any

import torch

from vitdistill.errors import UserError

# Precisions of Lightning that change the weights, and what to take in place of each.
OTHER_WEIGHTS = {"bf16-true": "bf16-mixed", "16-true": "16-mixed", "64-true": "32-true", "64": "32-true"}


def has_bf16(trainer_arguments: dict[str, Any] | None = None) -> bool:
    """Whether training will run on a GPU that computes bfloat16 in hardware (emulation is slow)."""
    return trains_on_gpu(trainer_arguments) and torch.cuda.is_bf16_supported(including_emulation=False)


def trains_on_gpu(trainer_arguments: dict[str, Any] | None = None) -> bool:
    """Whether training will run on a GPU."""
    accelerator = str((trainer_arguments or {}).get("accelerator", "auto"))
    return accelerator not in ("cpu", "mps") and torch.cuda.is_available()


def cpu_has_bf16() -> bool:
    """Whether this CPU computes bfloat16 in hardware (AVX-512 BF16 or AMX): matrix products at twice float32's rate."""
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)


def training_precision(name: str, trainer_arguments: dict[str, Any] | None = None) -> str:
    """Lightning's name of a precision; "auto" is bf16-mixed where `has_bf16`, else 32-true.

    Raises:
        UserError: for weights of another precision than float32, which inputs and losses have.
    """
    if name in OTHER_WEIGHTS:
        remedy = f"Use --precision {OTHER_WEIGHTS[name]}"
        raise UserError("Weights are kept in float32 while training", f"--precision {name}", remedy)
    if name != "auto":
        return name
    return "bf16-mixed" if has_bf16(trainer_arguments) else "32-true"
