"""From what training codes save to the network's own tensors: nested containers, and prefixes of names."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from timm.models import clean_state_dict
from torch import Tensor

from vitdistill.errors import UserError

log = logging.getLogger(__name__)

# Where training codes put the weights, first match wins: averaged ones first (timm, DINO: the teacher is the average).
CONTAINERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema", "ema"),
    *("teacher", "target_encoder"),
    *("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "params", "weights"),
    *("student", "encoder", "backbone"),
)

# Prefixes whose order says which of several equal networks is taken, as for containers; others come after them.
_PREFERRED = ("ema", "teacher", "student", "model", "module", "net", "backbone", "encoder")

# What timm's own conversion knows by its prefix.
_TIMM_KNOWS = re.compile(r"(module\.)?(visual|beit3|radio_model|vision_encoder|preprocessor)\.")

# What torch's AveragedModel and other averages count in, beside the weights.
_COUNTERS = {"n_averaged", "num_updates", "initted", "step"}

_NO_WEIGHTS = re.compile(r"optim|scheduler|scaler|callbacks|loops|loss|criterion|hyper_parameters|args|config|rng")


def tensors_of(content: Mapping[str, Any], source: object) -> dict[str, Tensor]:
    """The tensors of a file by name: containers opened, prefixes of parallel and compiled training taken off.

    Args:
        content: as a file holds it.
        source: the file, named in messages.

    Raises:
        UserError: when there are none.
    """
    while True:
        inner = {str(k): v for k, v in content.items() if isinstance(v, Mapping) and _holds_tensors(v)}
        named = [key for key in CONTAINERS if key in inner]
        others = [key for key in inner if not _NO_WEIGHTS.search(key.lower())]
        if not named and (len(others) != 1 or any(_is_array(value) for value in content.values())):
            break
        key = named[0] if named else others[0]
        if key == "teacher" and "student" in named:
            log.warning("%s holds the networks 'teacher' and 'student'; the teacher's weights are taken", source)
        content = inner[key]
    found = clean_state_dict({key: value for key, value in content.items() if isinstance(key, str)})
    arrays = {key: value for key, value in found.items() if _is_array(value) and key not in _COUNTERS}
    tensors = {key: value if isinstance(value, Tensor) else torch.from_numpy(value) for key, value in arrays.items()}
    if not tensors:
        entries = ", ".join(map(str, list(content)[:6])) or "nothing"
        raise UserError(
            "The weights file must hold tensors by name", f"{source} with {entries}", "Save the network's state_dict()"
        )
    return tensors


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "fiub")


def _holds_tensors(content: Mapping[Any, Any], depth: int = 4) -> bool:
    return any(
        isinstance(key, str) and (_is_array(v) or (depth and isinstance(v, Mapping) and _holds_tensors(v, depth - 1)))
        for key, v in content.items()
    )


def without_prefix(
    weights: dict[str, Tensor], own: Mapping[str, torch.Size], anchors: Iterable[re.Pattern[str]], source: object = ""
) -> dict[str, Tensor]:
    """The network's tensors out of those of a whole training module, under the names without the module's prefix.

    Args:
        weights: as `tensors_of` gives them.
        own: shapes by name of the network that is to be loaded.
        anchors: a name that each foreign layout has, whatever stands before it.
        source: the file, named in messages.

    Example:
        >>> sorted(without_prefix({"model.head.weight": w, "model.norm.weight": n}, own, []))
        ['head.weight', 'norm.weight']
    """
    if any(_TIMM_KNOWS.match(name) for name in weights):
        return weights
    count = max(len(own), 1)
    same, fitting = Counter[str](), Counter[str]()
    for name, value in weights.items():
        for start in (0, *(match.end() for match in re.finditer(r"\.", name))):
            shape = own.get(name[start:])
            same[name[:start]] += shape is not None
            fitting[name[:start]] += shape == value.shape
        matches = (pattern.search(name) for pattern in anchors)
        for prefix in {name[: match.start()] for match in matches if match}:
            same[prefix] += count
    enough = [prefix for prefix, votes in same.items() if 4 * votes >= count]
    if not enough:
        return weights
    best = max(same[prefix] for prefix in enough), max(fitting[prefix] for prefix in enough)
    equal = [p for p in enough if 10 * same[p] >= 9 * best[0] and 10 * fitting[p] >= 9 * best[1]]
    equal = equal or [prefix for prefix in enough if same[prefix] == best[0]]
    prefix = min(equal, key=_rank)
    repeated = len(equal) > 1 and len({re.sub(r"\d+", "", each) for each in equal}) == 1  # parts of one network
    if not prefix or repeated:
        return weights
    rest = [name for name in weights if not name.startswith(prefix)]
    if len(equal) > 1:
        others = ", ".join(repr(other) for other in equal if other != prefix)
        log.warning("%s: the weights under %r are taken; there are equal ones under %s", source, prefix, others)
    elif rest:
        log.warning("%s: %d tensors outside %r are left out (%s, ...)", source, len(rest), prefix, rest[0])
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _rank(prefix: str) -> tuple[int, int]:
    words = re.split(r"[._]", prefix.lower())
    return next((i for i, word in enumerate(_PREFERRED) if word in words), len(_PREFERRED)), len(prefix)


def common_prefix(names: Iterable[str]) -> str:
    """The dotted prefix that nine of ten names share; empty where there is none."""
    split = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    while True:
        following = Counter(parts[len(shared)] for parts in split if parts[: len(shared)] == shared != parts)
        part, count = following.most_common(1)[0] if following else ("", 0)
        if 10 * count < 9 * len(split) or not count:
            return ".".join(shared) + "." if shared else ""
        shared.append(part)
