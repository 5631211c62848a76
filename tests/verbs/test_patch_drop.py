"""`--patch_drop` of the verbs `supervised` and `finetune`: what is refused, what a run says of it, and going on."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from trained_runs import TINY
from vitdistill.cli import main
from vitdistill.data.images.augment import Augment
from vitdistill.errors import UserError
from vitdistill.methods.supervised import Supervised
from vitdistill.reporting.page import rows_of
from vitdistill.runs.read import read_run, read_runs
from vitdistill.training.settings import Optim
from vitdistill.verbs.finetune import finetune
from vitdistill.verbs.resume import resume
from vitdistill.verbs.supervised import supervised


@pytest.fixture
def options() -> dict[str, Any]:
    return {
        "student": "digits_vit_small",
        "student_args": dict(TINY),
        "data": "digits",
        "epochs": 1,
        "batch_size": 256,
        "augment": Augment(recipe="none"),
        "optim": Optim(lr=1e-3, lr_batch=0, warmup_epochs=0),
        "patch_drop": 0.5,
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("supervised --student digits_vit_small --patch_drop 1", r"patch_drop must lie in \[0, 1\); got 1"),
        ("finetune digits-mae --patch_drop -0.5", r"patch_drop must lie in \[0, 1\); got -0.5"),
        (
            "supervised --student digits_vit_small --student_args.patch_drop_rate 0.5",
            "--student_args.patch_drop_rate is set by --patch_drop; got 0.5. Use --patch_drop",
        ),
        (
            "finetune digits-mae --model_args.patch_drop_rate 0.5 --patch_drop 0.5",
            "--model_args.patch_drop_rate is set by --patch_drop; got 0.5. Use --patch_drop",
        ),
        ("finetune digits-mae --task actions --patch_drop 0.5", "--patch_drop has no effect unless --task is class"),
    ],
    ids=["all", "negative", "timm's of a student", "timm's of a model", "actions"],
)
def test_what_is_refused_before_training(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line.split(), "--data", "digits", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert pytest.RaisesExc(UserError, match=message).matches(UserError(error)), error


def test_a_run_tells_the_patches_of_its_steps_and_the_cost_of_the_whole_network(
    options: dict[str, Any], tmp_path: Path
) -> None:
    info = supervised(**options, out=str(tmp_path / "half"))
    assert info["tokens"] == {"kept": 18, "of": 36}
    network = read_run(tmp_path / "half").student()
    cost = {"student_gmacs_per_image": network.macs(18).total / 1e9}
    cost["student_gmacs_full_per_image"] = network.macs().total / 1e9
    assert info["cost"] == cost and cost["student_gmacs_per_image"] < 0.6 * cost["student_gmacs_full_per_image"]
    (row,) = rows_of(read_runs([tmp_path / "half"]))
    assert (row["patches"], row["teacher"]) == ("18 of 36", "none")
    header, values = ((tmp_path / "half" / "metrics.csv").read_text().splitlines())[:2]
    assert dict(zip(header.split(","), values.split(","), strict=True))["keep"] == "18"
    rebuilt = read_run(tmp_path / "half").method()
    assert isinstance(rebuilt, Supervised) and rebuilt.patch_drop == 0.5
    assert "patch_drop_rate" not in (tmp_path / "half" / "student.json").read_text()


@pytest.mark.slow
def test_fine_tuning_goes_by_the_same_rules(options: dict[str, Any], tmp_path: Path) -> None:
    supervised(**options, out=str(tmp_path / "half"))
    tuned = {name: value for name, value in options.items() if not name.startswith("student")}
    tuned |= {"model": str(tmp_path / "half"), "drop_path": 0.0}
    assert finetune(**tuned, out=str(tmp_path / "tuned"))["tokens"] == {"kept": 18, "of": 36}
    whole = finetune(**{**tuned, "patch_drop": 0.0}, out=str(tmp_path / "whole"))
    assert whole["tokens"] is None and "keep" not in (tmp_path / "whole" / "metrics.csv").read_text()
    assert whole["cost"]["student_gmacs_per_image"] == whole["cost"]["student_gmacs_full_per_image"]


@pytest.mark.slow
def test_a_run_that_was_stopped_draws_the_same_patches_when_it_goes_on(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options |= {"epochs": 2, "drop_path": 0.2}
    supervised(**options, out=str(tmp_path / "whole"))
    original, drawn = Supervised._draw, []

    def draw_then_stop(self: Supervised, inputs: Any) -> Any:
        drawn.append(original(self, inputs))
        if len(drawn) == 7:  # of five steps an epoch
            os.kill(os.getpid(), signal.SIGINT)
        return drawn[-1]

    monkeypatch.setattr(Supervised, "_draw", draw_then_stop)
    with pytest.raises(KeyboardInterrupt):
        supervised(**options, out=str(tmp_path / "pieced"))
    monkeypatch.undo()
    assert json.loads((tmp_path / "pieced" / "run.json").read_text())["status"] == "interrupted"
    resume(str(tmp_path / "pieced"))
    for name in ("student.safetensors", "metrics.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "pieced" / name).read_bytes(), name
