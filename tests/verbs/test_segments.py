"""Labelling pixels from end to end: training, distillation, tests, masks of pictures, and what goes wrong."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import box_trees
from killed_runs import kill
from made_pairs import ade20k
from run_reports import reports
from vitdistill.cli import main
from vitdistill.data.segments.files import SegmentFiles
from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.tasks.boxes import Boxes
from vitdistill.tasks.classification import Classification
from vitdistill.tasks.segmentation import Segmentation
from vitdistill.training.settings import Loader, Optim
from vitdistill.verbs.check import check
from vitdistill.verbs.evaluate import evaluate
from vitdistill.verbs.export import export
from vitdistill.verbs.finetune import finetune
from vitdistill.verbs.maskedkd import maskedkd
from vitdistill.verbs.parser import parse
from vitdistill.verbs.predict import predict
from vitdistill.verbs.resume import resume
from vitdistill.verbs.supervised import supervised

NET: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
TRAINING: dict[str, Any] = {
    "task": "segmentation",
    "epochs": 2,
    "batch_size": 4,
    "drop_path": 0.0,
    "loader": Loader(workers=0),
    "optim": Optim(lr=3e-3, lr_batch=0, warmup_epochs=0),
    "precision": "32-true",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ade20k(tmp_path_factory.mktemp("ade"))


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Segmenter on ADE20K's layout in miniature, whose classes have a grey each."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = {**TRAINING, "epochs": 6, "student_args": {**NET, "decoder": "linear"}}
    with reports():
        supervised(student="segmenter_tiny", data=str(folder), out=str(out), **options)
    return out


def test_a_folder_pair_is_learnt_tested_and_reported(run: Path, folder: Path, tmp_path: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    assert info["score"] == "miou" and set(info["metrics"]) == {"miou", "macc", "aacc"} and not info["score_per_sample"]
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert float(rows[-1]["val/loss"]) < float(rows[0]["val/loss"])
    assert [row["class"] for row in csv.DictReader((run / "per_class.csv").open())] == ["wall", "building", "sky"]
    page = (run / "report.html").read_text()
    assert "mIoU %" in page and "the true class of each pixel and the predicted one" in page
    assert "could not be drawn" not in page and "no maps of classes" not in page
    touching = evaluate(str(run), segments=SegmentFiles(stride=32), workers=0, json=True)
    assert touching["miou"] == pytest.approx(info["accuracy"]["miou"], abs=1e-3), "as validation in training"
    result = evaluate(str(run), workers=0, out=str(tmp_path / "test"), json=True)
    assert result["samples"] == 4 and {"per_class.csv", "confusion.csv"} <= {
        p.name for p in (tmp_path / "test").iterdir()
    }
    per_class = [row["IoU %"] for row in result["per_class"] if row["IoU %"] is not None]
    assert result["miou"] == pytest.approx(sum(per_class) / len(per_class), abs=1e-3)


def test_pictures_are_labelled_at_their_own_size(run: Path, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    files = [str(folder / "images" / "validation"), str(broken)]
    rows = predict(str(run), files, out=str(tmp_path / "masks"))
    assert len(rows) == 4, "what cannot be read is left out"
    for row in rows:
        with Image.open(row["path"]) as image, Image.open(row["mask"]) as mask, Image.open(row["overlay"]) as over:
            assert mask.mode == "P" and mask.size == over.size == image.size and np.asarray(mask).max() < 3
            shares = np.bincount(np.asarray(mask).flatten(), minlength=3) / (mask.width * mask.height)
        named = dict(zip(("wall", "building", "sky"), shares, strict=True))
        assert row["shares"] == {name: pytest.approx(named[name], abs=1e-6) for name in row["shares"]}
    table = list(csv.DictReader((tmp_path / "masks" / "shares.csv").open()))
    assert [row["path"] for row in table] == [row["path"] for row in rows]
    with pytest.raises(UserError, match="--out must name a folder for the masks"):
        predict(str(run), files)
    with pytest.raises(UserError, match="--top has no effect on a run with --task segmentation"):
        predict(str(run), files, out=str(tmp_path / "masks"), top=3)


def test_a_network_that_is_no_run_is_tested_and_labels(run: Path, folder: Path, tmp_path: Path) -> None:
    exported = tmp_path / "exported"
    export(str(run), out=str(exported / "student.safetensors"))
    options: dict[str, Any] = {"workers": 0, "json": True}
    of_run, found = evaluate(str(run), **options), evaluate(str(exported), data=str(folder), **options)
    assert found["miou"] == of_run["miou"] and found["model"] == str(exported)
    Image.new("RGB", (40, 36)).save(tmp_path / "a.png")
    (row,) = predict(str(exported), [str(tmp_path / "a.png")], out=str(tmp_path / "masks"))
    assert Image.open(row["mask"]).size == (40, 36)
    for unread in ({"head": "linear"}, {"ratio": (0.5, 1.0)}):
        with pytest.raises(UserError, match=f"--segments.{next(iter(unread))} has no effect in a test"):
            evaluate(str(run), segments=SegmentFiles(**unread))


def test_what_does_not_fit_is_one_line(run: Path, folder: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("sky\nwall\nbuilding\n")
    with pytest.raises(UserError, match="must be in the order of those of"):
        evaluate(str(run), segments=SegmentFiles(classes=str(names)), workers=0)
    with pytest.raises(UserError, match="has 3 and ADEChallengeData2016 has 4|must have the 4 classes"):
        evaluate(str(run), segments=SegmentFiles(classes=4), workers=0)
    with pytest.raises(UserError, match="--segments has no effect unless --task is segmentation"):
        supervised(student="digits_vit_small", data="digits", out=str(tmp_path / "x"), segments=SegmentFiles(stride=3))
    with pytest.raises(UserError, match="none for the whole picture; got scenes"):
        supervised(student="digits_vit_small", data="scenes", out=str(tmp_path / "x"))
    with pytest.raises(UserError, match="--distill logits compares scores of classes"):
        maskedkd(
            student="scenes_segmenter_small",
            data="scenes",
            out=str(tmp_path / "x"),
            task="segmentation",
            distill="logits",
            teacher="scenes_segmenter_base",
        )


def test_a_folder_of_another_task_says_which(folder: Path, tmp_path: Path) -> None:
    devkit = str(box_trees.voc(tmp_path))
    for data, task in ((str(folder), "segmentation"), (devkit, "boxes")):
        with pytest.raises(UserError, match=f"It looks like data of --task {task}$"):
            supervised(student="digits_vit_small", data=data, out=str(tmp_path / "x"))
    with pytest.raises(UserError, match="It looks like data of --task boxes$"):
        check(devkit)
    assert check(str(folder), task="segmentation", workers=0, json=True)["ok"]
    with pytest.raises(UserError, match="must have folders of images and of masks"):
        check(devkit, task="segmentation")


def test_a_number_of_classes_is_one_whatever_the_order_of_options() -> None:
    networks = "--student scenes_segmenter_small --teacher scenes_segmenter_base"
    line = f"--task segmentation {networks} --data d --segments.classes 3 --keep 0.75 --out o"
    assert parse("maskedkd", line.split())["segments"].classes == 3
    assert SegmentFiles(classes="names.txt").classes == "names.txt"


def test_a_classifier_gives_way_without_a_word_on_its_classes() -> None:
    vit, pixels = build("digits_vit_small"), build("scenes_segmenter_small", num_classes=11)
    assert not Segmentation(11).keeps(vit) and Segmentation(11).keeps(pixels)
    assert not Boxes(classes=5).keeps(vit) and Classification(10).keeps(vit)


@pytest.mark.slow
def test_a_vit_is_fine_tuned_with_either_head(folder: Path, tmp_path: Path) -> None:
    vit = tmp_path / "vit"
    options = {name: value for name, value in TRAINING.items() if name != "task"} | {"epochs": 1}
    supervised(student="digits_vit_small", data="digits", out=str(vit), **{**options, "batch_size": 512})
    out = tmp_path / "tuned"
    finetune(
        str(vit), data=str(folder), out=str(out), segments=SegmentFiles(head="linear"), **{**TRAINING, "epochs": 1}
    )
    record = json.loads((out / "student.json").read_text())
    assert record["architecture"] == "segmenter_tiny" and record["classes"] == ["wall", "building", "sky"]
    assert build(str(out)).num_classes == 3


@pytest.mark.slow
def test_scenes_are_learnt_and_distilled_killed_and_resumed(tmp_path: Path) -> None:
    """A teacher, a student that learns from three quarters of the patches, its test, export, and an exact resume."""
    teacher = tmp_path / "teacher"
    options = {**TRAINING, "data": "scenes", "batch_size": 50, "epochs": 2}
    supervised(student="scenes_segmenter_small", out=str(teacher), **options)
    taught = {**options, "student": "scenes_segmenter_small", "teacher": str(teacher), "keep": 0.75}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with reports():
        info = maskedkd(out=str(whole), **taught)
    assert (info["tokens"]["kept"], info["tokens"]["of"]) == (48, 64)
    assert info["accuracy"]["aacc"] > 80
    result = evaluate(str(whole), workers=0, json=True)
    assert result["miou"] == pytest.approx(info["accuracy"]["miou"], abs=1e-3)
    assert "dropped patches are faded" in (whole / "report.html").read_text()
    kill("maskedkd", {**taught, "out": str(cut)}, 27)  # of 20 steps an epoch
    resume(str(cut))
    assert (cut / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
    assert (cut / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    exported = tmp_path / "exported"
    export(str(whole), out=str(exported / "student.safetensors"))
    images = torch.randn(1, 3, 48, 48)
    one, two = (build(str(place)).eval()(images).prediction for place in (whole, exported))
    assert torch.equal(one, two)


def test_commands_say_what_they_found(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(folder), "--workers", "0"]) == 0
    assert "images" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--workers", "0", "--segments.stride", "16"]) == 0
    printed = capsys.readouterr().out
    assert "mIoU %" in printed and "building" in printed
