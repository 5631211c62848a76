"""Networks with random weights as finished runs leave them, without training."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from vitdistill.models.network import Network
from vitdistill.models.record import record_of
from vitdistill.training.train import export_weights

CLASSES = ["dark", "bright", "red", "green"]


def keep_model(network: Network, folder: Path, classes: list[str] = CLASSES, **preprocessing: Any) -> Path:
    """A folder with the network's weights and its record, to be given as a model.

    Args:
        network: of any weights, which become random, so that nothing hides behind 0 or 1.
        folder: to make.
        classes: names.
        preprocessing: what differs from that of squares without enlargement.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in filter(lambda each: each.requires_grad, network.parameters()):  # but for fixed positions
            parameter.copy_(0.5 * parameter + 0.1 * torch.randn(parameter.shape, generator=generator))
    record, spec = record_of(network.net), network.input
    record.classes = classes
    record.preprocessing = {
        **{"size": [*spec.size], "channels": spec.shape[0], "crop_pct": 1.0, "interpolation": "bicubic"},
        **{"crop_mode": "center", "mean": [*spec.mean], "std": [*spec.std], **preprocessing},
    }
    folder.mkdir(parents=True, exist_ok=True)
    record.write(folder)
    export_weights(network.net.state_dict(), folder / "student.safetensors", record)
    return folder


def keep_run(network: Network, folder: Path, classes: list[str] = CLASSES, **preprocessing: Any) -> Path:
    """The same as a finished run of `maskedkd`."""
    keep_model(network, folder, classes, **preprocessing)
    settings = {"student": network.name, "teacher": "/somewhere/deit-teacher", "data": "digits", "out": str(folder)}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    info = {
        "verb": "maskedkd",
        "status": "finished",
        "teacher": {"name": "deit_small_patch16_224"},
        "data": {"name": "colours", "train_images": 100, "val_images": 20, "classes": len(classes)},
        "metrics": {"top1": "top-1 %"},
        "score": "top1",
        "accuracy": {"top1": 87.5},
        "cost": {"teacher_gmacs_per_image": 2.3, "student_gmacs_full_per_image": 0.5, "saved_fraction": 0.49},
        "epochs": 3,
        "seconds": 7200.0,
        "hardware": {"gpu": None},
    }
    (folder / "run.json").write_text(json.dumps(info))
    return folder
