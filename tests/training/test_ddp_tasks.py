"""Boxes, masks and sounds on two processes: scores are those of one, and what goes wrong in one of them ends both."""

import csv
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from sounds import class_folders
from vitdistill.data.segments.scenes import scene_segments
from vitdistill.verbs.evaluate import evaluate

# Few scenes; what happens in the second process's third step: a box that is not finite, or its sudden end.
SCRIPT = """
import math, os, signal, sys
from functools import partial
import vitdistill.data.boxes.sources as boxes
import vitdistill.data.segments.sources as segments
from vitdistill.cli import main
from vitdistill.tasks.boxes import Boxes
from vitdistill.training.module import TrainingModule

boxes._counts = lambda: {"train": 16, "val": 9}
segments.scene_segments = partial(segments.scene_segments, sizes=(16, 9))
step, read, here = TrainingModule.training_step, Boxes.read, False

def stepping(self, batch, batch_idx):
    global here
    here = self.global_rank == 1 and self.global_step == 2
    if here and sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)

def reading(self, *arguments):
    prediction = read(self, *arguments)
    if here and sys.argv[1] == "nan":
        prediction[0, 0, -1] *= math.nan
    return prediction

TrainingModule.training_step, Boxes.read = stepping, reading
sys.exit(main(sys.argv[2:]))
"""
SHARED = [
    *("--epochs", "2", "--batch_size", "4", "--drop_path", "0", "--loader.workers", "0", "--precision", "32-true"),
    *("--optim.lr", "3e-3", "--optim.lr_batch", "0", "--optim.warmup_epochs", "0", "--optim.clip", "0.1"),
    *("--trainer.accelerator", "cpu", "--trainer.devices", "2"),
]
SMALL = '{"embed_dim": 24, "depth": 1, "num_heads": 2%s}'
SPECTROGRAMS = ', "img_size": [16, 28], "patch_size": 8, "stride": 4, "statistics": [-0.6, 3.3]'
TASKS = {
    "boxes": ["yolos", SMALL % ', "patch_size": 12, "det_tokens": 6'],
    "segmentation": ["segmenter", SMALL % ""],
}


def run(what: str, out: Path, *options: str, code: int = 0) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    script = out.parent / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), what, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stderr


def arguments(task: str, out: Path) -> list[str]:
    network, small = TASKS[task]
    student = ["--student", f"scenes_{network}_small", "--student_args", small]
    return ["supervised", *student, "--data", "scenes", "--task", task, "--out", str(out), *SHARED]


@pytest.mark.slow
@pytest.mark.parametrize("task", [*TASKS, "classification"])
def test_two_processes_validate_as_one_tests(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    if task == "classification":
        data = class_folders(tmp_path / "calls", 8, 5, rate=22_050)
        sounds = ["--student", "ast_tiny", "--student_args", SMALL % SPECTROGRAMS, "--optim.schedule", "cosine"]
        said = run("", out, "supervised", *sounds, "--data", str(data), "--out", str(out), *SHARED)
    else:
        monkeypatch.setattr("vitdistill.data.boxes.sources._counts", lambda: {"train": 16, "val": 9})
        few = partial(scene_segments, sizes=(16, 9))
        monkeypatch.setattr("vitdistill.data.segments.sources.scene_segments", few)
        said = run("", out, *arguments(task, out))
    assert "rror" not in said and "arning" not in said, said
    *_, row = csv.DictReader((out / "metrics.csv").open())
    for batch_size in (2, 9):  # and not 4 in each of two
        result = evaluate(str(out), batch_size=batch_size, workers=0, json=True)
        for name in json.loads((out / "run.json").read_text())["metrics"]:
            if f"val/{name}" in row:
                assert result[name] == pytest.approx(float(row[f"val/{name}"]), abs=1e-3), name
        assert result["loss"] == pytest.approx(float(row["val/loss"]), abs=1e-3)


@pytest.mark.slow
def test_what_goes_wrong_in_one_process_ends_both_with_one_line_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"
    run("", whole, *arguments("boxes", whole))
    said = run("nan", out, *arguments("boxes", out), code=2)
    said = said[said.index("error: ") :]  # behind the first epoch's line
    assert said.startswith("error: The loss must stay finite; got NaN or infinity at step 2 (epoch 1, batch 0). ")
    assert said.endswith("Lower --optim.lr, or set --optim.clip 0.01\n") and said.count("\n") == 1
    said = run("kill", out, "resume", str(out), code=2)
    assert said.startswith("error: All processes of a run must go on to its end; got one that has ended (Connection ")
    assert said.endswith(f"Go on with: vitdistill resume {out}\n") and said.count("\n") == 1
    run("", out, "resume", str(out))
    for name in ("student.safetensors", "metrics.csv", "per_class.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
