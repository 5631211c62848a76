"""Text that should name a model and does not: one line that says what is there."""

from pathlib import Path

import pytest
import timm

from vitdistill.cli import main
from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.models.names import OURS, REGISTERED, absolute_model, check_model, check_model_there
from vitdistill.runs.read import read_run


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two runs and a weights file, in which commands are given."""
    for name in ("demo_small", "demo_base"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text("data: digits\n")
        (tmp_path / "runs" / name / "student.safetensors").touch()
        (tmp_path / "runs" / name / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "other.pth").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("runs/demo_smal", "Did you mean 'runs/demo_small'"),
        ("./runs/demo_smal", "Did you mean 'runs/demo_small'"),
        ("runs/demo", "Did you mean 'runs/demo_base' or 'runs/demo_small'"),
        ("runs/demo_smal/", "Did you mean 'runs/demo_small'"),
        ("~/runs/demo_smal", "demo_small'"),
        ("runs/xyz", "The runs in runs are 'runs/demo_base', 'runs/demo_small'"),
        ("empty/x", "There are no runs in empty"),
        ("owner/model", "There is no folder owner in .* give hf-hub:owner/model"),
        ("run/demo/x", "There is no folder demo in"),
        ("C:\\runs\\demo", r"got C:\\runs\\demo\. There are no runs here"),
        ("weights.pth", "must be an existing run directory; got weights.pth"),
        ("runs/missing.ckpt", "must be an existing run directory"),
        ("", "got ''"),
        ("other.pth", "does not say by itself which network.*NAME@other.pth"),
        ("~/other.pth", "NAME@~/other.pth"),
        ("runs/demo_base/student.safetensors", "Give the run directory, runs/demo_base"),
        ("runs/demo_base/checkpoints/last.ckpt", "Give the run directory, runs/demo_base"),
        ("vit_tiny_patch16_224@", "Give vit_tiny_patch16_224@weights-file"),
        ("vit_tiny_patch16_224@gone.pth", "The weights file must exist; got gone.pth"),
        ("runs/demo@2", "existing run directory; got runs/demo@2"),
    ],
)
def test_what_is_no_model_is_one_line(spec: str, words: str) -> None:
    for refuses in (check_model_there, build):
        with pytest.raises(UserError, match=words) as error:
            refuses(spec)
        assert "rdnet" not in str(error.value) and "\n" not in str(error.value)


def test_names_of_our_own_architectures_are_known_without_building_them() -> None:
    ours = [name for name in timm.list_models() if name.startswith(OURS)]
    assert sorted(ours) == sorted(REGISTERED)
    with pytest.raises(UserError, match="Did you mean 'convvit_base_patch16_224'"):
        check_model("convvit_base")
    check_model("convvit_base_patch16_224.mae")


def test_names_and_what_is_there_pass() -> None:
    for spec in ("vit_tiny_patch16_224", "hf-hub:owner/model", "digits-teacher", "digits_vit_small", "runs/demo_base"):
        check_model_there(spec)
    check_model_there("vit_tiny_patch16_224@~/other.pth")
    check_model_there("~/runs/demo_base/")


def test_paths_become_absolute_and_names_stay(place: Path) -> None:
    (place / "digits-mae").mkdir()
    for spec, expected in {
        "vit_tiny_patch16_224": "vit_tiny_patch16_224",
        "digits-mae": "digits-mae",  # the bundled one, whatever lies here
        "hf-hub:owner/model": "hf-hub:owner/model",
        "runs/demo_base/": f"{place}/runs/demo_base",
        "~/runs/demo_base": f"{place}/runs/demo_base",
        "vit_tiny_patch16_224.mae@other.pth": f"vit_tiny_patch16_224.mae@{place}/other.pth",
        "vit_tiny_patch16_224@~/other.pth": f"vit_tiny_patch16_224@{place}/other.pth",
    }.items():
        assert absolute_model(spec) == expected


@pytest.mark.parametrize(
    "command",
    [
        "evaluate runs/demo_smal",
        "knn runs/demo_smal --data digits",
        "probe runs/demo_smal",
        "masks runs/demo_smal --images empty",
        "similarity runs/demo_smal --data moving_digits",
        "bench --teacher runs/demo_smal",
        "cost --teacher runs/demo_smal",
        "finetune runs/demo_smal --data digits --out new",
        "supervised --student runs/demo_smal --data digits --out new",
        "maskedkd --student digits_vit_small --teacher runs/demo_smal --data digits --out new",
        "export runs/demo_smal",
        "resume runs/demo_smal",
        "report runs/demo_smal",
    ],
)
def test_every_verb_names_the_runs_that_are_there(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert "Did you mean 'runs/demo_small'" in error and len(error.strip().splitlines()) == 1, error


def test_a_bare_name_may_be_a_run_here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "runs")
    with pytest.raises(UserError, match="got 'demo_smal'. Did you mean 'demo_small'"):
        build("demo_smal")
    with pytest.raises(UserError, match="Did you mean 'demo_small'"):
        read_run("demo_smal")
