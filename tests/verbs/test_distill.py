"""`maskedkd --distill`: manifold and attention distillation with a masked teacher, from the command line."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from vitdistill.cli import main
from vitdistill.training.module import TrainingModule

pytestmark = pytest.mark.usefixtures("few_digits")

SHORT = ["--student=digits_vit_small", "--student_args.depth=2", "--student_args.embed_dim=24"]
SHORT += ["--student_args.num_heads=3", "--teacher=digits-teacher", "--data=digits", "--epochs=2", "--batch_size=48"]
SHORT += ["--keep=0.5", "--optim.ema=0.5", "--loader.workers=0", "--precision=32-true", "--optim.warmup_epochs=0"]


@pytest.mark.parametrize(
    "names",
    [
        *(pytest.param(alone, marks=pytest.mark.slow) for alone in ("manifold", "attention")),
        "logits+manifold+attention",
    ],
)
def test_a_masked_run_is_interrupted_and_ends_alike(
    names: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if names == "manifold":  # which needs more than a few steps before its loss falls
        request.getfixturevalue("all_digits")
    whole, pieced = tmp_path / "whole", tmp_path / "pieced"
    words = ["maskedkd", *SHORT, f"--distill={names}"]
    assert main([*words, f"--out={whole}"]) == 0
    original = TrainingModule.training_step

    def stopped(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 1 and batch_idx == 2:
            raise RuntimeError("pulled plug")
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", stopped)
        with pytest.raises(RuntimeError, match="pulled plug"):
            main([*words, f"--out={pieced}"])
    assert main(["resume", str(pieced)]) == 0
    for file in ("student.safetensors", "student_ema.safetensors", "metrics.csv"):
        assert (whole / file).read_bytes() == (pieced / file).read_bytes(), file

    (first, last) = csv.DictReader((whole / "metrics.csv").open())
    for name in names.replace("logits", "kd").split("+"):
        assert any(column.startswith(f"train/{name}") for column in first), name
    assert last["keep"] == "18" and "train/ce" in first
    assert float(last["train/loss"]) < float(first["train/loss"])
    info = json.loads((whole / "run.json").read_text())
    assert info["tokens"] == {"kept": 18, "of": 36}
    assert "loss" in capsys.readouterr().err
