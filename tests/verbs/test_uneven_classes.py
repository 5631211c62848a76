"""Classes of different frequency: even draws, accuracy per class, and the report on it."""

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdistill.cli import main
from vitdistill.data.images.augment import Augment
from vitdistill.errors import UserError
from vitdistill.training.module import TrainingModule
from vitdistill.training.settings import Loader, Optim
from vitdistill.verbs.mae import mae
from vitdistill.verbs.resume import resume
from vitdistill.verbs.supervised import supervised

COUNTS = {"common": 36, "rare": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright and dark noise: 36 and 4 images to train on, 9 and 3 to validate on."""
    root = tmp_path_factory.mktemp("data") / "uneven"
    for split, share in (("train", 1), ("val", 4)):
        for label, (name, count) in enumerate(COUNTS.items()):
            (root / split / name).mkdir(parents=True)
            for number in range(max(3, count // share)):
                pixels = np.random.RandomState(100 * label + number).randint(0, 128, (16, 16, 3)) + 120 * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


def options(data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "student": "vit_tiny_patch16_224",
        "student_args": {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2},
        "data": str(data),
        "out": str(out),
        "epochs": 2,
        "batch_size": 10,
        "augment": Augment(recipe="none"),
        "optim": Optim(lr=1e-2, lr_batch=0, warmup_epochs=0),
        "loader": Loader(workers=0, balance=True),
        **changes,
    }


@pytest.mark.usefixtures("report")
def test_a_balanced_run_draws_evenly_resumes_exactly_and_reports_per_class(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[int] = []
    original = TrainingModule.training_step

    def step(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        drawn.extend(batch.targets.tolist())
        if len(drawn) == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", step)
    whole, pieced, stop = tmp_path / "whole", tmp_path / "pieced", 0
    supervised(**options(data, whole))
    assert drawn.count(0) == drawn.count(1) == 40, "two epochs of 40 images, as without balance"
    drawn, stop = [], 60
    with pytest.raises(KeyboardInterrupt):
        supervised(**options(data, pieced))
    with pytest.raises(UserError, match=r"changed loader.balance \(was True, is False\)"):
        supervised(**options(data, pieced, loader=Loader(workers=0), resume=True))
    resume(str(pieced))
    for name in ("student.safetensors", "metrics.csv", "confusion.csv"):
        assert (whole / name).read_bytes() == (pieced / name).read_bytes(), name

    # Uneven validation is scored per class as well, by training and by `evaluate` alike.
    assert f"The run is in {pieced}, its report in {pieced / 'report.html'}" in capsys.readouterr().err
    recorded = json.loads((whole / "run.json").read_text())
    assert recorded["metrics"]["mean_per_class"] == "mean per class %" and "confusion.csv" in recorded["files"]
    assert main(["evaluate", str(whole), "--json", "--out", str(tmp_path / "out")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["mean_per_class"] == pytest.approx(recorded["accuracy"]["mean_per_class"], abs=1e-3)
    assert [(row["class"], row["samples"]) for row in result["per_class"]] == [("common", 9), ("rare", 3)]
    mean = sum(row["accuracy"] for row in result["per_class"]) / 2
    assert result["mean_per_class"] == pytest.approx(mean, abs=1e-3)
    assert (tmp_path / "out/confusion.csv").read_text() == (whole / "confusion.csv").read_text()
    with open(tmp_path / "out/per_class.csv", newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["common", "rare"]
    assert (tmp_path / "out/confusion.png").stat().st_size > 1000
    assert main(["evaluate", str(whole)]) == 0
    text = capsys.readouterr().out
    assert "mean per" in text and "most often" in text and "rare" in text
    assert "which classes the student takes for which" in (whole / "report.html").read_text()


def test_balance_needs_labels(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--loader.balance has no effect in training without labels"):
        mae(**options(data, tmp_path / "run"))
