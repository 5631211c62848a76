"""Snapshots of a student in training: when they are taken, what they hold, and that a resumed run leaves the same."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from colours import COLOURS, NETWORK, colours, options
from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.files import SNAPSHOTS, WEIGHTS
from vitdistill.methods.supervised import Supervised
from vitdistill.training.disk import footprint
from vitdistill.training.module import TrainingModule
from vitdistill.training.settings import Optim
from vitdistill.training.snapshots import snapshot_epochs, snapshot_file
from vitdistill.verbs.resume import resume
from vitdistill.verbs.supervised import supervised


@pytest.mark.parametrize(
    ("count", "epochs", "expected"),
    [
        (2, 300, (0, 300)),
        (6, 300, (0, 12, 48, 108, 192, 300)),
        (4, 4, (0, 1, 2, 4)),
        (5, 4, (0, 1, 2, 3, 4)),
        (0, 4, ()),
    ],
)
def test_epochs_of_snapshots(count: int, epochs: int, expected: tuple[int, ...]) -> None:
    assert snapshot_epochs(count, epochs) == expected


def test_snapshots_end_at_the_end_and_never_meet() -> None:
    for epochs in range(1, 40):
        for count in range(2, epochs + 2):
            found = snapshot_epochs(count, epochs)
            assert found[0] == 0 and found[-1] == epochs and list(found) == sorted(set(found)), (count, epochs)


def test_they_count_as_room_on_the_disk() -> None:
    method = Supervised(tiny("vit"))
    none, some = footprint(method, Optim()), footprint(method, Optim(), 3)
    assert some.total - none.total == some.most - none.most == 3 * none.exported


def test_a_number_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for count in (1, 6):
        with pytest.raises(UserError, match=r"--snapshots must lie between 2 and 5 \(start and end included\), not "):
            supervised(student="vit_tiny_patch16_224", **options("digits", tmp_path / "run", snapshots=count))


def test_a_resumed_run_leaves_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = colours(tmp_path / "data", {name: name for name in COLOURS})
    network: dict[str, Any] = {"student": "vit_tiny_patch16_224", "student_args": NETWORK}
    whole, pieced = tmp_path / "whole", tmp_path / "pieced"
    supervised(**network, **options(data, whole, snapshots=3))
    names = ["epoch-000.safetensors", "epoch-001.safetensors", "epoch-004.safetensors"]
    assert sorted(file.name for file in (whole / SNAPSHOTS).iterdir()) == names
    info = json.loads((whole / "run.json").read_text())
    assert SNAPSHOTS in info["files"]
    first, last = (load_file(snapshot_file(whole, epoch)) for epoch in (0, 4))
    final = load_file(whole / WEIGHTS)
    assert all((last[name] == final[name]).all() for name in final)
    assert any((first[name] != final[name]).any() for name in final)

    original, done = TrainingModule.training_step, []

    def step_then_interrupt(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        loss = original(self, batch, batch_idx)
        done.append(batch_idx)
        if len(done) == 3:  # the first step of the second epoch
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    monkeypatch.setattr(TrainingModule, "training_step", step_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        supervised(**network, **options(data, pieced, snapshots=3))
    monkeypatch.setattr(TrainingModule, "training_step", original)
    resume(str(pieced))
    assert sorted(file.name for file in (pieced / SNAPSHOTS).iterdir()) == names
    assert all((whole / SNAPSHOTS / name).read_bytes() == (pieced / SNAPSHOTS / name).read_bytes() for name in names)
