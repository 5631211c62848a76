"""What a run will take: bytes as they come out, room on the disk, and time."""

import json
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tiny import tiny
from vitdistill.data.images.augment import Augment
from vitdistill.methods.mae import MAE
from vitdistill.methods.supervised import Supervised
from vitdistill.runs.directory import RunDirectory
from vitdistill.training import disk
from vitdistill.training.disk import Footprint, footprint, in_words, states_per_parameter, warn_of_full_disk
from vitdistill.training.estimate import Estimate, duration
from vitdistill.training.progress import ProgressBar
from vitdistill.training.settings import Optim
from vitdistill.verbs.supervised import supervised


@pytest.mark.parametrize(
    ("name", "states"),
    [("adamw", 2), ("sgd", 1), ("lion", 1), ("adafactor", 0.03), ("nosuch", 2)],
)
def test_states_of_an_optimizer(name: str, states: float) -> None:
    assert states_per_parameter(Optim(name=name)) == pytest.approx(states, abs=0.02)


def test_a_run_leaves_what_was_said_and_says_its_waste(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(Estimate, "SHORT", 0)
    monkeypatch.setattr(Estimate, "STEPS", 1)
    said: list[Footprint] = []
    monkeypatch.setattr("vitdistill.training.estimate.warn_of_full_disk", lambda written, run: said.append(written))
    run = tmp_path / "run"
    supervised(
        student="digits_vit_small",
        data="digits",
        out=str(run),
        epochs=2,
        batch_size=256,
        image_size=24,
        student_args={"embed_dim": 48, "depth": 1, "num_heads": 2, "patch_size": 8},
        augment=Augment(recipe="none"),
        optim=Optim(lr=1e-3, lr_batch=0, warmup_epochs=0, ema=0.9),
    )
    files = [*(run / "checkpoints").iterdir(), *run.glob("*.safetensors")]
    assert len(files) == 4
    assert said[0].total == pytest.approx(sum(file.stat().st_size for file in files), rel=0.1)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("about")]
    assert "1 min for 2 epochs (" in line and "images/s), validation included; " in line
    assert line.endswith(f"{in_words(said[0].total)} will be written in {run}")
    (note,) = json.loads((run / "run.json").read_text())["notes"]
    assert note.startswith("Images of 12 pixels feed the student")


def test_bytes_of_methods_by_their_parts() -> None:
    method = Supervised(tiny("vit"))
    numbers = sum(parameter.numel() for parameter in method.parameters())
    plain, averaged = (footprint(method, Optim(ema=ema)) for ema in (None, 0.9))
    assert plain.checkpoint == pytest.approx(4 * 3 * numbers, rel=0.001)
    assert plain.exported == 4 * numbers and plain.checkpoints == 2
    assert averaged.checkpoint - plain.checkpoint == averaged.exported - plain.exported == 4 * numbers
    assert plain.most == 3 * plain.checkpoint  # one is written beside the one that it replaces
    mae = MAE(tiny("vit", num_classes=0), decoder_depth=1, decoder_width=16)
    assert footprint(mae, Optim()).checkpoints == 1  # nothing says which is the best
    assert footprint(mae, Optim()).exported > sum(4 * p.numel() for p in mae.parameters())  # student, and both parts


def test_a_disk_without_room_is_said_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage(1_500_000_000))
    run = RunDirectory(tmp_path)
    warn_of_full_disk(Footprint(checkpoint=500_000_000, checkpoints=2, exported=200_000_000), run)
    assert not caplog.messages
    large = Footprint(checkpoint=600_000_000, checkpoints=2, exported=200_000_000)
    warn_of_full_disk(large, run)
    (line,) = caplog.messages
    assert "has 1.5 GB free, and the run will take up to 1.8 GB of it (2 checkpoints of 600 MB" in line
    caplog.clear()
    monkeypatch.setattr(
        Path, "glob", lambda self, pattern: [SimpleNamespace(stat=lambda: SimpleNamespace(st_size=3e8))]
    )
    warn_of_full_disk(large, run)  # a resumed run replaces its own checkpoint
    assert not caplog.messages


# --- time --------------------------------------------------------------------------------------------------------


class Training:
    """A training as the callback sees it, with a clock of its own: 0.5 s a step, and 100 s between epochs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, batches: int, epochs: int, **optim: Any):
        self.now, self.batches = 0.0, batches
        monkeypatch.setattr("vitdistill.training.estimate.time", SimpleNamespace(perf_counter=lambda: self.now))
        self.bar = ProgressBar(64, "images", None)
        written = Footprint(400_000_000, 2, 400_000_000)
        self.estimate = Estimate(self.bar, written, RunDirectory(tmp_path), validated=640)
        self.trainer: Any = SimpleNamespace(
            is_global_zero=True,
            current_epoch=0,
            num_training_batches=batches,
            num_val_batches=[10],
            check_val_every_n_epoch=1,
        )
        settings = SimpleNamespace(epochs=epochs, optim=Optim(**optim))
        method = SimpleNamespace(student=SimpleNamespace(trains_body=True))
        self.module = SimpleNamespace(
            settings=settings, device=torch.device("cpu"), _sampler=range(batches), method=method
        )

    def epoch(self) -> None:
        self.estimate.on_train_epoch_start(self.trainer, self.module)
        for number in range(self.batches):
            self.estimate.on_train_batch_start(self.trainer, self.module, None, number)
            self.now += 0.5
            self.estimate.on_train_batch_end(self.trainer, self.module, None, None, number)
        self.now += 100
        self.trainer.current_epoch += 1


@pytest.mark.usefixtures("unchecked")
def test_time_of_all_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """100 epochs of 240 steps; validation of 10 steps' images at a third of a step: 1.7 s an epoch."""
    training = Training(monkeypatch, tmp_path, batches=240, epochs=100)
    training.epoch()
    training.epoch()
    expected = (
        f"about 3 h 23 min for 100 epochs (128 images/s), validation included; 1.2 GB will be written in {tmp_path}"
    )
    assert capsys.readouterr().err == f"{expected}\n"  # once


@pytest.mark.usefixtures("unchecked")
def test_what_comes_between_epochs_is_measured_where_it_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Epochs of 10 steps: the third has the 23rd step, and 98 times 105 s are to come."""
    training = Training(monkeypatch, tmp_path, batches=10, epochs=100, ema=0.9)
    for _ in range(4):
        training.epoch()
    assert "about 2 h 51 min for the 98 epochs left" in capsys.readouterr().err


@pytest.mark.usefixtures("unchecked")
def test_short_runs_and_other_processes_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    Training(monkeypatch, tmp_path, batches=100, epochs=1).epoch()
    other = Training(monkeypatch, tmp_path, batches=1000, epochs=100)
    other.trainer.is_global_zero = False
    other.epoch()
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("unchecked")
def test_on_a_terminal_the_line_stands_above_the_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    training = Training(monkeypatch, tmp_path, batches=240, epochs=100)
    lines: list[str] = []
    training.bar.bar = SimpleNamespace()  # type: ignore[assignment]
    training.bar.console = SimpleNamespace(print=lambda line, **options: lines.append(line))  # type: ignore[assignment]
    training.epoch()
    assert lines[0].startswith("about 3 h 23 min") and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(61, "1 min"), (3570, "1 h 0 min"), (11400, "3 h 10 min"), (200_000, "2 days 8 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("size", "words"), [(12, "1 kB"), (272_560, "273 kB"), (2_700_000, "2.7 MB"), (48e9, "48 GB"), (1.2e12, "1.2 TB")]
)
def test_sizes(size: float, words: str) -> None:
    assert in_words(int(size)) == words
