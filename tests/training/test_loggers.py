"""Loggers by flag: what is refused, and what W&B and MLflow are told, offline."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from vitdistill.cli import main
from vitdistill.data.images.augment import Augment
from vitdistill.errors import UserError
from vitdistill.training import loggers
from vitdistill.training.loggers import Services, logger_names, require_loggers
from vitdistill.training.module import TrainingModule
from vitdistill.training.settings import Optim
from vitdistill.verbs.resume import resume
from vitdistill.verbs.supervised import supervised


def options(out: Path, names: str) -> dict[str, Any]:
    return {
        "student": "digits_vit_small",
        "student_args": {"embed_dim": 12, "depth": 1, "num_heads": 2},
        "data": "digits",
        "out": str(out),
        "epochs": 2,
        "batch_size": 512,
        "augment": Augment(recipe="none"),
        "optim": Optim(lr=1e-3, lr_batch=0, warmup_epochs=0),
        "loggers": names,
    }


def interrupted(out: Path, names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped in its second epoch."""
    original = TrainingModule.training_step

    def step(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingModule, "training_step", step)
        with pytest.raises(KeyboardInterrupt):
            supervised(**options(out, names))


def recorded(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text())


def test_names_are_read_and_refused() -> None:
    assert logger_names("wandb, tensorboard,wandb") == ("wandb", "tensorboard")
    with pytest.raises(UserError, match=r"must be some of tensorboard, csv, wandb, mlflow; got 'wandv'. Did you mean"):
        logger_names("tensorboard,wandv")


def test_refusals_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["supervised", "--student", "digits_vit_small", "--data", "digits", "--out", str(tmp_path / "run")]
    assert main([*words, "--trainer.logger", "wandb"]) == 2
    assert capsys.readouterr().err == "error: --trainer.logger is set by vitdistill. Use --loggers\n"
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    assert main([*words, "--loggers", "tensorboard,mlflow"]) == 2
    assert "needs mlflow; got no module 'mlflow'. Install it with pip install 'vitdistill[loggers]'" in (
        capsys.readouterr().err
    )
    require_loggers("tensorboard,csv")
    assert not (tmp_path / "run").exists()


def test_mlflow_gets_one_run_with_the_configuration_every_epoch_and_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    out, store = tmp_path / "run", f"file:{tmp_path / 'store'}"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    interrupted(out, "csv,mlflow", monkeypatch)
    assert not (out / "tensorboard").exists()
    client = mlflow.MlflowClient(store)
    identity = recorded(out)["loggers"]["mlflow"]
    assert client.get_run(identity).info.status == "KILLED"
    supervised(**options(out, "tensorboard,mlflow"), resume=True)  # where numbers go may change
    assert any((out / "tensorboard").iterdir())
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert (run.info.run_id, run.info.status, run.info.run_name) == (identity, "FINISHED", "run")
    assert run.data.params["optim/lr"] == "0.001" and run.data.params["student"] == "digits_vit_small"
    history = client.get_metric_history(identity, "val/top1")
    rows = [line.split(",") for line in (out / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("val/top1")
    assert [(each.step, each.value) for each in history] == [(int(row[1]), float(row[column])) for row in rows[1:]]
    info = recorded(out)
    assert run.data.metrics["accuracy/top1"] == info["accuracy"]["top1"]
    assert run.data.metrics["cost/student_gmacs_per_image"] == info["cost"]["student_gmacs_per_image"]


def test_a_service_that_fails_costs_one_line_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'store'}")

    def down(*_args: Any, **_options: Any) -> None:
        raise ConnectionError("the server is down")

    monkeypatch.setattr(MLFlowLogger, "log_metrics", down)
    assert supervised(**options(tmp_path / "run", "mlflow"))["status"] == "finished"
    said = [record.getMessage() for record in caplog.records if "the server is down" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("--loggers mlflow failed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://there")
    with pytest.raises(UserError, match="--loggers mlflow must be usable; got .*MLFLOW_TRACKING_URI"):
        supervised(**options(tmp_path / "other", "mlflow"))
    assert recorded(tmp_path / "other")["status"] == "failed"


def test_wandb_without_an_account_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(type(wandb.api), "api_key", None)
    with pytest.raises(UserError, match="needs an account; got no API key. Log in with `wandb login`"):
        Services(("wandb",), None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_wandb_offline_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "run"
    interrupted(out, "tensorboard,wandb", monkeypatch)
    identity = recorded(out)["loggers"]["wandb"]
    resume(str(out))
    assert recorded(out)["loggers"]["wandb"] == identity and wandb.run is None
    files = sorted((out / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    assert len(files) == 2, "one part for each time, of one run"
    written = b"".join(file.read_bytes() for file in files)
    for words in (b"val/top1", b"accuracy/top1", b"cost/student_gmacs_per_image", b"digits_vit_small"):
        assert words in written, words
    assert "wandb" in recorded(out)["files"]
