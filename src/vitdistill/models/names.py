"""Which names of models there are, told without importing torch, and without the network."""

import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from vitdistill.errors import UserError, near
from vitdistill.files import WEIGHTS
from vitdistill.models.presets import BUNDLED, PRESETS

VIDEO = "video_vit_"  # what the names of our own architectures begin with
CONFIG = "config.json"  # in a folder of transformers' or timm's
_PLAIN = re.compile(r"[\w-]+(\.[\w-]+)?$")


def is_saved(folder: Path) -> bool:
    """Whether a folder is one that transformers or timm saved for the hub; a run directory is none."""
    return (folder / CONFIG).is_file() and not (folder / WEIGHTS).is_file()


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
    if not _PLAIN.match(name) or name in (*PRESETS, *BUNDLED) or name.startswith(VIDEO) or Path(spec).exists():
        return
    architecture = name.partition(".")[0]
    if "timm" in sys.modules:
        if not sys.modules["timm"].is_model(architecture):
            raise unknown_model(name, sys.modules["timm"].list_models())
        return
    source = _timm_source()
    if source and not re.search(rf"\b{re.escape(architecture)}\b", source):
        raise unknown_model(name, re.findall(r"^@register_model\ndef (\w+)\(", source, re.MULTILINE))


ModelName = Annotated[str, check_model]


def unknown_model(name: str, known: list[str]) -> UserError:
    """The error for a name that no model has."""
    return UserError(
        "A model is a timm name, name@weights-file, hf-hub:owner/model, or a run directory",
        repr(name),
        near(name.partition(".")[0], [*known, *PRESETS, *BUNDLED]) or "See timm.list_models()",
    )


@cache
def _timm_source() -> str:
    """The source of timm's models; empty where it is not at hand."""
    spec = find_spec("timm")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    return "\n".join(file.read_text(encoding="utf-8") for each in folders for file in Path(each, "models").glob("*.py"))
