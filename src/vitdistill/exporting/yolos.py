"""A folder that transformers loads as `YolosForObjectDetection`; timm has no detectors."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitdistill.exporting.folder import write_folder
from vitdistill.exporting.form import Exported, Student
from vitdistill.models.build import build
from vitdistill.models.weights.yolos import configuration, to_hugging_face


def write_yolos(student: Student, folder: Path) -> Exported:
    """Write the folder, and load it with transformers where that is installed, else with this package.

    Raises:
        UserError: when the network has what YolosForObjectDetection has not, or the folder holds something else.
    """
    net, record = student.network.net, student.record
    config, images = configuration(net, record.classes), _images(record.preprocessing)
    return write_folder(student, folder, to_hugging_face(net), config, images, _loaded, "YolosForObjectDetection")


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
