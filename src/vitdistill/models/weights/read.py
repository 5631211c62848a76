"""Reading weights files safely and fitting them to a network, with errors that say what does not fit."""

import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.files import WEIGHTS
from vitdistill.models.families.ast import AST
from vitdistill.models.families.video_vit import TubeletEmbed
from vitdistill.models.families.yolos import Yolos
from vitdistill.models.sizes import pair
from vitdistill.models.weights import ast, spectrograms, videomae, yolos
from vitdistill.models.weights.content import read_content, weights_in
from vitdistill.models.weights.known import composite, looks_like
from vitdistill.models.weights.layouts import anchors, recognised
from vitdistill.models.weights.positions import FILE_SIZE, has_grid, on_own_grid
from vitdistill.models.weights.relative import on_own_windows
from vitdistill.models.weights.unwrap import common_prefix, tensors_of, without_prefix


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file, of a run, or of a folder of transformers' `save_pretrained`.

    Formats are told apart by content. Only tensors and plain values are ever unpickled, so a file cannot run code.
    Containers of training codes (`{"model": ...}`, `{"state_dict": ...}`, DINO's `{"teacher": ...}`) are opened.

    Raises:
        UserError: when the file is missing, truncated, or a pickle with other objects in it.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS if (path / WEIGHTS).is_file() else weights_in(path)
    if not path.is_file():
        raise UserError("The weights file must exist", path)
    return tensors_of(read_content(path), path)


# Networks whose positions lie on grids of their own kind: by what else weights are fitted than timm's conversion.
FITTED: dict[type[nn.Module], Callable[[dict[str, Tensor], Any, Mapping[str, Any]], dict[str, Tensor]]] = {
    AST: spectrograms.fitted,
    Yolos: yolos.on_own_grids,
}


def to_timm(weights: dict[str, Tensor], net: nn.Module, source: object = "the file") -> dict[str, Tensor]:
    """Weights under timm's names: prefixes taken off, foreign layouts converted, in float32 where they are halves.

    Args:
        weights: from `read_weights`.
        net: that is to be loaded.
        source: named in messages.

    Raises:
        UserError: when a ViT is but a part of what the file holds.
    """
    weights = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    if isinstance(getattr(net, "patch_embed", None), TubeletEmbed):
        return videomae.unwrapped(weights, source)
    if isinstance(net, AST):  # whose files are elsewhere those of another network
        weights = ast.own_names(weights)
    own = {name: value.shape for name, value in net.state_dict().items()}
    whole = composite(weights) if sum(name in own for name in weights) < len(own) / 2 else None
    if whole and not isinstance(net, Yolos):
        raise UserError(
            f"The weights in {source} must be those of {type(net).__name__}",
            f"a file that looks like {whole}",
            "Choose the file of the network itself",
        )
    weights = without_prefix(weights, own, anchors(), source)
    layout = recognised(weights)
    return weights if layout is None else layout.convert(weights, net)


_DECODER = re.compile(r"decoder_|mask_token$|(encoder|decoder)feature_pred\.")


def decoder_part(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of MAE's decoder (`decoder_*`, `mask_token`) under timm's names; none in an encoder-only file.

    Files of G2SD have two predictors of features beside it.
    """
    if not any(name.startswith("decoder_") for name in weights):
        return {}
    return {name: value for name, value in weights.items() if _DECODER.match(name)}


class _WithoutPositions:
    """A network as timm's conversions shall see it: they would take the grid of its positions for a square."""

    pos_embed = None

    def __init__(self, net: nn.Module) -> None:
        self._net = net

    def __getattr__(self, name: str) -> Any:
        return getattr(self._net, name)


def adapt(
    weights: dict[str, Tensor],
    net: nn.Module,
    recorded: Mapping[str, Any] | None = None,
    source: object = "the file",
) -> dict[str, Tensor]:
    """Weights as the network has them: foreign names and timm's older ones, LayerScale, positions, patches.

    A full MAE file gives its encoder here; `decoder_part` has the rest.

    Args:
        weights: from `read_weights`.
        net: that is to be loaded.
        recorded: arguments of the network that the file was trained as, if that is known.
        source: named in messages.

    Raises:
        UserError: when the conversion fails, since the weights are of another architecture.
    """
    recorded = recorded or {}
    weights = to_timm(weights, net, source)
    if isinstance(getattr(net, "patch_embed", None), TubeletEmbed):
        return videomae.for_video(weights, net, recorded or None)
    if fit := next((fit for kind, fit in FITTED.items() if isinstance(net, kind)), None):
        return fit(weights, net, recorded)
    decoder = decoder_part(weights)
    weights = {name: value for name, value in weights.items() if name not in decoder}
    trained_at = recorded.get(FILE_SIZE) or recorded.get("img_size")
    tables = {} if trained_at is None else on_own_windows(weights, net, recorded, trained_at)
    converted = _by_timm({name: value for name, value in weights.items() if name not in tables}, net, source) | tables
    if not has_grid(net):
        _check_positions(converted, net, trained_at)
        return converted
    kernel = weights.get("patch_embed.proj.weight")  # before timm resamples it, since it says the file's own grid
    return on_own_grid(converted, net, kernel, trained_at, asked=FILE_SIZE in recorded)


def _by_timm(weights: dict[str, Tensor], net: nn.Module, source: object) -> dict[str, Tensor]:
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return weights
    if "adapt_layer_scale" in signature(convert).parameters:
        convert = partial(convert, adapt_layer_scale=True)
    try:
        return dict(convert(dict(weights), _WithoutPositions(net) if has_grid(net) else net))
    except Exception as error:  # timm assumes its own weights and checks nothing
        found = looks_like(weights)
        words = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise UserError(
            f"The weights in {source} must fit {type(net).__name__}",
            f"weights that timm cannot convert ({words})" + (f"; the file looks like {found}" if found else ""),
            "Check the architecture's name, image size and arguments",
        ) from error


def _check_positions(weights: dict[str, Tensor], net: nn.Module, trained_at: Any) -> None:
    """
    Raises:
        UserError: when timm would take positions of another grid for those of a square, or for the network's own.
    """
    own: Any = next((module.img_size for module in net.modules() if getattr(module, "img_size", None)), None)
    positions = any(re.search(r"(^|\.)(\w*pos_embed\w*|patch_pos)$", name) for name in weights)
    if not positions or own is None or trained_at is None or pair(own) == pair(trained_at):
        return
    if pair(own)[0] != pair(own)[1] or pair(trained_at)[0] != pair(trained_at)[1]:
        raise UserError(
            f"Position embeddings of {type(net).__name__} can be resampled between square images only",
            " to ".join(f"{pair(size)[0]}x{pair(size)[1]}" for size in (trained_at, own)),
            "Keep the image size that the weights were trained on",
        )


def _classifiers(net: nn.Module) -> tuple[str, ...]:
    classifier = (getattr(net, "pretrained_cfg", None) or {}).get("classifier") or "head"
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def head_names(net: nn.Module) -> list[str]:
    """State dict names of the classifier (both heads of a distilled DeiT)."""
    return [name for name in net.state_dict() if name.rpartition(".")[0] in _classifiers(net)]


def without_classifier(weights: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Weights without those of the classifier, by the names that a network with one gives them."""
    return {name: value for name, value in weights.items() if name.rpartition(".")[0] not in _classifiers(net)}


def classes_in(weights: dict[str, Tensor], net: nn.Module) -> int | None:
    """Number of classes of the classifier in a weights file ("no object" is none); None when it has none."""
    heads = (weights.get(f"{name}.weight") for name in _classifiers(net))
    beside = getattr(net, "beside_classes", 0)
    return next((int(head.shape[0]) - beside for head in heads if head is not None), None)


def load_into(net: nn.Module, weights: dict[str, Tensor], source: str, *, new_head: bool = False) -> None:
    """Load adapted weights strictly.

    Args:
        net: receives the weights.
        weights: from `read_weights` and `adapt`.
        source: named in errors.
        new_head: leave the classifier as initialised, whatever the file holds.

    Raises:
        UserError: naming missing, unexpected and differently shaped tensors, and those with NaN in them.
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
    quantised = [
        f"{name} {weights[name].dtype}"
        for name in own
        if name in weights and own[name].is_floating_point() and not weights[name].is_floating_point()
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("of integers", quantised),
        )
        if names
    ]
    if problems:
        prefix = common_prefix(unexpected) if len(unexpected) > 1 else ""
        found = looks_like(weights)
        hints = [f"the unexpected names begin with {prefix!r}"] if prefix else []
        hints += [f"the file looks like {found}"] if found else []
        raise UserError(
            f"The weights in {source} must fit {type(net).__name__}",
            "; ".join(["tensors " + "; ".join(problems), *hints]),
            "Check the architecture's name, image size and arguments",
        )
    broken = [name for name, _ in net.named_parameters() if name in weights and not weights[name].isfinite().all()]
    if broken:
        raise UserError(
            f"The weights in {source} must be finite numbers",
            f"{len(broken)} of {len(own)} tensors with others ({broken[0]}{', ...' if len(broken) > 1 else ''})",
            "Take an earlier checkpoint of the training, which has diverged",
        )
    net.load_state_dict(weights, strict=not skipped)
