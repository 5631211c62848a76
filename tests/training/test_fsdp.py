"""Sharded training (FSDP) on two processes of a CPU, as a user starts it, against one process with the global batch."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vitdistill.cli import main
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


# A run as a user starts it, of which the second process alone gets SIGTERM in its 25th step.
STOPPED = """
import os, signal, sys
from vitdistill.cli import main
from vitdistill.training.module import TrainingModule

step, done = TrainingModule.training_step, []

def stepping(self, batch, batch_idx):
    done.append(batch_idx)
    if len(done) == 25 and self.global_rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, batch, batch_idx)

TrainingModule.training_step = stepping
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_sharded_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, pieced, other = (tmp_path / name for name in ("whole", "pieced", "other"))
    options = [*RUNS["supervised"][:-2], *COMMON, "--batch_size", "32", *SHARDED]  # 22 steps an epoch
    run("supervised", whole, *options)
    (tmp_path / "script.py").write_text(STOPPED)
    command = [sys.executable, str(tmp_path / "script.py"), "supervised", *options, "--out", str(pieced)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 130, done.stderr
    assert done.stderr.count("stopped; the checkpoint") == done.stderr.count("vitdistill resume") == 1, done.stderr
    assert read_checkpoint(pieced / "checkpoints" / "last.ckpt")["vitdistill"]["position"] == (1, 10)
    shutil.copytree(pieced, other)
    run("resume", pieced, str(pieced))
    for name in ("student.safetensors", "metrics.csv"):
        assert (pieced / name).read_bytes() == (whole / name).read_bytes(), name
    info = json.loads((pieced / "run.json").read_text())
    assert "supervised" in info["command"] and [command.split()[1] for command in info["resumed_by"]] == ["resume"]
    # The file is whole and of no strategy: replicated processes go on with it as well.
    run("supervised", other, *options, "--trainer.strategy", "ddp", "--resume")
    check_equal(whole, other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--optim.ema", "0.9"], "--optim.ema is not available with --trainer.strategy fsdp"),
        (["--compile", "true"], "--compile is not available with --trainer.strategy fsdp"),
        (["--precision", "16-mixed"], "Lightning refuses.*does not support.*16-mixed"),
        (["--trainer.strategy", "fsdp_cpu_offload"], "keeps its shares on the devices.*Use fsdp"),
    ],
)
def test_what_sharded_weights_do_not_allow_is_refused_before_the_run_begins(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["supervised", *RUNS["supervised"], *COMMON, *SHARDED, *options, "--out", str(tmp_path / "run")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert re.search(words, said) and said.count("\n") == 1
    assert not (tmp_path / "run").exists()
