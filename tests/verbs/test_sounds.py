"""Sounds through the verbs: teacher, student with half of the patches, evaluation, folds, kill and resume, export."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import vitdistill
from killed_runs import kill
from run_reports import reports
from sounds import class_folders, esc50, tone, write
from vitdistill.cli import main
from vitdistill.data import Augment
from vitdistill.errors import UserError
from vitdistill.runs.read import read_run
from vitdistill.training.settings import Optim
from vitdistill.verbs.chain import chain
from vitdistill.verbs.maskedkd import maskedkd
from vitdistill.verbs.supervised import supervised

# 3x6 patches of 8x8 every 4 on 16 mel bins and 28 frames (0.3 s).
SIZE = {"img_size": [16, 28], "patch_size": 8, "stride": 4, "num_heads": 2, "statistics": [-0.6, 3.3]}
STUDENT = {**SIZE, "embed_dim": 16, "depth": 1}
TEACHER = {**SIZE, "embed_dim": 24, "depth": 2}
SHARED: dict[str, Any] = {
    "student": "ast_tiny",
    "batch_size": 8,
    "drop_path": 0.0,
    "augment": {"recipe": "sound"},
    "optim": {"lr": 5e-3, "lr_batch": 8, "warmup_epochs": 0, "clip": 1.0},
}


def options(**changes: Any) -> dict[str, Any]:
    return {**SHARED, "augment": Augment(recipe="sound"), "optim": Optim(**SHARED["optim"]), **changes}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("data") / "calls")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A student after one epoch, of a teacher with random weights."""
    place = folder.parent / "half"
    teacher = vitdistill.build("ast_tiny", args=TEACHER, num_classes=2)
    with reports():
        info = maskedkd(
            **options(data=str(folder), out=str(place), epochs=1, student_args=STUDENT),
            teacher=teacher,
            keep=0.5,
            criterion="student",
        )
    assert info["tokens"]["kept"] == 9 and info["tokens"]["of"] == 18
    return place


def test_a_masked_teacher_of_sounds_and_what_is_recorded(run: Path, folder: Path) -> None:
    info = read_run(run).info
    assert info["sample_word"] == "sound" and info["data"]["class_names"] == ["high", "low"]
    record = json.loads((run / "student.json").read_text())
    made = {"size": [16, 28], "channels": 1, "sampling_rate": 16000, "mean": [-0.6], "std": [6.6]}
    assert record["preprocessing"] == made
    page = (run / "report.html").read_text()
    assert "Frequency goes upward and time to the right" in page and "could not be drawn" not in page


def test_every_judge_takes_sounds(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["top1"] == pytest.approx(read_run(run).info["accuracy"]["top1"], abs=1e-3)
    assert main(["knn", str(run), "--k", "3"]) == 0
    assert main(["probe", str(run), "--epochs", "2"]) == 0
    sound = str(folder / "val/low/0.wav")
    stereo = torch.from_numpy(tone(400, 7, rate=8_000)).repeat(2, 1).T.numpy()
    other = str(write(tmp_path / "more/stereo.flac", stereo, 8_000))
    (tmp_path / "more/broken.wav").write_bytes(b"")
    capsys.readouterr()
    assert main(["predict", str(run), sound, str(tmp_path / "more"), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in rows] == [sound, other] and {row["label"] for row in rows} <= {"high", "low"}
    assert main(["embed", str(run), sound, "--out", str(tmp_path / "features.npy")]) == 0
    network = vitdistill.build(str(run))
    batch = vitdistill.read_batch([sound, other], network)
    assert batch.shape == (2, 1, 16, 28)
    probability = network.eval()(batch).prediction.softmax(dim=1).max(dim=1).values
    torch.testing.assert_close(probability, torch.tensor([row["probability"] for row in rows]), atol=1e-4, rtol=0)


def test_pictures_of_masks_are_spectrograms(run: Path, folder: Path, tmp_path: Path) -> None:
    for more in ([], [str(folder / "val")]):
        picture = tmp_path / "masks.png"
        assert main(["masks", str(run), *more, "--out", str(picture), "--count", "2"]) == 0
        assert picture.stat().st_size > 5000 and (tmp_path / "masks-heatmap.png").is_file()


def test_a_network_over_pixels_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Sounds need a network over spectrograms; got one over pixels"):
        supervised(**options(student="digits_vit_small", data=str(folder), out=str(tmp_path / "run"), epochs=1))


# --- folds -------------------------------------------------------------------------------------------------------


def recipe(folder: Path) -> str:
    path = folder / "esc50.yaml"
    steps = {
        "teacher": {"verb": "supervised", **SHARED, "epochs": 2, "student_args": TEACHER},
        "student": {
            "verb": "maskedkd",
            **SHARED,
            "epochs": 2,
            "student_args": STUDENT,
            "teacher": "{teacher}",
            "keep": 0.5,
            "criterion": "student",
        },
    }
    path.write_text(yaml.safe_dump({"steps": steps}, sort_keys=False))
    return str(path)


def test_folds_are_refused_before_anything_runs(tmp_path: Path) -> None:
    root, steps = str(esc50(tmp_path / "ESC")), recipe(tmp_path)
    for data, folds, words in (
        (root, 1, "--folds must be at least 2"),
        (f"{root}?fold=1", 2, "--folds runs every fold, and --data names one"),
        ("digits", 2, "--folds needs data that is divided into folds"),
        (None, 2, "all steps take the data of --data; got no --data"),
    ):
        with pytest.raises(UserError, match=words):
            chain(steps, out=str(tmp_path / "runs"), data=data, folds=folds)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_folds_run_teacher_and_student_each_and_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, steps, out = str(esc50(tmp_path / "ESC", per_fold=6)), recipe(tmp_path), tmp_path / "runs"
    found = chain(steps, out=str(out), data=root, folds=2)
    assert list(found["steps"]) == ["teacher", "student"] and found["folds"] == [1, 2]
    for name, step in found["steps"].items():
        curves = [read_run(out / f"fold-{fold}" / name).metrics["val/top1"] for fold in (1, 2)]
        means = [(one + other) / 2 for one, other in zip(*curves, strict=True)]
        assert step["last"]["folds"] == [curve[-1] for curve in curves] and step["last"]["epoch"] == 1
        assert step["best"]["mean"] == max(means) and step["best"]["epoch"] == means.index(max(means))
    for fold in (1, 2):
        config = read_run(out / f"fold-{fold}" / "student").config
        assert config["data"] == f"esc50:{root}?fold={fold}"
        assert config["teacher"] == str(out / f"fold-{fold}" / "teacher"), "no teacher has seen the fold that is tested"
    printed = capsys.readouterr().out
    assert "chosen on the very folds that are tested on" in printed and "fold 2, student" in printed
    assert "fold by fold" in (out / "folds.md").read_text() and (out / "report.html").is_file()
    again = chain(steps, out=str(out), data=root, folds=2)
    assert again == found == json.loads((out / "folds.json").read_text())
    assert capsys.readouterr().out.count("finished before") == 4


# --- the whole way -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_student_learns_from_half_of_a_teacher_and_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "calls", 24, 8, rate=22_050)
    big = tmp_path / "teacher"
    supervised(data=str(data), out=str(big), epochs=6, student_args=TEACHER, **options())
    arguments = {
        **options(data=str(data), student_args=STUDENT, epochs=6),
        "teacher": str(big),
        "keep": 0.5,
        "criterion": "student",
    }
    whole = maskedkd(**arguments, out=str(tmp_path / "whole"))
    assert whole["accuracy"]["top1"] >= 75 and whole["tokens"]["kept"] == 9
    written = {**SHARED, "data": str(data), "student_args": STUDENT, "epochs": 6, "teacher": str(big)}
    # A group that is given in Python is given whole; in a file what it leaves out is as the data has it.
    written |= {"optim": asdict(Optim(**SHARED["optim"]))}
    written |= {"keep": 0.5, "criterion": "student", "out": str(tmp_path / "killed")}
    kill("maskedkd", written, 15)
    assert main(["resume", str(tmp_path / "killed")]) == 0
    one, other = (load_file(tmp_path / name / "student.safetensors") for name in ("whole", "killed"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    rows = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "killed")]
    assert rows[0] == rows[1]
    exported = tmp_path / "student.safetensors"
    assert main(["export", str(tmp_path / "whole"), "--out", str(exported)]) == 0
    network = vitdistill.build(str(tmp_path / "whole")).eval()
    inputs = torch.randn(2, 1, 16, 28)
    again = vitdistill.build(f"ast_tiny@{exported}").eval()
    assert torch.equal(network(inputs).prediction, again(inputs).prediction)


@pytest.mark.slow
def test_the_demo_ends_in_a_table_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "audio", "--out", str(tmp_path / "demo"), "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "The sounds are made by the program" in printed and "23 of 45" in printed
    assert (tmp_path / "demo/report.html").stat().st_size > 50_000
