"""What tasks are trained with where nothing else is said: of the command line, of configurations, and in Python."""

from pathlib import Path
from typing import Any

import pytest

from sounds import class_folders
from vitdistill.runs.directory import plain
from vitdistill.tasks import TASKS, default_options
from vitdistill.tasks import test_batch_of as batch_of
from vitdistill.training.settings import Optim
from vitdistill.verbs.job import trains
from vitdistill.verbs.parser import parse, parse_config
from vitdistill.verbs.signatures import options_for, options_of

CASES = {
    ("supervised", "classification", "digits"): (300, 128, "tiny", Optim()),
    ("supervised", "boxes", "/data/VOCdevkit"): (
        *(50, 2, "none"),
        Optim(lr=5e-5, lr_batch=16, weight_decay=1e-4, clip=0.1, warmup_epochs=0, min_lr=1e-7),
    ),
    ("maskedkd", "segmentation", "/data/ade"): (
        *(64, 8, "photometric"),
        Optim(lr=1e-4, lr_batch=16, schedule="poly", power=1.0, warmup_epochs=1, min_lr=0.0),
    ),
    ("finetune", "segmentation", "scenes"): (
        *(24, 16, "none"),
        Optim(lr=3e-3, lr_batch=16, clip=1.0, warmup_epochs=2, min_lr=1e-6),
    ),
    ("finetune", "actions", "/data/ava"): (
        *(100, 128, "flip"),
        Optim(lr=5e-4, lr_batch=256, layer_decay=0.65, warmup_epochs=5, min_lr=1e-6),
    ),
    ("maskedkd", "classification", "sounds"): (
        *(20, 25, "sound"),
        Optim(lr=1e-3, lr_batch=25, clip=1.0, warmup_epochs=2),
    ),
}


def words(verb: str, task: str, data: str) -> list[str]:
    model = ["vit_tiny_patch16_224"] if verb == "finetune" else ["--student", "vit_tiny_patch16_224"]
    return [*model, "--task", task, "--data", data, "--out", "x"]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_values_are_those_of_the_task_and_its_data(case: tuple[str, str, str]) -> None:
    epochs, batch, recipe, optim = CASES[case]
    values = parse(case[0], words(*case))
    assert (values["epochs"], values["batch_size"], values["augment"].recipe) == (epochs, batch, recipe)
    assert values["optim"] == optim


@pytest.mark.parametrize("out", ["data", "task"])
def test_a_value_is_no_option(out: str) -> None:
    values = parse("supervised", [*words("supervised", "boxes", "scenes")[:-1], out, "--seed", "1"])
    assert (values["out"], values["epochs"], values["batch_size"], values["optim"].lr) == (out, 40, 8, 1e-3)


def test_a_task_that_is_no_name_has_no_defaults() -> None:
    assert options_for("supervised", {"task": ["boxes"]}) == options_of("supervised")


@pytest.mark.parametrize("address", ["{}", "esc50:{}?fold=1", "{}?fold=1"])
def test_sounds_are_trained_as_ast_on_esc50(address: str, tmp_path: Path) -> None:
    class_folders(tmp_path, 1, 1)
    if "fold" in address:
        (tmp_path / "meta").mkdir()
        (tmp_path / "meta" / "esc50.csv").write_text("filename,fold,target,category\n")
    values = parse("finetune", words("finetune", "classification", address.format(tmp_path)))
    optim = values["optim"]
    assert (values["epochs"], values["batch_size"], values["drop_path"]) == (25, 48, 0.0)
    assert (optim.name, optim.betas, optim.lr, optim.lr_batch) == ("adam", (0.95, 0.999), 1e-4, 0)
    assert (optim.schedule, optim.milestones[0], optim.decay_rate) == ("multistep", 5, 0.85)
    assert values["augment"].resolved().smoothing == 0 and values["augment"].freq_mask is None


def test_what_is_given_wins_also_where_it_is_another_tasks_default(tmp_path: Path) -> None:
    config = tmp_path / "boxes.yaml"
    config.write_text("task: boxes\nbatch_size: 128\noptim: {clip: null, lr: 0.5}\n")
    given = ["--student", "yolos_tiny", "--data", "/data/VOCdevkit", "--out", "x"]
    values = parse("supervised", [*given, "--config", str(config), "--optim.lr", "0.25", "--epochs=300"])
    optim = values["optim"]
    assert (values["batch_size"], values["epochs"], optim.lr, optim.clip) == (128, 300, 0.25, None)
    assert (optim.lr_batch, optim.min_lr) == (16, 1e-7)  # of the task that the configuration names
    assert parse("supervised", [*given, "--config", str(config), "--task=segmentation"])["epochs"] == 64


def test_a_recipe_that_is_named_is_taken_whole() -> None:
    values = parse("supervised", [*words("supervised", "segmentation", "/data/ade"), "--augment.recipe", "none"])
    assert values["augment"].resolved().hflip == 0
    values = parse("supervised", [*words("supervised", "segmentation", "/data/ade"), "--augment.hflip", "0"])
    options = values["augment"].resolved()
    assert (options.hflip, options.color_jitter, options.scale) == (0, 0.5, 1)


def test_a_configuration_that_says_everything_is_not_changed() -> None:
    values = parse("supervised", words("supervised", "classification", "digits"))
    assert parse_config("supervised", {**plain(values), "task": "boxes"})["batch_size"] == 128


def test_python_has_the_same_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("vitdistill.verbs.job._train", lambda verb, function, values, **_: seen.update(values) or {})

    def supervised() -> None:
        """Stands for the verb."""

    trains()(supervised)(student="yolos_tiny", data="scenes", task="boxes", out="x", optim=Optim(lr=1.0))
    assert (seen["batch_size"], seen["drop_path"], seen["augment"].recipe) == (8, 0.0, "none")
    assert seen["optim"] == Optim(lr=1.0)  # a group that is given is given whole


@pytest.mark.parametrize("task", TASKS)
def test_every_value_is_of_an_option_that_training_shares(task: str) -> None:
    for data in ("sounds", "scenes", "/data/x", None):
        own = default_options(task, data)
        assert set(own) <= {"epochs", "batch_size", "augment", "optim", "drop_path"}
        assert options_for("finetune", {"task": task, "data": data}).keys() == options_of("finetune").keys()
    assert options_for("tinymim", {"task": "boxes"}) == options_of("tinymim")


def test_help_shows_the_values_of_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    for said, expected in ({}, "default: 128"), ({"task": "boxes"}, "default: 2"):
        with pytest.raises(SystemExit):
            parse("supervised", [*(f"--{name}={value}" for name, value in said.items()), "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert f"per device and step. (type: int, {expected})" in text


def test_large_samples_are_tested_few_at_a_time() -> None:
    found = {task: batch_of(task, 128) for task in TASKS}
    assert found == {"classification": 128, "actions": 128, "boxes": 8, "segmentation": 8}
