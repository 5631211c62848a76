"""Sharded training (FSDP) on two processes of a CPU, as a user starts it, against one process with the global batch."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vitdistill.training.checkpoints import load_student, read_checkpoint

# Plain gradient descent: Adam blows rounding up where the gradient is nothing else (the keys' bias under a softmax).
SGD = ["--optim.name", "sgd", "--optim.lr", "0.05"]
COMMON = [
    *("--epochs", "2", "--augment.recipe", "none", "--trainer.accelerator", "cpu", "--optim.warmup_epochs", "0"),
    *("--optim.lr_batch", "0", "--drop_path", "0"),
]
IMAGES = [
    *("--data", "digits", "--student", "digits_vit_small"),
    *("--student_args.embed_dim", "12", "--student_args.depth", "2", "--student_args.num_heads", "2"),
]
RUNS = {
    "supervised": [*IMAGES, "--optim.lr", "1e-3", "--optim.clip", "0.5", "--optim.accumulate", "2"],
    "maskedkd": [*IMAGES, *SGD, "--teacher", "digits-teacher", "--keep", "0.5"],
    # Relations of the last block alone: the student's pass stops inside it, but where it is sharded.
    "tinymim": [*IMAGES, *SGD, "--teacher", "digits-mae", "--color_jitter", "0", "--relations", "qq+vv"],
}
SHARDED = ["--trainer.devices", "2", "--trainer.strategy", "fsdp"]


def run(verb: str, out: Path, *options: str, code: int = 0) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "vitdistill", verb, *options, *(["--out", str(out)] if verb in RUNS else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stderr
    return done.stderr


def check_equal(one: Path, two: Path) -> None:
    """Metrics and exported weights to the rounding of float32."""
    rows = [list(csv.DictReader((out / "metrics.csv").open())) for out in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 2
    for alone, shared in zip(*rows, strict=True):
        assert alone.keys() == shared.keys()
        for name, value in alone.items():
            assert float(shared[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-4), name
    expected = load_file(one / "student.safetensors")
    found = load_file(two / "student.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("verb", RUNS)
def test_two_sharded_processes_train_like_one(verb: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run(verb, one, *RUNS[verb], *COMMON, "--batch_size", "256")
    said = run(verb, two, *RUNS[verb], *COMMON, "--batch_size", "128", *SHARDED)
    assert said.count("epoch 1/2") == said.count("The run is in") == 1 and "Warning" not in said
    check_equal(one, two)
    whole, gathered = (read_checkpoint(out / "checkpoints" / "last.ckpt") for out in (one, two))
    assert gathered["state_dict"].keys() == whole["state_dict"].keys()
    for name, tensor in whole["state_dict"].items():
        torch.testing.assert_close(gathered["state_dict"][name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    (state,), (expected) = gathered["optimizer_states"], whole["optimizer_states"][0]
    assert state["state"].keys() == expected["state"].keys()
    for number, values in expected["state"].items():
        for name, value in values.items():
            torch.testing.assert_close(state["state"][number][name], value, rtol=1e-3, atol=1e-4, msg=name)
    exported = load_student(two / "checkpoints" / "last.ckpt").net.state_dict()
    for name, tensor in load_file(two / "student.safetensors").items():
        assert torch.equal(tensor, exported[name])
    assert json.loads((two / "run.json").read_text())["status"] == "finished"
