"""A run that was killed and resumed ends exactly like one that was not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from colours import NETWORK, colours, options
from vitdistill.errors import UserError
from vitdistill.training.module import TrainingModule
from vitdistill.verbs.maskedkd import maskedkd
from vitdistill.verbs.resume import resume

KILLED = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[4])
from few_digits import take_few
take_few()
from vitdistill.data.images.augment import Augment
from vitdistill.training.module import TrainingModule
from vitdistill.training.settings import Optim
from vitdistill.verbs.maskedkd import maskedkd

arguments, step, number = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
arguments["augment"] = Augment(**arguments["augment"])
arguments["optim"] = Optim(**arguments["optim"])
done = 0
original = TrainingModule.training_step

def step_then_die(self, batch, batch_idx):
    global done
    loss = original(self, batch, batch_idx)
    done += 1
    if done == step:
        os.kill(os.getpid(), number)
    return loss

TrainingModule.training_step = step_then_die
import torch
torch.set_num_threads(1)
maskedkd(**arguments)
"""


@pytest.fixture(scope="session")
def uninterrupted(teacher_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"out": tmp_path_factory.mktemp("whole") / "run"}


def run_until(arguments: dict[str, Any], out: Path, step: int, number: int) -> int:
    """Run in a process of its own that signals itself in the given step; returns its exit status."""
    from vitdistill.runs.directory import plain

    text = json.dumps(plain({**arguments, "out": str(out)}))
    command = [sys.executable, "-c", KILLED, text, str(step), str(number), str(Path(__file__).parents[1])]
    return subprocess.run(command, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


def assert_same(whole: Path, pieced: Path) -> None:
    for name in ("student.safetensors", "student_ema.safetensors", "metrics.csv", "student.json"):
        assert (whole / name).read_bytes() == (pieced / name).read_bytes(), name
    assert len((whole / "metrics.csv").read_text().splitlines()) == 1 + 3


# 5 steps an epoch: in the first epoch (no checkpoint yet), in the middle of the second, in the last step of all.
@pytest.mark.parametrize("step", [8, pytest.param(2, marks=pytest.mark.slow), pytest.param(15, marks=pytest.mark.slow)])
def test_a_killed_run_resumes_bit_for_bit(
    step: int, arguments: dict[str, Any], uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    whole = uninterrupted["out"]
    if not whole.exists():
        maskedkd(**arguments, out=str(whole))
    pieced = tmp_path / "run"
    assert run_until(arguments, pieced, step, signal.SIGKILL) == -signal.SIGKILL
    assert not (pieced / "student.safetensors").exists()
    assert json.loads((pieced / "run.json").read_text())["status"] == "running"
    resume(str(pieced))
    assert_same(whole, pieced)
    assert json.loads((pieced / "run.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_a_killed_run_in_parts_resumes_bit_for_bit(
    arguments: dict[str, Any], uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    """And draws what a run of whole steps draws, so that it learns the same."""
    whole, pieced = tmp_path / "whole", tmp_path / "pieced"
    in_parts = {**arguments, "pipeline": 3}
    maskedkd(**in_parts, out=str(whole))
    assert run_until(in_parts, pieced, 8, signal.SIGKILL) == -signal.SIGKILL
    resume(str(pieced))
    assert_same(whole, pieced)
    if not uninterrupted["out"].exists():
        maskedkd(**arguments, out=str(uninterrupted["out"]))
    of_parts, of_whole = (
        [[float(number) for number in row.split(",")] for row in (out / "metrics.csv").read_text().splitlines()[1:]]
        for out in (whole, uninterrupted["out"])
    )
    torch.testing.assert_close(torch.tensor(of_parts), torch.tensor(of_whole), rtol=1e-3, atol=0.5)


# In the second epoch: at its second step, where an accumulated one ends, and at its first batch of validation.
@pytest.mark.parametrize(
    ("number", "where", "call"),
    [
        (signal.SIGINT, "training_step", 7),
        (signal.SIGTERM, "training_step", 7),
        (signal.SIGTERM, "validation_step", 3),
    ],
)
def test_a_signal_saves_in_the_middle_of_an_epoch_and_resumes_bit_for_bit(
    number: int,
    where: str,
    call: int,
    arguments: dict[str, Any],
    uninterrupted: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = uninterrupted["out"]
    if not whole.exists():
        maskedkd(**arguments, out=str(whole))
    original, done = getattr(TrainingModule, where), []

    def step_then_interrupt(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        loss = original(self, batch, batch_idx)
        done.append(batch_idx)
        if len(done) == call:
            os.kill(os.getpid(), number)
        return loss

    monkeypatch.setattr(TrainingModule, where, step_then_interrupt)
    pieced = tmp_path / "run"
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="stopped; the checkpoint is written. Continue with: vitdistill resume"):
        maskedkd(**arguments, out=str(pieced))
    monkeypatch.undo()
    assert signal.getsignal(number) is before
    assert len(done) == call
    assert json.loads((pieced / "run.json").read_text())["status"] == "interrupted"
    resume(str(pieced))
    assert_same(whole, pieced)


def test_a_full_disk_leaves_the_earlier_checkpoint(
    arguments: dict[str, Any], uninterrupted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = uninterrupted["out"]
    if not whole.exists():
        maskedkd(**arguments, out=str(whole))
    pieced = tmp_path / "run"

    def open_on_full_disk(path: Path, mode: str) -> Any:
        full = ".last.ckpt." in path.name and (pieced / "checkpoints" / "last.ckpt").exists()
        return open("/dev/full" if full else path, mode)

    monkeypatch.setattr("vitdistill.files.open", open_on_full_disk, raising=False)
    with pytest.raises(UserError, match=r"last.ckpt must be writable; the earlier one is intact; got .*No space"):
        maskedkd(**arguments, out=str(pieced))
    monkeypatch.undo()
    assert not list(pieced.rglob("*.tmp"))
    resume(str(pieced))
    assert_same(whole, pieced)


def test_a_signal_in_the_export_leaves_out_the_report(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdistill.training import train

    def interrupted(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(*arguments)

    original = train.export_weights
    monkeypatch.setattr(train, "export_weights", interrupted)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match="stopped; the run is finished, but not its report: vitdistill report"):
        maskedkd(**{**arguments, "epochs": 1}, out=str(run))
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert (run / "student_ema.safetensors").exists() and not (run / "report.html").exists()


def test_a_run_whose_data_was_moved_ends_like_one_whose_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdistill.data.images.augment import Augment
    from vitdistill.errors import UserError
    from vitdistill.verbs.supervised import supervised

    data = colours(tmp_path / "data", {"red": "red", "blue": "blue"}, train=24)
    network = {"student": "vit_tiny_patch16_224", "student_args": NETWORK, "drop_path": 0.1}
    network |= {"augment": Augment(recipe="tiny", mixup=0.5)}  # random, as real runs are
    supervised(**options(data, tmp_path / "whole", epochs=2, **network))
    original, done = TrainingModule.training_step, []

    def step_then_interrupt(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        done.append(batch_idx)
        if len(done) == 6:  # of 8
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", step_then_interrupt)
    monkeypatch.setattr(sys, "argv", ["vitdistill", "supervised", "--data", str(data)])
    pieced = tmp_path / "pieced"
    with pytest.raises(KeyboardInterrupt):
        supervised(**options(data, pieced, epochs=2, **network))
    monkeypatch.undo()

    moved = data.rename(tmp_path / "moved")
    with pytest.raises(UserError):
        resume(str(pieced))  # where it was
    monkeypatch.setattr(sys, "argv", ["vitdistill", "resume", str(pieced), "--data", str(moved)])
    info = resume(str(pieced), data=str(moved))
    for name in ("metrics.csv", "student.safetensors", "student.json"):
        assert (pieced / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert info["status"] == "finished" and info["accuracy"]["top1"] is not None
    assert info["command"] == f"vitdistill supervised --data {data}"
    assert info["resumed_by"] == [f"vitdistill resume {pieced} --data {moved}"]
    assert str(moved) in (pieced / "config.yaml").read_text()


def test_resuming_with_another_configuration_names_the_keys(arguments: dict[str, Any], tmp_path: Path) -> None:
    from vitdistill.runs.directory import RunDirectory, plain

    config = plain(arguments)
    RunDirectory.prepare(tmp_path, "maskedkd", config, resume=False, overwrite=False).begin()
    changed = {**config, "keep": 0.25, "optim": {**config["optim"], "lr": 5.0}}
    with pytest.raises(UserError, match=r"keep \(was 0.8->0.4, is 0.25\), optim.lr \(was 0.001, is 5.0\)"):
        RunDirectory.prepare(tmp_path, "maskedkd", changed, resume=True, overwrite=False)


def test_what_does_not_change_the_result_may_change_on_resume(tmp_path: Path) -> None:
    from vitdistill.runs.directory import RunDirectory

    config = {"keep": 0.5, "loader": {"workers": 2}, "trainer": {"devices": 1}, "out": "a"}
    RunDirectory.prepare(tmp_path, "maskedkd", config, resume=False, overwrite=False).begin()
    other = {"keep": 0.5, "loader": {"workers": 4}, "trainer": {"devices": 1, "enable_progress_bar": False}, "out": "b"}
    RunDirectory.prepare(tmp_path, "maskedkd", other, resume=True, overwrite=False)
