"""What the benchmarks of speed share: names of machines, options, and how results are written."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch

from vitdistill.costing.measure import hardware
from vitdistill.training.precision import cpu_has_bf16, has_bf16
from vitdistill.verbs.common import WIDE_ENOUGH

# The candidate that ours is first compared with: the same step, computed as the method's authors compute it.
AUTHORS = "as the authors' code does it"


def parser_of(doc: str | None, *, smoke: str, device: bool = True) -> argparse.ArgumentParser:
    """A command line with the options that every benchmark has.

    Args:
        doc: of the benchmark's module; its first line is shown.
        smoke: what `--smoke` makes small.
        device: whether a GPU can be measured.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    if device:
        default = "cuda" if torch.cuda.is_available() else "cpu"
        parser.add_argument("--device", default=default, choices=["cpu", "cuda"])
    parser.add_argument("--machine", help="name of the machine in the file names")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    parser.add_argument("--smoke", action="store_true", help=f"{smoke}; print, write nothing")
    return parser


def machine_name(device: torch.device) -> str:
    """A generic name: cpu_2core, gpu_h200."""
    facts = hardware()
    if device.type == "cuda":
        words = re.findall(r"[a-z0-9]+", facts["gpu"].lower())
        return "gpu_" + "_".join(word for word in words if word not in ("nvidia", "geforce", "tesla"))
    return f"cpu_{facts['cpu_cores']}core"


def default_teacher_dtype(width: int, device: torch.device) -> torch.dtype:
    """What `--teacher_dtype auto` takes on a device for float32 weights of a teacher that is so wide."""
    fast = has_bf16() if device.type == "cuda" else width >= WIDE_ENOUGH and cpu_has_bf16()
    return torch.bfloat16 if fast else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """float32, bfloat16."""
    return str(dtype).removeprefix("torch.")


def met(condition: bool) -> str:
    """How a verdict on an expectation begins."""
    return "met" if condition else "NOT MET"


def write(folder: Path, benchmark: str, result: dict[str, Any], text: str) -> None:
    """Keep a benchmark's figures, and its tables for people, under the machine's name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{benchmark}_{result['machine']}"
    path.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    path.with_suffix(".md").write_text(text)
    print(f"wrote {path}.json and .md")
