"""Runs of two processes that are started as on two nodes with a shared file system, and that stop together."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

NETWORK = [
    *("--student", "vit_tiny_patch16_224", "--student_args.img_size", "8", "--student_args.patch_size", "4"),
    *("--student_args.embed_dim", "12", "--student_args.depth", "1", "--student_args.num_heads", "2"),
    *("--epochs", "2", "--augment.recipe", "none", "--optim.warmup_epochs", "0", "--optim.lr_batch", "0"),
    *("--loader.workers", "0", "--trainer.accelerator", "cpu"),
]
DIGITS = ["supervised", "--data", "digits", *NETWORK, "--student_args.in_chans", "1"]
RUN = [sys.executable, "-m"]
# A signal, or a loss that is not finite, in the eleventh step of one process.
SCRIPT = """
import os, signal, sys
from vitdistill.cli import main
from vitdistill.training.module import TrainingModule

step, done = TrainingModule.training_step, []

def stepping(self, batch, batch_idx):
    done.append(batch_idx)
    here = len(done) == 11 and self.global_rank == 1
    if here and sys.argv[1] == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
    loss = step(self, batch, batch_idx)
    if here and sys.argv[1] == "nan":
        self._first_bad = self._first_bad.new_tensor(float(batch_idx))
    return loss

TrainingModule.training_step = stepping
sys.exit(main(sys.argv[2:]))
"""


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def on_two_nodes(launcher: str, program: Sequence[str], code: int = 0) -> list[str]:
    """Start a program as the launcher would on each of two nodes; what each of them said."""
    address = str(port())
    processes = []
    for node in range(2):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, *program]
        if launcher == "torchrun":
            command = [
                *RUN,
                "torch.distributed.run",
                "--nnodes",
                "2",
                "--node_rank",
                str(node),
                "--nproc_per_node",
                "1",
            ]
            command += ["--master_addr", "127.0.0.1", "--master_port", address, *program]
        else:
            environment |= {"SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NNODES": "2"}
            environment |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_PROCID": str(node), "SLURM_NODEID": str(node)}
            environment |= {"SLURM_LOCALID": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": address}
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [code] * 2, said
    return said


def alone(*arguments: str, code: int = 0) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*RUN, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stderr


def check_close(one: Path, two: Path) -> None:
    rows: list[list[Mapping[str, str]]] = [list(csv.DictReader((out / "metrics.csv").open())) for out in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 2
    for first, second in zip(*rows, strict=True):
        assert {name: float(value) for name, value in second.items()} == pytest.approx(
            {name: float(value) for name, value in first.items()}, rel=1e-4, abs=1e-4
        )
    expected = load_file(one / "student.safetensors")
    for name, tensor in load_file(two / "student.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_two_nodes_train_like_one_process_and_go_on_after_a_stop(launcher: str, tmp_path: Path) -> None:
    one, two, pieced = (str(tmp_path / name) for name in ("one", "two", "pieced"))
    alone("vitdistill", *DIGITS, "--batch_size", "64", "--out", one)
    first, second = on_two_nodes(launcher, ["-m", "vitdistill", *DIGITS, "--batch_size", "32", "--out", two])
    assert second == "" and first.count("epoch 1/2") == first.count("The run is in") == 1, (first, second)
    check_close(tmp_path / "one", tmp_path / "two")

    (tmp_path / "script.py").write_text(SCRIPT)
    script = [str(tmp_path / "script.py"), "signal"]
    # torchrun itself reports processes that exit with another code than 0, and then exits with 1.
    code = 1 if launcher == "torchrun" else 130
    first, second = on_two_nodes(launcher, [*script, *DIGITS, "--batch_size", "32", "--out", pieced], code)
    assert first.count("vitdistill resume") == 1 and "vitdistill resume" not in second, (first, second)
    assert json.loads((tmp_path / "pieced" / "run.json").read_text())["status"] == "interrupted"
    on_two_nodes(launcher, ["-m", "vitdistill", "resume", pieced])
    for name in ("student.safetensors", "metrics.csv"):
        assert (tmp_path / "pieced" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def pictures(root: Path, each: int, broken: int) -> Path:
    """Two classes of so many small images to train on, the first of which cannot be read."""
    for split, count in (("train", each), ("val", 10)):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(np.full((8, 8, 3), number % 256, np.uint8)).save(root / split / label / f"{number}.png")
    for number in range(broken):
        (root / "train" / "ab"[number % 2] / f"{number // 2}.png").write_bytes(b"broken")
    return root


@pytest.mark.slow
def test_files_that_cannot_be_read_are_counted_over_all_processes(tmp_path: Path) -> None:
    # 16 of 1020 in all, of which each process sees about 8 in an epoch; 10 are borne.
    data = pictures(tmp_path / "data", each=500, broken=16)
    run = ["vitdistill", "supervised", "--data", str(data), *NETWORK, "--batch_size", "25", "--trainer.devices", "2"]
    said = alone(*run, "--out", str(tmp_path / "run"), code=2)
    lines = [line for line in said.splitlines() if not line.startswith("WARNING: Unreadable image")]
    assert len(lines) == 1 and re.search("At most 1% of the images may be unreadable; got 16 of 1020", lines[0]), said
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["status"] == "failed" and info["data"]["corrupt"]["count"] == 16
    assert not list((tmp_path / "run" / "checkpoints").iterdir())

    # Fewer are borne, and the run lists those of both processes, each once, though both came to see all of them.
    for number in range(4, 8):
        for label in ("a", "b"):
            (data / "train" / label / f"{number}.png").write_bytes((data / "train/a/9.png").read_bytes())
    alone(*run, "--out", str(tmp_path / "run"), "--overwrite")
    corrupt = json.loads((tmp_path / "run" / "run.json").read_text())["data"]["corrupt"]
    assert sorted(corrupt["files"]) == sorted(str(data / f"train/{c}/{n}.png") for c in "ab" for n in range(4))
    assert corrupt["count"] == 8 and corrupt["files"] == list(corrupt["reasons"])


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_both_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), "nan", *DIGITS, "--batch_size", "32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = ["--trainer.devices", "2", "--out", str(tmp_path / "run")]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "The loss must stay finite; got NaN or infinity at step 10 " in done.stderr
