"""A folder that timm and transformers load, offline or from the Hugging Face hub.

timm reads `config.json` with `local-dir:` and `hf-hub:`; transformers reads the same file as that of a `TimmWrapper`.
"""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.exporting.card import model_card
from vitdistill.exporting.form import Exported, Student
from vitdistill.exporting.yolos import write_yolos
from vitdistill.files import RECORD
from vitdistill.models.record import timm_data_config

FILES = ("config.json", "model.safetensors", "README.md", RECORD)
# What of timm's configuration of the architecture holds for any weights.
KEPT = ("classifier", "first_conv", "fixed_input_size")


def write_hub(student: Student, folder: Path) -> Exported:
    """Write the folder, and load it with timm, and with transformers where that is installed (a detector: only there).

    Raises:
        UserError: when the network is none of timm's, or nothing in timm's format says what it is; when the folder
            holds something else.
    """
    if student.network.detections:
        return write_yolos(student, folder)
    _check(student, folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        weights = student.network.net.state_dict()
        own = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()
        }  # none shares memory
        save_file(own, partial / "model.safetensors", {"format": "pt"})
        (partial / "config.json").write_text(json.dumps(_config(student), indent=2) + "\n")
        student.record.write(partial)
        (partial / "README.md").write_text(model_card(student))
        logits = _loaded(student, partial)
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (partial / name).replace(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(logits, f"timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)")


def _check(student: Student, folder: Path) -> None:
    record = student.record
    if record.architecture is None:
        raise UserError("Only architectures of timm can be exported for timm and transformers")
    if student.network.input.frames is not None:
        raise UserError(
            "timm and transformers have no networks over clips like this one",
            student.network.name,
            "Use --format safetensors, which vitdistill.build loads, or --format onnx",
        )
    if record.beyond_timm is not None:
        raise UserError(
            f"timm and transformers have no networks with {record.beyond_timm}",
            student.network.name,
            "Use --format safetensors, which vitdistill.build loads, or --format onnx",
        )
    if record.heads:
        heads = ", ".join(f"block {block} has {count}" for block, count in record.heads.items())
        raise UserError(
            "config.json cannot say that single blocks have other attention heads, and the folder would load as "
            "another network",
            heads,
            "Use --format safetensors, which prints the lines that set them, or --format onnx",
        )
    strange = sorted({entry.name for entry in folder.iterdir()} - set(FILES)) if folder.is_dir() else []
    if folder.is_file() or strange:
        found = f"{folder} with {', '.join(strange[:3])}" if strange else f"the file {folder}"
        raise UserError("--out must be a new folder, or one that an earlier export wrote", found)


def _config(student: Student) -> dict[str, Any]:
    net, record = student.network.net, student.record
    own = dict(net.pretrained_cfg)
    # A name of the hub stands for arguments as well, which timm keeps.
    args = {
        **(getattr(net, "_model_args", {}) if str(record.architecture).startswith("hf-hub:") else {}),
        **record.args,
    }
    classes = int(args.pop("num_classes", student.network.num_classes))
    pool = getattr(net, "global_pool", None)
    config: dict[str, Any] = {"architecture": own.get("architecture") or str(record.architecture).partition(".")[0]}
    config |= {"num_classes": classes, "num_features": int(net.num_features)}
    config |= {"global_pool": pool} if isinstance(pool, str) else {}
    if classes:
        # Without names, transformers would take a network with 1000 classes for one of ImageNet.
        config["label_names"] = record.classes or [str(number) for number in range(classes)]
    config["model_args"] = args
    kept = {name: own[name] for name in KEPT if name in own}
    config["pretrained_cfg"] = {**kept, **timm_data_config(record.preprocessing), "num_classes": classes}
    return config


def _loaded(student: Student, folder: Path) -> Tensor:
    """Logits as timm gives them, or those of transformers where it gives others."""
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.inference_mode():
        logits = net(student.inputs)
        if not student.network.num_classes or find_spec("transformers") is None:
            return logits
        from transformers import AutoModelForImageClassification
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = AutoModelForImageClassification.from_pretrained(str(folder), local_files_only=True).eval()
        again = model(student.inputs).logits
    return logits if torch.equal(again, logits) else again
