"""`maskedkd --linear_only`: a run in which a classifier trains and nothing else is written again and again."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from colours import NETWORK, options
from vitdistill.errors import UserError
from vitdistill.evaluation.trajectory import students_of
from vitdistill.models.build import build
from vitdistill.models.families.linear_only import FrozenBody
from vitdistill.models.families.vit import ViT
from vitdistill.models.record import ModelRecord, record_of
from vitdistill.runs.read import read_run
from vitdistill.training.checkpoints import read_checkpoint
from vitdistill.training.module import TrainingModule
from vitdistill.training.settings import Optim
from vitdistill.training.train import export_weights
from vitdistill.verbs.evaluate import evaluate
from vitdistill.verbs.export import export
from vitdistill.verbs.finetune import finetune
from vitdistill.verbs.maskedkd import maskedkd
from vitdistill.verbs.probe import probe
from vitdistill.verbs.resume import resume

BODY = {**NETWORK, "depth": 4, "num_classes": 0}
HEAD = {"head.weight", "head.bias"}


def source_of(folder: Path, seed: int = 0) -> Path:
    """A folder with a body whose weights are random, as good as any to read features from."""
    torch.manual_seed(seed)
    network = build("vit_tiny_patch16_224", args=BODY)
    folder.mkdir(exist_ok=True)
    record_of(network.net).write(folder)
    export_weights(network.net.state_dict(), folder / "student.safetensors", record_of(network.net))
    return folder


def asked(colour_run: Path, out: Path, **more: Any) -> dict[str, Any]:
    optim = Optim(name="momentum", lr=0.3, lr_batch=0, weight_decay=0.0, warmup_epochs=0, min_lr=0.0, ema=0.5)
    common = {"teacher": str(colour_run), "linear_only": True, "keep": 2, "criterion": "student", "optim": optim}
    return {**options(colour_run.parent / "data", out, epochs=3), **common, **more}


@pytest.fixture(scope="module")
def linear_run(colour_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linear")
    maskedkd(student=str(source_of(folder / "body")), **asked(colour_run, folder / "run", snapshots=2))
    return folder / "run"


def test_only_the_classifier_is_in_what_grows(linear_run: Path) -> None:
    info = json.loads((linear_run / "run.json").read_text())
    assert info["student"]["trained_params"] == 3 * (4 * 24 + 1) < info["student"]["params"] / 50
    assert info["accuracy"]["top1"] > 90
    for name in ("last", "best"):
        content = read_checkpoint(linear_run / "checkpoints" / f"{name}.ckpt")
        assert {key.removeprefix("method.student.net.") for key in content["state_dict"]} == HEAD
        assert set(content["vitdistill"]["ema"]) == HEAD
        assert len(content["optimizer_states"][0]["state"]) == 2
    body = load_file(linear_run / "checkpoints" / "body.safetensors")
    source = load_file(linear_run.parent / "body" / "student.safetensors")
    assert body.keys() == source.keys() and all(torch.equal(body[name], source[name]) for name in source)
    for name in ("student", "student_ema"):
        assert load_file(linear_run / f"{name}.safetensors").keys() == source.keys() | HEAD


def test_the_run_gives_its_student_back(linear_run: Path) -> None:
    run = read_run(linear_run)
    images = torch.randn(4, 3, 16, 16)
    exported, last, average = (run.student(which)(images).prediction for which in ("exported", "last", "ema"))
    assert torch.equal(exported, last) and not torch.equal(exported, average)
    assert isinstance(run.student("best"), FrozenBody)
    method = run.method()
    assert torch.equal(method.student(images).prediction, exported) and not method.student.trains_body
    again = evaluate(str(linear_run), json=True)
    assert again["top1"] == pytest.approx(run.result)


def test_its_body_is_probed_like_any_other(linear_run: Path, tmp_path: Path) -> None:
    found = probe(str(linear_run), out=str(tmp_path / "probed"), epochs=5, batch_size=8, json=True)
    assert evaluate(str(tmp_path / "probed"), json=True)["top1"] == pytest.approx(found["scores"]["top1"])


def test_its_snapshots_are_of_one_body(linear_run: Path) -> None:
    run = read_run(linear_run)
    first, last = students_of(run).values()
    images, found = torch.randn(4, 3, 16, 16), run.student()
    assert torch.equal(last(images).prediction, found(images).prediction)
    capture = found.saliency_capture()
    maps = [student.saliency(student(images, capture=capture)) for student in (first, last, found)]
    assert torch.equal(maps[0], maps[1]) and torch.equal(maps[1], maps[2])


def test_it_is_exported_with_our_own_record_where_timm_has_no_such_network(linear_run: Path, tmp_path: Path) -> None:
    result = export(str(linear_run), out=str(tmp_path / "student.safetensors"), json=True)
    assert result["max_difference"] == 0 and result["load"].startswith("vitdistill.build(")
    with pytest.raises(UserError, match="no networks with a classifier that reads the features .cls4. of several"):
        export(str(linear_run), format="hub", out=str(tmp_path / "hub"))


@pytest.mark.slow
def test_the_last_class_token_alone_is_exported_for_timm(colour_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = asked(colour_run, run, linear_features="cls", epochs=1, student=str(source_of(tmp_path / "body")))
    maskedkd(**more)
    result = export(str(run), out=str(tmp_path / "student.safetensors"), json=True)
    assert result["max_difference"] < 1e-5 and result["load"].startswith("timm.create_model(")
    assert type(build(f"vit_tiny_patch16_224@{tmp_path / 'student.safetensors'}")) is ViT
    assert ModelRecord.read(tmp_path).classes == ["blue", "green", "red"]


def same(whole: Path, pieced: Path) -> None:
    for name in ("student.safetensors", "student_ema.safetensors", "metrics.csv", "student.json"):
        assert (whole / name).read_bytes() == (pieced / name).read_bytes(), name


def test_a_stopped_run_goes_on_with_the_body_that_it_was_started_with(
    linear_run: Path, colour_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, although the source of the body has been trained anew in the meantime."""
    source, done, original = source_of(tmp_path / "body"), [], TrainingModule.training_step

    def step_then_stop(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        done.append(batch_idx)
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", step_then_stop)
    with pytest.raises(KeyboardInterrupt, match="the checkpoint is written"):
        maskedkd(student=str(source), **asked(colour_run, tmp_path / "run"))
    monkeypatch.undo()
    assert isinstance(read_run(tmp_path / "run").student("last"), FrozenBody)
    source_of(source, seed=1)
    resume(str(tmp_path / "run"))
    same(linear_run, tmp_path / "run")


def test_without_its_body_a_checkpoint_is_refused(linear_run: Path, tmp_path: Path) -> None:
    shutil.copytree(linear_run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "body.safetensors").unlink()
    with pytest.raises(UserError, match="need the body that was written at its start; got no .*body.safetensors"):
        read_run(tmp_path / "run").student("best")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"student": "vit_tiny_patch16_224"}, "needs a student with trained weights; got vit_tiny.*Add --pretrained"),
        ({"drop_path": 0.2}, "--drop_path has no effect unless --linear_only is false"),
        ({"optim": Optim(layer_decay=0.7)}, "--optim.layer_decay has no effect with --linear_only true; got 0.7"),
        ({"distill": "manifold"}, "only class scores can be learned.*got --distill manifold. Use --distill logits"),
        ({"linear_only": False, "linear_features": "cls"}, "--linear_features has no effect unless --linear_only is t"),
        ({"student_args": {"num_classes": 7}}, "--student_args.num_classes would not be used.*3 classes.*got 7"),
    ],
)
def test_what_a_frozen_student_cannot_do_is_refused(
    linear_run: Path, colour_run: Path, tmp_path: Path, more: dict[str, Any], words: str
) -> None:
    values = {**asked(colour_run, tmp_path / "run", student=str(linear_run.parent / "body")), **more}
    with pytest.raises(UserError, match=words) as error:
        maskedkd(**values)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_linear_only_student_is_no_start_of_another_training(
    linear_run: Path, colour_run: Path, tmp_path: Path
) -> None:
    values = asked(colour_run, tmp_path / "run", student=str(linear_run), linear_only=False)
    with pytest.raises(UserError, match="has a frozen body, which no other training changes.*Give --linear_only true"):
        maskedkd(**values)
    values = options(colour_run.parent / "data", tmp_path / "run", epochs=1)
    with pytest.raises(UserError, match="trains the whole network.*Fine-tune its body with --new_head"):
        finetune(str(linear_run), **values)


# --- processes of their own ----------------------------------------------------------------------------------------

DIGITS = [
    *("maskedkd", "--student", "digits-mae", "--teacher", "digits-teacher", "--data", "digits", "--epochs", "2"),
    *("--linear_only", "true", "--criterion", "student", "--augment.recipe", "none", "--optim.name", "momentum"),
    *("--optim.lr", "0.1", "--optim.lr_batch", "0", "--optim.warmup_epochs", "0", "--optim.ema", "0.9"),
    *("--trainer.accelerator", "cpu"),
]
KILLED = """
import os, signal, sys
from vitdistill.training.module import TrainingModule
from vitdistill.cli import main
done, original = [], TrainingModule.training_step
def step_then_die(self, batch, batch_idx):
    loss = original(self, batch, batch_idx)
    done.append(1)
    if len(done) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss
TrainingModule.training_step = step_then_die
sys.exit(main(sys.argv[1:]))
"""


def command(*words: str, code: tuple[str, ...] = ("-m", "vitdistill")) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *code, *words], env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, pieced = tmp_path / "whole", tmp_path / "pieced"
    assert command(*DIGITS, "--batch_size", "256", "--out", str(whole)).returncode == 0
    done = command(*DIGITS, "--batch_size", "256", "--out", str(pieced), code=("-c", KILLED))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert command("resume", str(pieced)).returncode == 0
    same(whole, pieced)


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert command(*DIGITS, "--batch_size", "256", "--out", str(one)).returncode == 0
    shared = ("--batch_size", "128", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    done = command(*DIGITS, *shared, "--out", str(two))
    assert done.returncode == 0, done.stderr
    for name in ("student", "student_ema"):
        expected = load_file(one / f"{name}.safetensors")
        for part, tensor in load_file(two / f"{name}.safetensors").items():
            torch.testing.assert_close(tensor, expected[part], rtol=1e-3, atol=1e-4, msg=part)
