"""What earlier versions wrote, as it would be written today. No other module knows their words."""

from collections.abc import Iterable, Mapping
from typing import Any

# Metrics of runs that were written before run.json said what they are called: score, headings.
_BEFORE = (("top1", {"top1": "top-1 %", "top5": "top-5 %"}), ("map", {"map": "frame mAP %"}))


def score_of(info: Mapping[str, Any], metrics: Iterable[str] = ()) -> str | None:
    """Which metric says how good a run's student is; None for runs without labels.

    Args:
        info: contents of run.json.
        metrics: columns of metrics.csv, for runs that were written before run.json said it.
    """
    if "score" in info:
        return info["score"]
    before = _before(info, metrics)
    return None if before is None else before[0]


def columns_of(info: Mapping[str, Any], metrics: Iterable[str] = ()) -> dict[str, str]:
    """What a run's metrics are called, by name; arguments as of `score_of`."""
    if isinstance(info.get("metrics"), Mapping):
        return dict(info["metrics"])
    before = _before(info, metrics)
    return {} if before is None else dict(before[1])


def per_sample_of(info: Mapping[str, Any], score: str | None) -> bool:
    """Whether a run's score is the share of validation samples that are right."""
    return bool(info.get("score_per_sample", score == _BEFORE[0][0]))


def _before(info: Mapping[str, Any], metrics: Iterable[str]) -> tuple[str, dict[str, str]] | None:
    known = {*(info.get("accuracy") or {}), *(name.removeprefix("val/") for name in metrics)}
    return next((named for named in _BEFORE if named[0] in known), None)


def current(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as it would be written today: runs of `detect` are those of `finetune --task actions`."""
    if not {"videos", "threshold", "val"} <= set(config):
        return config
    names = ("train", "val", "labels", "evaluated", "detections", "excluded", "threshold", "start", "frame_rate")
    actions = {name: config.get(name) for name in names}
    if actions["detections"] is None:
        actions["threshold"] = None  # which is that of detections
    rest = {name: value for name, value in config.items() if name not in (*names, "videos")}
    return {**rest, "data": config["videos"], "task": "actions", "actions": actions}
