"""Reading weights files safely and fitting them to a network, with errors that say what does not fit."""

import argparse
import pickle
import sys
import warnings
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from timm.models import clean_state_dict
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.families.video_vit import TubeletEmbed
from vitdistill.models.weights.videomae import for_video

# Where training codes put the weights, first match wins (DeiT and MAE: "model"; DeepSpeed: "module").
_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")

# What torch's weights-only reader says about objects; its other complaints are about damage.
_SIGNS_OF_CODE = ("unsupported global", "can only create new object", "can only build", "must be imported to load")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth, .pt, .bin or .ckpt file.

    Only tensors and plain containers are ever unpickled, so a file cannot run code. Official DeiT, DeiT3 and MAE files
    (`{"model": ...}`) are unwrapped.

    Raises:
        UserError: when the file is missing, truncated, or a pickle with other objects in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("The weights file must exist", path)
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    for key in _CONTAINERS:
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {key: value for key, value in clean_state_dict(content).items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError("The weights file must hold tensors by name", path, "Save the network's state_dict()")
    return tensors


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise UserError("The weights file must be a whole safetensors file", f"{path} ({error})") from error


def _pickled(path: Path) -> dict[str, Any]:
    try:
        # MAE and DeiT checkpoints carry their command line as an argparse.Namespace: data, not code.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, beside the one line of a refusal
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(sign in str(error).lower() for sign in _SIGNS_OF_CODE):
            raise UserError(
                "A weights file may hold only tensors and plain values; this one holds code, which is not run",
                path,
                "Load it where you trust it, and save the state_dict() as safetensors",
            ) from error
        raise UserError("The weights file must be whole", f"{path} (damaged pickle)", "Copy it again") from error
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise UserError("The weights file must be whole", f"{path} ({_first_line(error)})", "Copy it again") from error
    if not isinstance(content, dict):
        raise UserError(
            "The weights file must hold a mapping from names to tensors", f"{path}: {type(content).__name__}"
        )
    return content


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__


def decoder_part(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of MAE's decoder (`decoder_*`, `mask_token`); none in an encoder-only file."""
    return {name: value for name, value in weights.items() if name.startswith("decoder_") or name == "mask_token"}


def adapt(weights: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """timm's own conversion for the architecture: foreign names, LayerScale, resampled positions and patches.

    A full MAE file gives its encoder here; `decoder_part` has the rest.

    Raises:
        UserError: when the conversion fails, since the weights are of another architecture.
    """
    if isinstance(getattr(net, "patch_embed", None), TubeletEmbed):
        return for_video(weights, net)
    decoder = decoder_part(weights)
    weights = {name: value for name, value in weights.items() if name not in decoder}
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return weights
    if "adapt_layer_scale" in signature(convert).parameters:
        convert = partial(convert, adapt_layer_scale=True)
    try:
        return dict(convert(dict(weights), net))
    except Exception as error:  # timm assumes its own weights and checks nothing
        raise UserError(
            f"The weights must fit {type(net).__name__}",
            f"weights that timm cannot convert ({_first_line(error)})",
            "Check the architecture's name, image size and arguments",
        ) from error


def head_names(net: nn.Module) -> list[str]:
    """State dict names of the classifier (both heads of a distilled DeiT)."""
    config = getattr(net, "pretrained_cfg", None) or {}
    classifier = config.get("classifier") or "head"
    prefixes = tuple([classifier] if isinstance(classifier, str) else classifier)
    return [name for name in net.state_dict() if name.rpartition(".")[0] in prefixes]


def classes_in(weights: dict[str, Tensor], net: nn.Module) -> int | None:
    """Number of classes of the classifier in a weights file; None when it has none."""
    for name in head_names(net):
        if name.endswith("weight") and name in weights:
            return int(weights[name].shape[0])
    return None


def load_into(net: nn.Module, weights: dict[str, Tensor], source: str, *, new_head: bool = False) -> None:
    """Load adapted weights strictly.

    Args:
        net: receives the weights.
        weights: from `read_weights` and `adapt`.
        source: named in errors.
        new_head: leave the classifier as initialised, whatever the file holds.

    Raises:
        UserError: naming missing, unexpected and differently shaped tensors.
    """
    own = net.state_dict()
    skipped = set(head_names(net)) if new_head else set()
    weights = {name: tensor for name, tensor in weights.items() if name not in skipped}
    missing = [name for name in own if name not in weights and name not in skipped]
    unexpected = [name for name in weights if name not in own]
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise UserError(
            f"The weights in {source} must fit {type(net).__name__}",
            "tensors " + "; ".join(problems),
            "Check the architecture's name, image size and arguments",
        )
    net.load_state_dict(weights, strict=not skipped)
