"""Weights of MAEs with their decoder, which `mae --init` begins with and `g2sd` takes as a teacher: the file, and what
must fit before anything is loaded."""

import json
import os
from pathlib import Path
from typing import Any

from vitdistill.errors import UserError
from vitdistill.files import FULL
from vitdistill.models.presets import BUNDLED
from vitdistill.runs.read import find_run
from vitdistill.verbs.arguments import is_fresh


def full_file(spec: str) -> Path:
    """The file with encoder and decoder that `--init` names: itself, that of a run, or a folder of transformers."""
    folder = Path(spec)
    return folder / FULL if folder.is_dir() and not _config_of(folder) else folder


def decoder_source(spec: str) -> str:
    """The file or folder with the decoder of a model: of name@file the file, of a run its file with both."""
    if spec.startswith("hf-hub:"):
        from vitdistill.models.weights.folder import cached_folder

        return str(cached_folder(spec) or spec)
    place = spec.partition("@")[2] or str(BUNDLED.get(spec, spec))
    return str(full_file(place))


def check_with_decoder(spec: str) -> None:
    """Refuse a model that can have no decoder: a name whose weights are an encoder's, or another run than one of `mae`.

    Raises:
        UserError: with what to give in its place.
    """
    remedy = (
        "Give name@file with MAE's full file (mae_pretrain_*_full.pth), a run of `mae` with its mae.safetensors, or a "
        "folder of transformers' ViTMAEForPreTraining"
    )
    if spec.startswith("hf-hub:") or os.path.exists(decoder_source(spec)):
        return
    where = Path(spec.partition("@")[2] or BUNDLED.get(spec, spec))
    found = f"{spec} without {FULL}" if where.is_dir() else f"{spec}, which is an encoder alone"
    raise UserError("The teacher must come with its decoder", found, remedy)


def decoder_heads_of(spec: str) -> int | None:
    """Attention heads of the decoder, where the run or the configuration beside the weights says them."""
    source = Path(decoder_source(spec))
    run = find_run(source.parent) if source.name == FULL else None
    if run is not None:
        return run.config.get("decoder_heads")
    return _config_of(source).get("decoder_num_attention_heads")


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
