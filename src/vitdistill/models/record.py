"""What has to be known to rebuild a network: `student.json` beside `student.safetensors`."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from vitdistill.errors import UserError

WEIGHTS, RECORD = "student.safetensors", "student.json"


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
    """

    architecture: str | None
    args: dict[str, Any] = field(default_factory=dict)
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    heads: dict[int, int] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `student.json` into a folder."""
        (folder / RECORD).write_text(json.dumps(asdict(self), indent=2) + "\n")

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
            content = json.loads(path.read_text())
            heads = {
                int(block): int(count) for block, count in content.pop("heads", {}).items()
            }  # JSON's keys are text
            return cls(**content, heads=heads)
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{RECORD} must be a model record", f"{path} ({error})") from error


def attach_record(net: nn.Module, record: ModelRecord) -> None:
    """Remember how a network was built; read by `record_of`."""
    net.__dict__["_vitdistill_record"] = record


def record_of(net: nn.Module) -> ModelRecord:
    """How a network was built; an empty record for a user's own module."""
    return net.__dict__.get("_vitdistill_record") or ModelRecord(architecture=None)
