"""A run on a container that was stopped and resumed ends exactly like one that was not."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import contained
from vitdistill import Augment, Loader, Optim
from vitdistill.errors import UserError
from vitdistill.training.module import TrainingModule
from vitdistill.verbs.resume import resume
from vitdistill.verbs.supervised import supervised


class Drawing(contained.Listed):
    """A data set with a random transform of its own."""

    def __getitem__(self, index: int) -> Any:
        pixels, label = super().__getitem__(index)
        return pixels / 255 * torch.rand(1), label


def options(data: Any, out: Path) -> dict[str, Any]:
    return {
        "student": "vit_tiny_patch16_224",
        "student_args": {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
        "image_size": 16,
        "data": data,
        "out": str(out),
        "epochs": 2,
        "batch_size": 2,
        "augment": Augment(recipe="tiny"),
        "optim": Optim(lr=3e-3, lr_batch=0, warmup_epochs=0),
        "loader": Loader(workers=0),
    }


@pytest.mark.usefixtures("report")
@pytest.mark.parametrize("kind", ["shards", "dataset"])
def test_a_stopped_run_on_a_container_resumes_bit_for_bit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITDISTILL_CACHE", str(tmp_path / "cache"))
    contained.shards(tmp_path)
    data: Any = (Drawing("train"), contained.Listed("val")) if kind == "dataset" else f"shards:{tmp_path}/*.tar"
    supervised(**options(data, tmp_path / "whole"))
    steps = 0
    original = TrainingModule.training_step

    def stopping(self: TrainingModule, *batch: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 5:  # of 3 an epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingModule, "training_step", stopping)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            supervised(**options(data, tmp_path / "pieced"))
    if kind == "dataset":
        with pytest.raises(UserError, match="must be resumed in Python; got data in"):
            resume(str(tmp_path / "pieced"))
        supervised(**options(data, tmp_path / "pieced"), resume=True)
    else:
        resume(str(tmp_path / "pieced"))
    for name in ("student.safetensors", "metrics.csv", "student.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "pieced" / name).read_bytes(), name
    assert (tmp_path / "whole" / "report.html").is_file()
