"""A chain of runs: one command, each step built on earlier ones, skipped when finished and resumed when not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from colours import NETWORK, colours
from vitdistill.data.boxes.files import BoxFiles
from vitdistill.data.segments.files import SegmentFiles
from vitdistill.errors import UserError
from vitdistill.runs.read import Run
from vitdistill.training.module import TrainingModule
from vitdistill.verbs.chain import chain, read_chain
from vitdistill.verbs.steps import DataNow

pytestmark = pytest.mark.usefixtures("few_digits")

COMMON = {
    "student": "digits_vit_small",
    "epochs": 2,
    "batch_size": 48,
    "augment": {"recipe": "none"},
    "optim": {"lr": 2e-3, "lr_batch": 0, "warmup_epochs": 0},
}
STEPS: dict[str, Any] = {
    "big": {
        "verb": "mae",
        **COMMON,
        **{"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
        "student_args": {"embed_dim": 24, "depth": 2, "num_heads": 6},
    },
    "small": {
        "verb": "tinymim",
        "config": "small.yaml",
        "teacher": "{big}",
        "student_args": {"embed_dim": 12, "depth": 2, "num_heads": 2},
        "optim": {"lr": 1e-3},
    },
    "tuned": {
        "verb": "finetune",
        "model": "{small}",
        **{key: value for key, value in COMMON.items() if key != "student"},
    },
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(COMMON))
    return write(tmp_path, STEPS)


def write(folder: Path, steps: Any) -> Path:
    path = folder / "chain.yaml"
    path.write_text(yaml.safe_dump({"steps": steps}, sort_keys=False))
    return path


def test_configuration_files_are_merged_under_the_steps_own_options(recipe: Path) -> None:
    small = read_chain(recipe)["small"]
    assert small["epochs"] == 2 and small["optim"] == {"lr": 1e-3, "lr_batch": 0, "warmup_epochs": 0}
    assert "config" not in small


def test_a_chain_interrupted_in_the_middle_goes_on_exactly(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = chain(str(recipe), out=str(tmp_path / "whole"), data="digits")
    assert list(whole) == ["big", "small", "tuned"] and whole["tuned"]["accuracy"]["top1"] > 0

    original, steps = TrainingModule.training_step, []

    def interrupted(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        steps.append(batch_idx)
        if len(steps) == 10 + 2:  # 10 steps of the first run, then in the first epoch of the second
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        chain(str(recipe), out=str(tmp_path / "pieced"), data="digits")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert json.loads((tmp_path / "pieced" / "small" / "run.json").read_text())["status"] == "interrupted"
    # A step that was begun is checked before any other is run, not when its turn comes.
    anew = {**STEPS, "first": STEPS["big"], "small": {**STEPS["small"], "color_jitter": 0.0}}
    with pytest.raises(UserError, match=r"small is begun, but with other options.*changed color_jitter"):
        chain(str(write(tmp_path, {"first": anew.pop("first"), **anew})), out=str(tmp_path / "pieced"), data="digits")
    assert not (tmp_path / "pieced" / "first").exists()
    write(tmp_path, STEPS)
    capsys.readouterr()
    chain(str(recipe), out=str(tmp_path / "pieced"), data="digits")
    said = capsys.readouterr().out
    assert "big: finished before" in said and "small: tinymim, resumed" in said and "tuned: finetune\n" in said
    for name in STEPS:
        for file in ("student.safetensors", "metrics.csv"):
            got, expected = (tmp_path / run / name / file for run in ("pieced", "whole"))
            assert got.read_bytes() == expected.read_bytes(), (name, file)

    chain(str(recipe), out=str(tmp_path / "pieced"), data="digits")
    assert "tuned: finished before" in capsys.readouterr().out  # though it filled in how clips are taken

    changed = {**STEPS, "big": {**STEPS["big"], "mask_ratio": 0.5}}
    with pytest.raises(UserError, match=r"big is finished, but with other options.*changed mask_ratio.*--overwrite"):
        chain(str(write(tmp_path, changed)), out=str(tmp_path / "pieced"), data="digits")


@pytest.mark.slow
def test_a_chain_runs_on_two_processes(recipe: Path, tmp_path: Path) -> None:
    """Every process goes through the steps; the next begins when the first has written what it builds on."""
    two = {"trainer": {"devices": 2, "strategy": "ddp", "accelerator": "cpu"}}
    both = {name: {**step, **two, "batch_size": 128, "epochs": 1} for name, step in STEPS.items()}
    command = [sys.executable, "-m", "vitdistill", "chain", str(write(tmp_path, both)), "--data", "digits"]
    command += ["--out", str(tmp_path / "out"), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert [info["status"] for info in said.values()] == ["finished"] * 3
    assert all(len((tmp_path / "out" / name / "metrics.csv").read_text().splitlines()) == 2 for name in STEPS)
    # 1437 images in steps of 2 x 128: the processes shared them.
    assert (tmp_path / "out" / "small" / "metrics.csv").read_text().splitlines()[1].startswith("0,5,")


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ({}, "mapping `steps`"),
        ({"a": {"verb": "mea"}}, "Step a must name a verb.*Did you mean 'mae'"),
        ({"a": {"verb": "evaluate"}}, "Step a must name a verb"),
        ({"a": "mae"}, "Step a must name a verb"),
        ({"a": {"verb": "finetune"}}, "Step a: --model is required"),
        ({"a/b": {"verb": "mae"}}, "becomes a folder"),
        ({"small": {**STEPS["small"], "config": "none.yaml"}}, "configuration file must be readable"),
        ({"small": {"verb": "tinymim", "teacher": "{big}"}}, r"can only build on an earlier step; got \{big\}"),
        ({"big": STEPS["big"], "small": {"verb": "tinymim", "teacher": "{bug}"}}, "Did you mean 'big'"),
        ({"big": {**STEPS["big"], "out": "x"}}, "folder of its own"),
        ({"big": {**STEPS["big"], "mask_rato": 0.5}}, "Step big: There is no option mask_rato"),
    ],
)
def test_a_bad_recipe_is_refused_before_anything_runs(recipe: Path, tmp_path: Path, steps: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        chain(str(write(tmp_path, steps)), out=str(tmp_path / "out"), data="digits")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_finished_step_is_not_skipped_when_its_data_has_changed(tmp_path: Path) -> None:
    data = colours(tmp_path / "data", {"red": "red", "blue": "blue"})
    step = {"verb": "supervised", **{k: v for k, v in COMMON.items() if k != "student"}, "epochs": 1, "batch_size": 8}
    step |= {"student": "vit_tiny_patch16_224", "student_args": dict(NETWORK), "loader": {"workers": 0}}
    path, out = write(tmp_path, {"only": step}), str(tmp_path / "out")
    chain(str(path), out=out, data=str(data))
    assert chain(str(path), out=out, data=str(data))["only"]["status"] == "finished"
    (data / "train" / "red" / "0.png").unlink()
    with pytest.raises(UserError, match="only is finished, but on other data.* 15 images to train on, after 16"):
        chain(str(path), out=out, data=str(data))
    shutil.rmtree(data)  # what is gone cannot have changed
    assert chain(str(path), out=out, data=str(data))["only"]["status"] == "finished"


def test_data_is_described_anew_for_other_annotations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    described: list[dict[str, Any]] = []
    monkeypatch.setattr(DataNow, "_described", lambda _, kind, options: described.append(options))
    now, run, common = DataNow(), Run(path=tmp_path, name="run"), {"data": "scenes", "task": "segmentation"}
    for segments in (SegmentFiles(), SegmentFiles(classes=3), SegmentFiles()):
        now.changes(run, "supervised", {**common, "segments": segments})
    for boxes in (BoxFiles(split="VOC2007"), BoxFiles(split="07+12")):
        now.changes(run, "supervised", {**common, "task": "boxes", "boxes": boxes})
    assert len(described) == 4
