"""Weights that `mae --init` begins with: the file, and what must fit before anything is loaded."""

import json
from pathlib import Path
from typing import Any

from vitdistill.errors import UserError
from vitdistill.files import FULL
from vitdistill.runs.read import find_run
from vitdistill.verbs.arguments import is_fresh


def full_file(spec: str) -> Path:
    """The file with encoder and decoder that `--init` names: itself, that of a run, or a folder of transformers."""
    folder = Path(spec)
    return folder / FULL if folder.is_dir() and not _config_of(folder) else folder


def _config_of(place: Path) -> dict[str, Any]:
    """What transformers says of the network in a folder that it saved, or in a file there; empty for all others."""
    folder = place if place.is_dir() else place.parent
    if (folder / FULL).is_file() or not (folder / "config.json").is_file():
        return {}
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:  # building the network says what is wrong
        return {}
    return content if isinstance(content, dict) else {}


def check_init(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse weights that `--init` would overrule, and a decoder whose weights fit though its heads are others.

    Args:
        values: of the options of `mae`.

    Raises:
        UserError: with what to give in their place.
    """
    init, student = values["init"], values["student"]
    if init is not None:
        if isinstance(student, str) and not is_fresh(student):
            remedy = "Name the architecture alone, or leave --init out"
            raise UserError("--init replaces the weights that --student brings", student, remedy)
        run = find_run(full_file(init).parent)
        if run is not None and full_file(init).name == FULL:
            asked = values["decoder_heads"]
            check_heads(init, "decoder_heads", asked, run.config.get("decoder_heads", asked))
        asked = values["decoder_heads"]
        check_heads(init, "decoder_heads", asked, _config_of(full_file(init)).get("decoder_num_attention_heads", asked))
    return {}


def check_heads(init: str, option: str, asked: int, trained: int) -> None:
    """Refuse another number of heads than the weights were trained with: their shapes do not show it.

    Raises:
        UserError: with the number to give.
    """
    if asked != trained:
        raise UserError(f"{init} was trained with {trained} heads", f"--{option} {asked}", f"Use --{option} {trained}")
