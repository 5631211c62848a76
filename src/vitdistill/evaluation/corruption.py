"""The mean corruption error, out of the errors at each severity of each corruption (Hendrycks and Dietterich, 2019).

Needs no torch.
"""

from collections.abc import Mapping
from typing import Any

from vitdistill.data.robustness.published import (
    ALEXNET,
    ALEXNET_CLEAN,
    CORRUPTIONS,
    DENOMINATORS,
    SEVERITIES,
)

Errors = Mapping[str, Mapping[int, float]]


def corruption_errors(errors: Errors, clean: float | None = None) -> dict[str, Any]:
    """ImageNet-C's numbers.

    Args:
        errors: top-1 error in percent by corruption and severity; extra corruptions are listed and never averaged.
        clean: error in percent on ImageNet's validation images, for the relative mean.

    Returns:
        `corruptions`: for each its mean error over its severities (`error`) and, of the fifteen with all five
        severities, that divided by AlexNet's (`ce`, in percent). `mean_error` over those of the fifteen that are
        there, not divided by anything; `mce`, the mean of `ce`, and `relative_mce`, None unless all is there (and a
        clean error for the latter).

    Example:
        >>> from vitdistill.data.robustness.published import ALEXNET
        >>> of_alexnet = {name: dict(enumerate(errors, 1)) for name, errors in ALEXNET.items()}
        >>> found = corruption_errors(of_alexnet, clean=43.5)
        >>> round(found["mce"]), round(found["relative_mce"]), round(found["mean_error"], 2)
        (100, 100, 78.9)
    """
    known: dict[str, dict[str, float | None]] = {}
    for name, found in errors.items():
        error = _mean(list(found.values()))
        whole = name in DENOMINATORS and set(found) == set(SEVERITIES)
        known[name] = {"error": error, "ce": 100 * error / DENOMINATORS[name] if whole else None}
    ours = [name for name in CORRUPTIONS if name in known]
    means = [known[name]["error"] for name in ours]
    ce = [value for name in ours if (value := known[name]["ce"]) is not None]
    mce = _mean(ce) if len(ce) == len(CORRUPTIONS) else None
    relative = None
    if mce is not None and clean is not None:
        relative = 100 * _mean([_degradation(errors[name], clean) / _alexnets(name) for name in CORRUPTIONS])
    return {
        "corruptions": known,
        "mean_error": _mean([value for value in means if value is not None]) if means else None,
        "mce": mce,
        "relative_mce": relative,
    }


def absent(errors: Errors) -> list[str]:
    """What of the fifteen corruptions and five severities is not there, in words."""
    lacking = [name for name in CORRUPTIONS if name not in errors]
    words = [f"without {', '.join(lacking)}"] if lacking else []
    for name, found in errors.items():
        if missing := [str(severity) for severity in SEVERITIES if severity not in found]:
            words.append(f"{name} without severity {', '.join(missing)}")
    return words


def per_severity(errors: Errors) -> tuple[dict[int, float], dict[int, float]]:
    """Error at each severity, averaged over those of the fifteen corruptions that have it; and AlexNet's of them."""
    own: dict[int, float] = {}
    alexnet: dict[int, float] = {}
    for severity in SEVERITIES:
        names = [name for name in CORRUPTIONS if severity in errors.get(name, {})]
        if names:
            own[severity] = _mean([errors[name][severity] for name in names])
            alexnet[severity] = _mean([ALEXNET[name][severity - 1] for name in names])
    return own, alexnet


def _degradation(found: Mapping[int, float], clean: float) -> float:
    return sum(error - clean for error in found.values())


def _alexnets(name: str) -> float:
    return sum(error - ALEXNET_CLEAN for error in ALEXNET[name])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
