"""What sets runs apart, and which of them differ by seed only."""

import json
import re
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from vitdistill.runs.read import Run, flatten

# Arguments that say where a run is written, not what it does.
BOOKKEEPING = frozenset({"out", "resume", "overwrite", "config", "json"})
MISSING = object()
_SEED_SUFFIX = re.compile(r"(?P<stem>.+?)[-_./ ]*(seed|s)?[-_ ]*\d+")


class Setting(NamedTuple):
    """One flattened setting and its value in each run; `MISSING` where a run does not have it."""

    key: str
    values: list[Any]


class Spread(NamedTuple):
    """A figure over the seeds of one setting: mean and sample standard deviation of `n` runs."""

    mean: float
    std: float
    n: int


class Group(NamedTuple):
    """Runs that differ by seed only, by their position in the list of runs."""

    name: str
    members: list[int]


def differing_settings(runs: Sequence[Run]) -> list[Setting]:
    """Settings whose values are not the same in all runs, in the order in which they first appear.

    Where a run was written to is not a setting.
    """
    flat = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings if key not in BOOKKEEPING)
    rows = [Setting(key, [settings.get(key, MISSING) for settings in flat]) for key in keys]
    return [row for row in rows if any(value != row.values[0] for value in row.values[1:])]


def group_by_seed(runs: Sequence[Run]) -> list[Group]:
    """Runs of the same verb and settings but for the seed; a run without a configuration stands alone."""
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        settings = {k: v for k, v in flatten(run.config).items() if k not in BOOKKEEPING | {"seed"}}
        identity = [run.get("verb"), settings] if settings else f"run {index}"
        key = json.dumps(identity, sort_keys=True, default=str)
        groups.setdefault(key, []).append(index)
    return [Group(_group_name([runs[i].name for i in members]), members) for members in groups.values()]


def _group_name(names: list[str]) -> str:
    """What the names of a group begin with, without the mark of the seed; else the first name."""
    matches = [_SEED_SUFFIX.fullmatch(name) for name in names]
    stems = {match["stem"] for match in matches if match}
    return stems.pop() if len(names) > 1 and all(matches) and len(stems) == 1 else names[0]


def spread(values: Sequence[float | None]) -> Spread | None:
    """Mean and sample standard deviation of the known values; None when fewer than two are known."""
    known = [value for value in values if value is not None]
    return Spread(mean(known), stdev(known), len(known)) if len(known) > 1 else None
