"""What all exported forms share: what is exported, and what loading it again gave."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitdistill.data.clips.samples import STRIDE
from vitdistill.data.images.augment import Augment
from vitdistill.data.samples import image_preprocessing
from vitdistill.errors import UserError
from vitdistill.files import RECORD
from vitdistill.models.families.linear_only import FrozenBody
from vitdistill.models.network import Network
from vitdistill.models.record import ModelRecord, record_of
from vitdistill.models.surgery.linear_head import as_one_network
from vitdistill.runs.read import Run


class Exported(NamedTuple):
    """What was written.

    Attributes:
        logits: of the inputs that it was tried on, from the written file or folder.
        load: Python that loads it.
        files: that were written, besides the weights.
    """

    logits: Tensor
    load: str
    files: tuple[Path, ...] = ()


class Student(NamedTuple):
    """What is exported.

    Attributes:
        network: in eval mode.
        record: how it is built, its classes, and how its inputs are made ready.
        inputs: a few, made of noise, to compare logits on.
        run: from which it comes.
    """

    network: Network
    record: ModelRecord
    inputs: Tensor
    run: Run


def student_of(run: Run, network: Network) -> Student:
    """A run's student with all that is to be said of it.

    Args:
        run: whose configuration tells how images are made ready, where that was not recorded.
        network: of one of its checkpoints.
    """
    network.eval()
    if isinstance(network, FrozenBody) and network.net.features == "cls":
        network = as_one_network(network)
    record = record_of(network.net)
    if not record.preprocessing:
        record = replace(record, preprocessing=_preprocessing(run, network))
    inputs = torch.randn(3, *network.input.shape, generator=torch.Generator().manual_seed(0))
    return Student(network, record, inputs, run)


def _preprocessing(run: Run, network: Network) -> dict[str, Any]:
    """Of a run that was written before it was recorded: what its configuration says."""
    found = image_preprocessing(network.input, Augment(**(run.config.get("augment") or {})))
    if network.input.frames is None:
        return found
    sampling, stride = run.config.get("sampling") or "dense", run.config.get("stride") or STRIDE
    clips = {"frames": network.input.frames, "sampling": sampling, "stride": stride if sampling == "dense" else None}
    return {**found, **clips, "crop_pct": 1.0, "interpolation": "bilinear"}


def write_record(record: ModelRecord, weights: Path) -> Path:
    """Write a record beside exported weights: student.json, and WEIGHTS.json where that belongs to other weights.

    Args:
        record: of the exported network.
        weights: the file that holds it.

    Returns:
        The file with the record.

    Raises:
        UserError: when a file would be lost that no export wrote.
    """
    path, in_run = weights.with_name(RECORD), (weights.parent / "run.json").is_file()
    same = path.is_file() and _read(path) == asdict(record)
    others = {file.stem for ending in ("safetensors", "onnx") for file in weights.parent.glob(f"*.{ending}")}
    if not same and (in_run or others - {weights.stem}):
        path = weights.with_suffix(".json")
    if path.is_file() and (_read(path) is None or (in_run and path.name == RECORD and not same)):
        raise UserError(f"{path} would be replaced, which no export wrote", remedy="Choose another --out")
    path.write_text(json.dumps(asdict(record), indent=2) + "\n")
    return path


def _read(path: Path) -> dict[str, Any] | None:
    """The record in a file, as plain values; None where it is none."""
    try:
        return asdict(ModelRecord.parse(path.read_text()))
    except (TypeError, ValueError, AttributeError):
        return None
