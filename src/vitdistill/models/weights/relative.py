"""Tables of relative positions of another window: resized from the window on which they were trained.

timm goes by their length, and takes a table for one of a square window, or for one of the network's own, where that is
equally long: a window of 1x5 patches has as many offsets as one of 2x2.
"""

import math
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import resize_rel_pos_bias_table
from torch import Tensor, nn

from vitdistill.models.record import record_of
from vitdistill.models.sizes import pair
from vitdistill.models.weights.positions import Size

TABLE = ".relative_position_bias_table"


def on_own_windows(
    weights: dict[str, Tensor], net: nn.Module, recorded: Mapping[str, Any], size: Any
) -> dict[str, Tensor]:
    """Those tables of weights that belong to a network of known windows, each as long as the network's own.

    Args:
        weights: under the network's names.
        net: that is to be loaded (Swin, BEiT, MaxViT, ViTs with relative positions).
        recorded: arguments of the network that the file was trained as.
        size: of the images that it was trained on, in pixels.
    """
    named = {name: value for name, value in weights.items() if name.endswith(TABLE) and value.ndim == 2}
    new = _windows(net)
    if not named or not new:
        return {}
    own = record_of(net)
    args = {**own.args, "img_size": pair(size)}
    args |= {key: recorded[key] for key in ("window_size", "patch_size") if recorded.get(key) is not None}
    if own.architecture is None:
        return {}
    with torch.device("meta"):
        old = _windows(timm.create_model(own.architecture, **args))
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    result = {}
    for name, table in named.items():
        before, after = old.get(name), new.get(name)
        if before is None or after is None or name not in shapes:
            continue
        extra = shapes[name][0] - _offsets(after)
        if len(table) != _offsets(before) + extra:
            continue  # of yet another size, which is timm's to guess
        same = before == after
        result[name] = table if same else resize_rel_pos_bias_table(table, after, tuple(shapes[name]), before)
    return result


def _windows(net: nn.Module) -> dict[str, Size]:
    """The window over which each table of a network reaches, by the table's name."""
    found = {}
    for name, module in net.named_modules():
        window = getattr(module, "window_size", None)
        if isinstance(getattr(module, "relative_position_bias_table", None), Tensor) and window is not None:
            found[f"{name}{TABLE}"] = pair(window)
    return found


def _offsets(window: Size) -> int:
    """How many differences of two positions in a window there are."""
    return math.prod(2 * side - 1 for side in window)
