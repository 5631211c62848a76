"""Commands that are stopped by signals to all of their processes or some of them, and resumed."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from stopped_commands import Start
from vitdistill.cli import main

pytestmark = pytest.mark.slow

STEP = "vitdistill.training.module:TrainingModule.training_step"
VALIDATION = "vitdistill.training.module:TrainingModule.validation_step"
EXPORT = "vitdistill.training.train:export_weights"
SAVING = "vitdistill.training.checkpoints:write_atomically"
REPORT = "vitdistill.reporting.page:write_report"
NETWORK = [
    *("--student", "vit_tiny_patch16_224", "--image_size", "8", "--student_args.embed_dim", "12"),
    *("--student_args.depth", "1", "--student_args.num_heads", "2", "--student_args.patch_size", "4"),
]
TWO = ("--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--batch_size", "4")


@pytest.fixture(scope="session")
def words(noise_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command of `maskedkd` but for its --out: 4 steps an epoch, and 2 batches of validation."""
    teacher = tmp_path_factory.mktemp("teacher") / "run"
    rate = ["--optim.lr", "1e-3", "--optim.lr_batch", "0", "--optim.warmup_epochs", "0"]
    common = [*NETWORK, *rate, "--data", str(noise_folder), "--batch_size", "8", "--loggers", "csv", "--seed", "3"]
    assert main(["supervised", *common, "--epochs", "1", "--out", str(teacher)]) == 0
    return ["maskedkd", *common, "--teacher", str(teacher), "--epochs", "3", "--keep", "0.8->0.5", "--optim.ema", "0.9"]


@pytest.fixture(scope="session")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without an interruption."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main([*words, "--out", str(out)]) == 0
    return out


def status_of(run: Path) -> str:
    return json.loads((run / "run.json").read_text())["status"]


def assert_resumes(run: Path, whole: Path) -> None:
    """Resumed, it ends like one that was not interrupted."""
    assert main(["resume", str(run)]) == 0
    for name in ("metrics.csv", "student.safetensors", "student_ema.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert status_of(run) == "finished"


def assert_saved(ended: tuple[int, list[str]], run: Path, first: str) -> None:
    status, (said, last) = ended
    assert status == 130
    assert said == f"stopping after {first}; a second signal stops at once"
    assert last == f"stopped; the checkpoint is written. Continue with: vitdistill resume {run}"
    assert status_of(run) == "interrupted"


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(
    ("where", "call", "first"),
    [
        (STEP, 6, "this step and a checkpoint"),
        (STEP, 4, "this step and a checkpoint"),  # the last of an epoch
        (VALIDATION, 1, "this batch of the validation and a checkpoint"),
        (VALIDATION, 4, "this batch of the validation and a checkpoint"),  # the last of the second epoch
    ],
    ids=["step", "last-step", "validation", "last-validation"],
)
def test_a_signal_to_the_group_saves(
    where: str, call: int, first: str, workers: str, words: list[str], whole: Path, start: Start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = start(*words, "--out", str(run), "--loader.workers", workers, hold=(where, call))
    command.held()
    command.signal_like_timeout()
    assert_saved(command.end(), run, first)
    assert_resumes(run, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("to_all", [True, False], ids=["group", "parent"])
def test_one_signal_to_the_group_or_the_parent_alone_saves(
    number: int, to_all: bool, words: list[str], whole: Path, start: Start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = start(*words, "--out", str(run), "--loader.workers", "2", hold=(STEP, 7))
    command.held()
    (os.killpg if to_all else os.kill)(command.pid, number)
    assert_saved(command.end(), run, "this step and a checkpoint")
    assert_resumes(run, whole)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_second_signal_stops_at_once(
    workers: str, words: list[str], whole: Path, start: Start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = start(*words, "--out", str(run), "--loader.workers", workers, hold=(STEP, 7), HOLD_LONGER="600")
    command.held()
    command.signal_group(signal.SIGINT)
    command.line("stopping")
    checkpoint = (run / "checkpoints" / "last.ckpt").read_bytes()
    time.sleep(0.6)  # sooner it would be the first one
    command.signal_group(signal.SIGINT)
    status, (_, last) = command.end()
    assert (status, last) == (130, "stopped at once")
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == checkpoint
    assert_resumes(run, whole)


def test_a_signal_while_a_checkpoint_is_written(words: list[str], whole: Path, start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = start(*words, "--out", str(run), "--loader.workers", "2", hold=(SAVING, 2))
    command.held()
    command.signal_like_timeout()
    assert_saved(command.end(), run, "the epoch's checkpoint")
    assert_resumes(run, whole)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_signal_in_the_export_finishes_it(
    workers: str, words: list[str], whole: Path, start: Start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = start(*words, "--out", str(run), "--loader.workers", workers, hold=(EXPORT, 1))
    command.held()
    command.signal_like_timeout()
    status, (said, last) = command.end()
    assert status == 130
    assert said == "stopping after the export; a second signal stops at once"
    assert last == f"stopped; the run is finished, but not its report: vitdistill report {run}"
    assert status_of(run) == "finished" and not (run / "report.html").exists()
    assert (run / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()


def test_an_export_that_was_cut_off_is_resumed_without_training(
    words: list[str], whole: Path, start: Start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = start(*words, "--out", str(run), hold=(EXPORT, 2), HOLD_LONGER="600")
    command.held()
    command.signal_group(signal.SIGTERM)
    command.line("stopping")
    time.sleep(0.6)
    command.signal_group(signal.SIGTERM)
    assert command.end()[0] == 130
    assert status_of(run) == "running" and not (run / "student_ema.safetensors").exists()
    command = start("resume", str(run), hold=(STEP, 1))  # held where a step is trained, which none is
    status, (last,) = command.end()
    assert status == 0 and last.startswith("The run is in")
    assert_same_as_whole(run, whole)


def assert_same_as_whole(run: Path, whole: Path) -> None:
    for name in ("metrics.csv", "student.safetensors", "student_ema.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("where", ["vitdistill.verbs.common:make_teacher", STEP], ids=["teacher", "loader"])
def test_nothing_is_lost_before_the_first_step(where: str, words: list[str], start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    hold = ("vitdistill.data.loader:_Loader.__iter__", 1) if where == STEP else (where, 1)
    command = start(*words, "--out", str(run), "--loader.workers", "2", hold=hold)
    command.held()
    command.signal_like_timeout()
    status, (last,) = command.end()
    assert status == 130
    assert last == ("stopped before the first step; nothing is lost" if where == STEP else "stopped")
    assert main([*words, "--out", str(run)]) == 0  # the folder is free


def test_a_signal_in_the_report(words: list[str], start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = start(*words, "--out", str(run), hold=(REPORT, 1))
    command.held()
    command.signal_like_timeout()
    assert command.end() == (130, [f"stopped; the run is finished, but not its report: vitdistill report {run}"])
    assert main(["report", str(run)]) == 0


@pytest.mark.parametrize(("rank", "who"), [("0", "first"), ("1", "second"), ("1", "group")])
@pytest.mark.parametrize("where", [STEP, VALIDATION], ids=["step", "validation"])
def test_a_signal_to_one_of_two_processes_stops_both(
    where: str, rank: str, who: str, words: list[str], start: Start, tmp_path: Path
) -> None:
    run, uncut = tmp_path / "run", tmp_path / "whole"
    assert start(*words, *TWO, "--out", str(uncut)).end()[0] == 0
    command = start(*words, *TWO, "--out", str(run), "--loader.workers", "1", hold=(where, 3), HOLD_RANK=rank)
    held = command.held()
    assert (held == command.pid) == (rank == "0")
    if who == "group":
        command.signal_like_timeout()
    else:
        os.kill(held, signal.SIGTERM)
    status, lines = command.end()
    assert status == 130
    assert lines[-1] == f"stopped; the checkpoint is written. Continue with: vitdistill resume {run}"
    assert len(lines) == (1 if who == "second" else 2), lines
    assert status_of(run) == "interrupted"
    status, lines = start("resume", str(run)).end()
    assert status == 0, lines
    assert_same_as_whole(run, uncut)


def test_a_second_signal_to_two_processes_stops_at_once(words: list[str], start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = start(*words, *TWO, "--out", str(run), hold=(STEP, 6), HOLD_LONGER="600")
    command.held()
    command.signal_group(signal.SIGTERM)
    command.line("stopping")
    time.sleep(0.6)
    command.signal_group(signal.SIGTERM)
    status, (_, last) = command.end()
    assert (status, last) == (130, "stopped at once")


def test_workers_end_with_a_training_that_dies(words: list[str], start: Start, tmp_path: Path) -> None:
    command = start(*words, "--out", str(tmp_path / "run"), "--loader.workers", "2", hold=(STEP, 6))
    command.held()
    os.kill(command.pid, signal.SIGKILL)
    assert command.end() == (-signal.SIGKILL, [])  # which waits until nobody can write to stderr any more


def test_an_evaluation_ends_at_once(words: list[str], whole: Path, noise_folder: Path, start: Start) -> None:
    arguments = ["evaluate", str(whole), "--data", str(noise_folder), "--workers", "2"]
    command = start(*arguments, hold=("vitdistill.data.device:OnDevice.eval", 1))
    command.held()
    command.signal_like_timeout()
    assert command.end() == (130, ["stopped"])


def test_a_chain_stops_and_goes_on(noise_folder: Path, start: Start, tmp_path: Path) -> None:
    recipe, out = tmp_path / "chain.yaml", tmp_path / "runs"
    network = dict(zip((word.removeprefix("--") for word in NETWORK[::2]), NETWORK[1::2], strict=True))
    options = "".join(f"    {name}: {value}\n" for name, value in network.items() if "." not in name)
    arguments = "".join(f"      {n.split('.')[1]}: {v}\n" for n, v in network.items() if "." in n)
    step = f"    verb: supervised\n    epochs: 1\n    batch_size: 8\n{options}    student_args:\n{arguments}"
    recipe.write_text(f"steps:\n  one:\n{step}  two:\n{step}")
    chain = ["chain", str(recipe), "--data", str(noise_folder), "--out", str(out)]
    command = start(*chain, hold=(STEP, 6))
    command.held()
    command.signal_like_timeout()
    status, lines = command.end()
    assert status == 130
    assert [line.partition(";")[0] for line in lines[-2:]] == ["stopping after this step and a checkpoint", "stopped"]
    assert (status_of(out / "one"), status_of(out / "two")) == ("finished", "interrupted")
    assert main(chain) == 0
