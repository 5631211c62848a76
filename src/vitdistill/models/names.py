"""Which names of models there are, told without importing torch, and without the network."""

import os
import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from vitdistill.errors import UserError, near
from vitdistill.files import WEIGHTS, absolute, is_run, runs_beside
from vitdistill.models.presets import BUNDLED, PRESETS

HUBS = ("hf-hub:", "hf_hub:", "local-dir:")  # what timm looks up elsewhere
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
VIDEO, CONVVIT, AUDIO, YOLOS = "video_vit_", "convvit_", "ast_", "yolos_"
SEGMENTER, UPERNET = "segmenter_", "upernet_vit_"
OURS = (VIDEO, CONVVIT, AUDIO, YOLOS, SEGMENTER, UPERNET)  # what the names of our own architectures begin with
AST_NAMES = tuple(f"{AUDIO}{size}" for size in ("tiny", "small", "base", "base384"))
REGISTERED = (
    *(f"{VIDEO}{size}_patch16_224" for size in ("small", "base", "large", "huge")),
    f"{CONVVIT}base_patch16_224",
    *AST_NAMES,
    *(f"{YOLOS}{size}" for size in ("tiny", "small", "small_dwr", "base")),
    *(f"{family}{size}" for family in (SEGMENTER, UPERNET) for size in ("tiny", "small", "base")),
    f"{UPERNET}tiny_star",
)
CONFIG = "config.json"  # in a folder of transformers' or timm's
# Whose attention ranks the patches: the class token's, all patches', that of a head that pools them, that of class and
# distillation token, that of detection tokens, that of a decoder's class embeddings.
SaliencyKind = Literal["cls", "patch", "pool", "cls+dist", "det", "decoder"]
# What the classifier of a linear-only student reads of its frozen body (DINO's linear evaluation).
LinearFeatures = Literal["auto", "cls", "cls4", "cls+mean"]
_PLAIN = re.compile(r"[\w-]+(\.[\w-]+)?$")


def is_saved(folder: Path) -> bool:
    """Whether a folder is one that transformers or timm saved for the hub; a run directory is none."""
    return (folder / CONFIG).is_file() and not (folder / WEIGHTS).is_file()


def check_saved(folder: Path, what: str) -> None:
    """
    Raises:
        UserError: when a folder is none that transformers saved.
    """
    if not (folder / CONFIG).is_file():
        why = f"a folder without {CONFIG}" if folder.is_dir() else "no folder"
        raise UserError(f"{what} is a folder that transformers saved", f"{folder} ({why})")


def check_model(spec: Any) -> None:
    """Refuse a misspelt name of a model in milliseconds; what the name stands for is not looked at.

    timm's own registry is asked where it is loaded already. Elsewhere a name is refused that stands nowhere in timm's
    source, where every model is registered by a function of its name.

    Args:
        spec: as `build` takes it; anything but a bare name passes.

    Raises:
        UserError: with near names.
    """
    name = spec.partition("@")[0] if isinstance(spec, str) else ""
    if not _PLAIN.match(name) or name in (*PRESETS, *BUNDLED) or Path(spec).exists():
        return
    architecture = name.partition(".")[0]
    if name.startswith(OURS):
        if architecture not in REGISTERED:
            raise unknown_model(name, list(REGISTERED))
        return
    if "timm" in sys.modules:
        if not sys.modules["timm"].is_model(architecture):
            raise unknown_model(name, sys.modules["timm"].list_models())
        return
    source = _timm_source()
    if source and not re.search(rf"\b{re.escape(architecture)}\b", source):
        raise unknown_model(name, re.findall(r"^@register_model\ndef (\w+)\(", source, re.MULTILINE))


def check_model_there(spec: Any) -> None:
    """Refuse a path that names no model, in milliseconds: a run or a file that is not there, or a file without a name.

    Args:
        spec: as `build` takes it; names of models pass.

    Raises:
        UserError: with the runs that lie beside it, or with how to name a file.
    """
    if not isinstance(spec, str) or spec in (*PRESETS, *BUNDLED) or spec.startswith(HUBS):
        return
    place = Path(os.path.expanduser(spec))
    if spec and place.is_dir():
        return
    if spec and place.is_file():
        run = next((folder for folder in (place.parent, place.parent.parent) if is_run(folder)), None)
        remedy = f"Name its architecture: NAME@{spec}" if run is None else f"Give the run directory, {run}"
        raise UserError("A weights file does not say by itself which network it is for", spec, remedy)
    name, separator, file = spec.partition("@")
    if separator and not _is_path(name):
        if not file:
            raise UserError("A file must be named behind the @", spec, f"Give {name}@weights-file")
        if not os.path.exists(os.path.expanduser(file)):
            raise UserError("The weights file must exist", file)
    elif not spec.strip():
        raise UserError("A model is a timm name, name@weights-file, or a run directory", repr(spec))
    elif _is_path(spec):
        owner_and_model = re.fullmatch(r"[\w-]+/[\w.-]+", spec) and not place.parent.is_dir()
        hub = f". If it is a model of the Hugging Face hub, give hf-hub:{spec}" if owner_and_model else ""
        rule = "A model that is a path must be an existing run directory"
        raise UserError(rule, spec, runs_beside(place) + hub)


def _is_path(text: str) -> bool:
    """Whether text is a path rather than a name."""
    return "/" in text or "\\" in text or text.startswith(("~", ".")) or Path(text).suffix.lower() in WEIGHT_SUFFIXES


ModelName = Annotated[str, check_model]


def absolute_model(spec: str) -> str:
    """What names a model, with its file or folder absolute; names of models stay as they are.

    Example:
        >>> absolute_model("vit_tiny_patch16_224@~/weights.pth")
        'vit_tiny_patch16_224@/home/me/weights.pth'
    """
    name, separator, file = spec.partition("@")
    if spec in BUNDLED or not (spec and os.path.exists(os.path.expanduser(spec))):
        return f"{name}@{absolute(file)}" if separator and file else spec
    return absolute(spec)


def unknown_model(name: str, known: list[str]) -> UserError:
    """The error for a name that no model has."""
    runs = [entry.name for entry in Path().iterdir() if is_run(entry)]
    return UserError(
        "A model is a timm name, name@weights-file, hf-hub:owner/model, or a run directory",
        repr(name),
        near(name, runs) or near(name.partition(".")[0], [*known, *PRESETS, *BUNDLED]) or "See timm.list_models()",
    )


@cache
def _timm_source() -> str:
    """The source of timm's models; empty where it is not at hand."""
    spec = find_spec("timm")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    return "\n".join(file.read_text(encoding="utf-8") for each in folders for file in Path(each, "models").glob("*.py"))
