"""`evaluate` under masks: beside the plain verb, in JSON, in tables, and in files."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from vitdistill.cli import main
from vitdistill.data.images.folder import image_folder
from vitdistill.errors import UserError
from vitdistill.evaluation.classifier import class_scores
from vitdistill.evaluation.loading import Reader, open_subject
from vitdistill.models.record import ModelRecord
from vitdistill.training.train import export_weights
from vitdistill.verbs.evaluate import evaluate

CRITERIA = ["random", "teacher", "student"]
MASKS: dict[str, Any] = {"keep": [0.25, 0.5, 1.0], "criterion": CRITERIA}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("masked") / "out"
    return evaluate("digits-teacher", **MASKS, student="digits_vit_small", out=str(out)), out


def test_the_whole_row_is_the_plain_evaluation(digits: tuple[dict[str, Any], Path]) -> None:
    result, plain = digits[0], evaluate("digits-teacher")
    whole = result["masked"][-1]
    assert {name: result[name] for name in plain} == plain
    assert {name: whole[name] for name in ("top1", "top5", "mean_per_class")} == {
        name: plain[name] for name in ("top1", "top5", "mean_per_class")
    }
    counts = [(row["criterion"], row["kept"]) for row in result["masked"]]
    assert counts == [*((name, kept) for name in CRITERIA for kept in (9, 18)), (None, 36)]
    assert all(row["cost"] < 0.6 for row in result["masked"] if row["criterion"] in ("random", "student"))


def test_one_keep_is_what_is_evaluated(colour_run: Path) -> None:
    """As it was before there were several: the patches to which the model attends itself."""
    result = evaluate(str(colour_run), keep=0.5, workers=0)
    options: dict[str, Any] = dict.fromkeys(("data", "image_size", "crop_pct", "model_args"))
    subject = open_subject(str(colour_run), checkpoint="exported", **options)
    scores, labels = [], []
    for inputs, batch in Reader(subject, batch_size=128, device="cpu", workers=0).read(subject.source.val, "reading"):
        scores.append(class_scores(subject.backbone.eval(), inputs, 0.5))
        labels.append(batch.targets)
    loss = torch.nn.functional.cross_entropy(torch.cat(scores), torch.cat(labels))
    assert result["loss"] == pytest.approx(float(loss), abs=1e-6) and "meaning" not in result
    several = evaluate(str(colour_run), keep="1,0.5", criterion="random,teacher", workers=0)["masked"]
    assert result["masked"] == [each for each in several if each["criterion"] == "teacher" and each["keep"] == 0.5]


def test_files(digits: tuple[dict[str, Any], Path]) -> None:
    result, out = digits
    assert result["out"] == str(out)
    assert {"masked.csv", "masked.png", "masked.svg", "per_class.csv"} <= {file.name for file in out.iterdir()}
    with (out / "masked.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line, row in zip(lines, result["masked"], strict=True):
        assert line["criterion"] == (row["criterion"] or "")
        assert all(float(line[name]) == value for name, value in row.items() if name != "criterion")
    assert (out / "masked.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (out / "masked.svg").read_text()


def test_json_and_tables(colour_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(colour_run), "--workers", "0", "--keep", "2,0.75,1.0", "--criterion", "random,teacher"]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["criterion"], row["keep"], row["kept"], row["patches"]) for row in result["masked"]] == [
        *[("random", 2, 2, 4), ("random", 0.75, 3, 4), ("teacher", 2, 2, 4), ("teacher", 0.75, 3, 4)],
        (None, 1.0, 4, 4),
    ]
    assert all(row["agreement"] == 1 for row in result["masked"])  # a colour is seen in every patch
    assert result["meaning"].endswith("it can teach under such masks.")
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "random" in text and "3 of 4" in text and "100.00" in text and result["meaning"] in text
    assert main([*words[:4], "--keep", "0.5"]) == 0
    text = capsys.readouterr().out
    assert "on 2 of 4 patches, ranked by teacher: agreement with the whole model 1.000;" in text


def test_random_masks_repeat_with_their_seed(colour_run: Path) -> None:
    def losses(**more: Any) -> float:
        return evaluate(str(colour_run), keep=1, criterion="random", workers=0, **more)["loss"]

    assert losses(seed=1) == losses(seed=1) != losses(seed=2)
    assert losses(seed=1, batch_size=5) == pytest.approx(losses(seed=1), rel=1e-5)


def test_a_run_ranks_patches_and_classes_go_by_name(colour_run: Path) -> None:
    student = {"criterion": "student+random", "student": str(colour_run), "workers": 0}
    source = image_folder(colour_run.parent / "data")
    source.val._labels = 2 - source.val._labels
    result = evaluate(str(colour_run), keep="1,2", data=replace(source, classes=source.classes[::-1]), **student)
    assert result["top1"] == 100 and [row["top1"] for row in result["masked"]] == [100, 100]


def test_what_to_do_about_too_little_agreement(
    colour_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vitdistill.evaluation.masked.TRUSTED", 1.01)
    result = evaluate(str(colour_run), keep="0.5,1.0", workers=0)
    assert "In order of cost: 1) rank them by" in result["meaning"]
    assert result["meaning"] in capsys.readouterr().out


def test_what_cannot_be_is_one_line(colour_run: Path, tmp_path: Path) -> None:
    run = {"workers": 0, "keep": "0.5,1.0"}
    with pytest.raises(UserError, match="keep must lie between 1 and 4 patches"):
        evaluate(str(colour_run), keep="0.5,5", workers=0)
    with pytest.raises(UserError, match="A model that is a path must be an existing run"):
        evaluate(str(colour_run), criterion="student", student=str(tmp_path / "none"), **run)
    with pytest.raises(UserError, match="has no attention to take saliency from"):
        evaluate(str(colour_run), criterion="student", student="resnet10t", **run)
    with pytest.raises(UserError, match="digits-mae has no classifier to evaluate"):
        evaluate("digits-mae", keep="0.5,1.0")
    cnn = timm.create_model("resnet10t", num_classes=3)
    export_weights(cnn.state_dict(), tmp_path / "cnn.safetensors")
    with pytest.raises(UserError, match="resnet10t cannot leave out patches"):
        evaluate(f"resnet10t@{tmp_path / 'cnn.safetensors'}", data=str(colour_run.parent / "data"), **run)
    assert ModelRecord.read(colour_run).classes == ["blue", "green", "red"]
