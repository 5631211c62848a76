"""`vitdistill dino` as a user goes: train, judge the average, go on; exact resumption; refusals in one line."""

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from colours import NETWORK, colours, options
from killed_runs import kill
from run_reports import reports
from vitdistill.data.images.augment import Augment
from vitdistill.data.images.views import MultiCrop
from vitdistill.errors import UserError
from vitdistill.methods.options import DinoHead
from vitdistill.models.build import build
from vitdistill.runs.read import read_run
from vitdistill.training.checkpoints import read_checkpoint
from vitdistill.training.settings import Optim
from vitdistill.verbs.dino import dino
from vitdistill.verbs.finetune import finetune
from vitdistill.verbs.knn import knn
from vitdistill.verbs.probe import probe
from vitdistill.verbs.resume import resume
from vitdistill.verbs.signatures import options_of

SIZES = {**NETWORK, "patch_size": 4}
HEAD = DinoHead(outputs=32, hidden=16, bottleneck=8)
SMALL: dict[str, Any] = {
    "student": "vit_tiny_patch16_224",
    "student_args": SIZES,
    "views": MultiCrop(locals=2),
    "head": HEAD,
    "keep": "1.0->0.5",
    "augment": Augment(recipe="pretrain"),
    "momentum": 0.9,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colours(tmp_path_factory.mktemp("data") / "colours", {"red": "red", "blue": "blue"}, train=24)


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    out = data.parent / "run"
    with reports():
        dino(**options(data, out, **{"epochs": 2, **SMALL}))
    return out


# --- a run --------------------


def test_a_run_says_what_it_did(run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    columns = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    for name in ("train/dino", "teacher/entropy", "teacher/kl_uniform", "teacher/agreement", "val/loss", "keep"):
        assert name in columns
    assert "val/top1" not in columns and info["status"] == "finished" and info["tokens"] == {"kept": 8, "of": 16}
    cost = info["cost"]
    assert cost["teacher_gmacs_full_per_image"] == pytest.approx(2 * cost["student_gmacs_full_per_image"])
    assert cost["student_gmacs_per_image"] > 2 * cost["student_gmacs_full_per_image"]
    assert 0 < cost["saved_fraction"] < 0.5
    page = (run / "report.html").read_text()
    assert "Entropy of the teacher" in page and "Distance of their mean from uniform" in page


def test_the_runs_network_is_the_average_and_the_trained_one_is_beside_it(run: Path) -> None:
    state = read_checkpoint(read_run(run).last_checkpoint)["state_dict"]
    average, trained = load_file(run / "student.safetensors"), load_file(run / "dino_student.safetensors")
    for name, value in average.items():
        assert torch.equal(value, state[f"method.average.backbone.net.{name}"])
        assert torch.equal(trained[name], state[f"method.student.net.{name}"])
    assert not torch.equal(average["norm.weight"], trained["norm.weight"])
    network = build(f"vit_tiny_patch16_224@{run / 'dino_student.safetensors'}")  # the file knows its sizes
    assert network.grid.count == 16 and network.num_classes == 0
    assert torch.equal(build(str(run)).net.norm.weight, average["norm.weight"])


@pytest.mark.slow
def test_knn_probe_and_fine_tuning_take_the_run(run: Path, data: Path, tmp_path: Path) -> None:
    assert knn(str(run), data=str(data), k=5)["scores"][0]["top1"] >= 50
    assert probe(str(run), data=str(data), epochs=5, lr=0.1)["scores"]["top1"] >= 50
    info = finetune(str(run), **options(data, tmp_path / "tuned", epochs=1, drop_path=0.0))
    assert info["accuracy"]["top1"] >= 50


def test_the_method_of_a_run_is_rebuilt_as_training_left_it(run: Path) -> None:
    method = read_run(run).method()
    trained = read_checkpoint(read_run(run).last_checkpoint)["state_dict"]
    for key, value in method.state_dict().items():
        assert torch.equal(value, trained[f"method.{key}"]), key


def test_defaults_are_the_published_recipe_for_100_epochs() -> None:
    found = {name: option.default for name, option in options_of("dino").items()}
    optim, views = found["optim"], found["views"]
    assert (found["epochs"], found["batch_size"], found["drop_path"], found["keep"]) == (100, 64, 0.1, 1.0)
    assert (optim.lr, optim.lr_batch, optim.min_lr, optim.warmup_epochs, optim.clip_each) == (5e-4, 256, 1e-6, 10, 3.0)
    assert (optim.weight_decay, optim.weight_decay_end, optim.warmup_lr, optim.name) == (0.04, 0.4, 0.0, "adamw")
    assert (found["momentum"], found["teacher_temperature"], found["freeze_last_epochs"]) == (0.996, 0.04, 1)
    assert (views.globals, views.locals, found["head"]) == (2, 8, DinoHead(65536, 2048, 256, True))


def test_a_checkpoint_of_dinos_authors_gives_the_teachers_backbone(run: Path, tmp_path: Path) -> None:
    average, trained = load_file(run / "student.safetensors"), load_file(run / "dino_student.safetensors")
    head = {"head.mlp.0.weight": torch.randn(16, 24), "head.last_layer.weight_v": torch.randn(32, 8)}
    content = {
        "student": {
            f"module.{'backbone.' if name in trained else ''}{name}": t for name, t in (trained | head).items()
        },
        "teacher": {f"{'backbone.' if name in average else ''}{name}": t for name, t in (average | head).items()},
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", out_dim=65536),
        "fp16_scaler": None,
        "dino_loss": {"center": torch.zeros(1, 32)},
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    network = build(f"vit_tiny_patch16_224@{tmp_path / 'checkpoint.pth'}", args={**SIZES, "num_classes": 0})
    assert all(torch.equal(value, average[name]) for name, value in network.net.state_dict().items())


# --- resuming --------------------

EVERYTHING = {
    **SMALL,
    "criterion": "student+random",
    "drop_path": 0.2,
    "first_teacher_temperature": 0.03,
    "warmup_temperature_epochs": 2,
    "freeze_last_epochs": 1.5,
    "optim": Optim(lr=1e-3, lr_batch=0, warmup_epochs=1, weight_decay_end=0.2, accumulate=2, clip_each=0.1, ema=0.8),
}
FILES = ("student.safetensors", "dino_student.safetensors", "student_ema.safetensors", "metrics.csv", "student.json")


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the second epoch, and, another run, saved in the middle of it by a signal."""
    from vitdistill.training.module import TrainingModule

    arguments = options(data, tmp_path / "whole", **{"epochs": 3, **EVERYTHING})
    dino(**arguments)
    killed, stopped = tmp_path / "killed", tmp_path / "stopped"
    kill("dino", {**arguments, "out": str(killed)}, step=6)

    original, done = TrainingModule.training_step, []

    def step_then_interrupt(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        done.append(batch_idx)
        if len(done) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", step_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        dino(**{**arguments, "out": str(stopped)})
    monkeypatch.undo()
    for pieced in (killed, stopped):
        resume(str(pieced))
        for name in FILES:
            assert (tmp_path / "whole" / name).read_bytes() == (pieced / name).read_bytes(), name


# --- bad input --------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"views": MultiCrop(globals=1, locals=0)}, "needs at least two, one of them large; got --views.globals 1"),
        (
            {"views": MultiCrop(local_size=6)},
            "patches of 4x4 pixels must fill the small crops; got --views.local_size 6",
        ),
        ({"views": MultiCrop(local_size=512)}, "no larger than the large ones.*got --views.local_size 512"),
        (
            {"views": MultiCrop(locals=0, local_size=8)},
            "--views.local_size has no effect unless --views.locals is above 0",
        ),
        ({"freeze_last_epochs": -1}, "--freeze_last_epochs must lie between 0 and the epochs, .*; got -1"),
        ({"teacher_temperature": 0.0}, "teacher_temperature must be positive; got 0.0"),
        ({"momentum": 1.5}, r"momentum must lie in \[0, 1\); got 1.5"),
        ({"drop_path": 2.0}, r"drop_path must lie in \[0, 1\); got 2.0"),
        ({"keep": 0.5, "criterion": "network"}, "--criterion network needs a third network. Name it with --network"),
        ({"views": MultiCrop(locals=-1)}, "--views.locals must be 0 or more, not -1"),
        ({"augment": Augment(recipe="pretrain", scale=0.5)}, "--augment.scale has no effect on several crops"),
        ({"augment": Augment(recipe="deit")}, "Only labelled images can be mixed"),
        ({"student_args": {**SIZES, "drop_path_rate": 0.1}}, "drop_path_rate is set by --drop_path"),
        ({"first_teacher_temperature": 0.03}, "has no effect unless --warmup_temperature_epochs is above 0"),
        ({"network": "vit_tiny_patch16_224"}, "--network has no effect unless --criterion is network"),
        ({"optim": Optim(clip_each=-1.0)}, "--optim.clip_each must be positive"),
        ({"student": "moving_digits_vit_small", "student_args": None}, "must see images"),
        ({"data": "moving_digits"}, "Several crops are made of images; got videos"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    changed: dict[str, Any], words: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words) as error:
        dino(**{**options(data, tmp_path / "run", **SMALL), **changed})
    assert "\n" not in str(error.value)
