"""A folder of transformers for a network that timm does not have (YOLOS, AST): written, read back, put in place."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.exporting.card import model_card
from vitdistill.exporting.form import Exported, Student
from vitdistill.files import RECORD

FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md", RECORD)


def write_folder(
    student: Student,
    folder: Path,
    weights: dict[str, Tensor],
    config: dict[str, Any],
    preparation: dict[str, Any],
    loaded: Callable[[Student, Path], Tensor],
    model: str,
) -> Exported:
    """Write the folder, and load it.

    Args:
        student: what is exported.
        folder: to write.
        weights: under Hugging Face's names.
        config: content of config.json.
        preparation: content of preprocessor_config.json.
        loaded: the prediction of what is loaded from a folder.
        model: transformers' class that loads it.

    Raises:
        UserError: when the folder holds something else.
    """
    strange = sorted({entry.name for entry in folder.iterdir()} - set(FILES)) if folder.is_dir() else []
    if folder.is_file() or strange:
        found = f"{folder} with {', '.join(strange[:3])}" if strange else f"the file {folder}"
        raise UserError("--out must be a new folder, or one that an earlier export wrote", found)
    own = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file(own, partial / "model.safetensors", {"format": "pt"})
        for name, content in (("config.json", config), ("preprocessor_config.json", preparation)):
            (partial / name).write_text(json.dumps(content, indent=2) + "\n")
        student.record.write(partial)
        (partial / "README.md").write_text(model_card(student))
        prediction = loaded(student, partial)
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (partial / name).replace(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(prediction, f"transformers.{model}.from_pretrained({str(folder)!r})")
