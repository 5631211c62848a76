"""A folder that transformers loads as `YolosForObjectDetection`; timm has no detectors."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.exporting.card import model_card
from vitdistill.exporting.form import Exported, Student
from vitdistill.files import RECORD
from vitdistill.models.build import build
from vitdistill.models.weights.yolos import configuration, to_hugging_face

FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md", RECORD)


def write_yolos(student: Student, folder: Path) -> Exported:
    """Write the folder, and load it with transformers where that is installed, else with this package.

    Raises:
        UserError: when the network has what YolosForObjectDetection has not, or the folder holds something else.
    """
    strange = sorted({entry.name for entry in folder.iterdir()} - set(FILES)) if folder.is_dir() else []
    if folder.is_file() or strange:
        found = f"{folder} with {', '.join(strange[:3])}" if strange else f"the file {folder}"
        raise UserError("--out must be a new folder, or one that an earlier export wrote", found)
    net, record = student.network.net, student.record
    own = {name: value.detach().cpu().contiguous().clone() for name, value in to_hugging_face(net).items()}
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file(own, partial / "model.safetensors", {"format": "pt"})
        for name, content in (
            ("config.json", configuration(net, record.classes)),
            ("preprocessor_config.json", _images(record.preprocessing)),
        ):
            (partial / name).write_text(json.dumps(content, indent=2) + "\n")
        record.write(partial)
        (partial / "README.md").write_text(model_card(student))
        prediction = _loaded(student, partial)
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (partial / name).replace(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(prediction, f"transformers.YolosForObjectDetection.from_pretrained({str(folder)!r})")


def _images(preprocessing: dict[str, Any]) -> dict[str, Any]:
    """How transformers makes images ready: the shorter side to a size, unless the longer would be above another."""
    sides = preprocessing["size"]
    return {
        "image_processor_type": "YolosImageProcessor",
        "format": "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": min(sides), "longest_edge": max(sides)},
        "resample": 2,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(preprocessing["mean"]),
        "image_std": list(preprocessing["std"]),
        "do_pad": True,
    }


def _loaded(student: Student, folder: Path) -> Tensor:
    """The prediction as transformers gives it."""
    with torch.inference_mode():
        if find_spec("transformers") is None:
            return build(str(folder)).eval()(student.inputs).prediction
        from transformers import YolosForObjectDetection
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = YolosForObjectDetection.from_pretrained(str(folder), local_files_only=True).eval()
        output = model(student.inputs)
        return torch.cat((output.logits, output.pred_boxes), dim=-1)
