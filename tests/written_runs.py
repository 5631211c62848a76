"""Run directories as training writes them, without training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

METRICS = """epoch,step,lr,keep,train/loss,teacher/top1,teacher/agreement,val/loss,val/top1,val/top5,ema/top1
0,12,0.001,32,2.1,60.0,70.0,1.9,40.5,80.0,
1,24,0.0005,32,1.2,80.0,85.0,,70.25,95.0,69.5
2,36,0.0001,32,nan,85.0,90.0,0.5,91.5,99.0,90.0
"""


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a finished run below the test's folder; `info` and `config` go over the defaults."""

    def make(name: str, *, config: dict[str, Any] | None = None, info: dict[str, Any] | None = None) -> Path:
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        settings = {
            "student": "digits_vit_small",
            "teacher": "digits-teacher",
            "data": "digits",
            "out": str(path),
            "keep": 0.5,
            "alpha": 0.5,
            "criterion": "student",
            "optim": {"lr": 0.001, "betas": [0.9, 0.999]},
            "seed": 0,
        }
        (path / "config.yaml").write_text(yaml.safe_dump({**settings, **(config or {})}))
        (path / "run.json").write_text(json.dumps({**finished(name), **(info or {})}))
        (path / "metrics.csv").write_text(METRICS)
        return path

    return make


def finished(name: str) -> dict[str, Any]:
    return {
        "verb": "maskedkd",
        "status": "finished",
        "command": f"vitdistill maskedkd --out {name}",
        "student": {"name": "student-net", "params": 89194, "grid": "8x8"},
        "teacher": {"name": "teacher-net", "params": 680000, "grid": "8x8"},
        "data": {"name": "digits", "train_images": 1437, "val_images": 360, "classes": 10},
        "accuracy": {"top1": 91.5, "top5": 99.0, "loss": 0.5},
        "tokens": {"kept": 32, "of": 64},
        "cost": {"teacher_gmacs_per_image": 2.5, "teacher_gmacs_total": 4.2e6, "saved_fraction": 0.51},
        "speed": {"images_per_s": 1234.0, "step_ms": 43.0, "data_ms": 2.1, "student_ms": 24.2, "teacher_ms": 14.3},
        "peak_memory_gib": 0.61,
        "seconds": 41.0,
        "versions": {"torch": "2.9.9-test"},
    }


@pytest.fixture
def interrupted_run(tmp_path: Path) -> Path:
    """A run that was stopped early: no metrics, no configuration, and a name that HTML must not take literally."""
    path = tmp_path / "runs" / "<b>half & half"
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"verb": "maskedkd", "status": "interrupted"}))
    return path
