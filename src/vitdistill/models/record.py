"""What has to be known to rebuild a network: `student.json` beside `student.safetensors`, and the same in the file."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from vitdistill.errors import UserError
from vitdistill.files import RECORD, WEIGHTS
from vitdistill.models.names import AUDIO, SEGMENTER, UPERNET, YOLOS

log = logging.getLogger(__name__)

# What the names of our own architectures begin with, and what timm has not of them.
_BEYOND_TIMM = {
    AUDIO: "patches of sound that overlap (AST)",
    YOLOS: "detection tokens",
    SEGMENTER: "a decoder that labels pixels",
    UPERNET: "a decoder that labels pixels",
}

METADATA = "vitdistill_record"  # where a safetensors file carries the record


@dataclass
class ModelRecord:
    """How to build a network again.

    Attributes:
        architecture: timm's name, for `timm.create_model(architecture, **args)`; None for a user's own module.
        args: every argument besides the name, `num_classes` and `img_size` included.
        mean, std: input statistics for pixels in 0..1.
        classes: class names, in the order of the logits.
        heads: attention heads of blocks (counted from 0) that have others than the architecture says. The shapes
            of the weights do not show them.
        preprocessing: what validation did to samples before the network saw them: size [h, w] in pixels, channels,
            crop_pct, interpolation, crop_mode, mean and std; of clips also frames, stride and sampling. Empty where it
            is not known, as of networks that were not trained here.
        features: what a linear classifier reads of the frozen network (cls, cls4 or cls+mean), where nothing but the
            classifier was trained; empty for all other networks.
    """

    architecture: str | None
    args: dict[str, Any] = field(default_factory=dict)
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    heads: dict[int, int] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    features: str = ""

    @property
    def beyond_timm(self) -> str | None:
        """What the network has that no network of timm has, in words; None where timm can build all of it."""
        own = next((what for start, what in _BEYOND_TIMM.items() if (self.architecture or "").startswith(start)), None)
        if own is not None:
            return own
        if self.features:
            return f"a classifier that reads the features {self.features!r} of several blocks or patches"
        return "a distillation token without a position" if self.args.get("dist_token") else None

    def write(self, folder: Path) -> None:
        """Write `student.json` into a folder."""
        (folder / RECORD).write_text(json.dumps(asdict(self), indent=2) + "\n")

    def metadata(self) -> dict[str, str]:
        """What the header of a safetensors file says of the network whose weights it holds.

        One entry, since safetensors writes several in random order, and equal runs have equal files.
        """
        return {METADATA: json.dumps(asdict(self))}

    @classmethod
    def read(cls, folder: Path) -> "ModelRecord":
        """Read `student.json` of a run directory.

        Raises:
            UserError: when it is missing or is no record.
        """
        path = folder / RECORD
        if not path.is_file():
            is_run = (folder / "config.yaml").is_file()
            remedy = f"Continue its run with `vitdistill resume {folder}`" if is_run else "It is no run directory"
            rule = f"A run directory given as a model must hold {RECORD} and {WEIGHTS}"
            raise UserError(rule, f"{folder} without {RECORD}", remedy)
        try:
            return cls.parse(path.read_text())
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{RECORD} must be a model record", f"{path} ({error})") from error

    @classmethod
    def of_file(cls, path: Path) -> "ModelRecord | None":
        """The record that a weights file carries; None for files of others, of earlier versions, and damaged ones."""
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(METADATA)
        except (OSError, SafetensorError):  # reading the weights says what is wrong
            return None
        try:
            return None if text is None else cls.parse(text)
        except (TypeError, ValueError, AttributeError) as error:
            log.warning("%s: the record of its network is unreadable (%s), so it is left out", path, error)
            return None

    @classmethod
    def parse(cls, text: str) -> "ModelRecord":
        """A record from JSON."""
        content = json.loads(text)
        heads = {int(block): int(count) for block, count in content.pop("heads", {}).items()}  # JSON's keys are text
        return cls(**content, heads=heads)


def attach_record(net: nn.Module, record: ModelRecord) -> None:
    """Remember how a network was built; read by `record_of`."""
    net.__dict__["_vitdistill_record"] = record


def record_of(net: nn.Module) -> ModelRecord:
    """How a network was built; an empty record for a user's own module."""
    return net.__dict__.get("_vitdistill_record") or ModelRecord(architecture=None)


def mark_new_head(net: nn.Module) -> None:
    """Remember that a network with loaded weights got a classifier with random ones."""
    net.__dict__["_vitdistill_new_head"] = True


def has_new_head(net: nn.Module) -> bool:
    """Whether a network with loaded weights got a classifier with random ones."""
    return bool(net.__dict__.get("_vitdistill_new_head"))


def set_statistics(net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let a network of timm, and its record, say with which input statistics it was trained; empty ones leave it be."""
    if not mean or not std:
        return
    config = getattr(net, "pretrained_cfg", None)
    if isinstance(config, dict):
        net.pretrained_cfg = {**config, "mean": tuple(mean), "std": tuple(std)}  # type: ignore[assignment]
    record = record_of(net)
    record.mean, record.std = list(mean), list(std)


def set_preprocessing(net: nn.Module, preprocessing: Mapping[str, Any], size: Sequence[int]) -> None:
    """Let a network's record, and its configuration of timm, say how its images are made ready.

    `timm.data.resolve_model_data_config(net)` is then the transform of the evaluation.

    Args:
        net: changed in place; no weight changes.
        preprocessing: as a record has it.
        size: height and width of the network's inputs in pixels, which may have been changed since.
    """
    record_of(net).preprocessing = {**preprocessing, "size": list(size)}
    config = getattr(net, "pretrained_cfg", None)
    if isinstance(config, dict) and "crop_pct" in preprocessing and "frames" not in preprocessing:  # of images
        outdated = ("test_input_size", "test_crop_pct", "pool_size", "test_pool_size")
        kept = {name: value for name, value in config.items() if name not in outdated}
        net.pretrained_cfg = {**kept, **timm_data_config(record_of(net).preprocessing)}  # type: ignore[assignment]


def timm_data_config(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """The same as part of a `pretrained_cfg`, by timm's names.

    Args:
        preprocessing: of a network over images or spectrograms, as a record has it.
    """
    return {
        "input_size": (preprocessing["channels"], *preprocessing["size"]),
        # Sounds are neither cropped nor resized.
        **{name: preprocessing[name] for name in ("crop_pct", "crop_mode", "interpolation") if name in preprocessing},
        **{name: tuple(preprocessing[name]) for name in ("mean", "std")},
    }
