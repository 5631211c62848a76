"""Labelling pixels from end to end: training, distillation, tests, masks of pictures, and what goes wrong."""

import csv
import json
import shutil
from dataclasses import replace
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
from vitdistill.data.images.augment import Augment
from vitdistill.data.segments.files import SegmentFiles, SegmentTest
from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.tasks.boxes import Boxes
from vitdistill.tasks.classification import Classification
from vitdistill.tasks.segmentation import Segmentation
from vitdistill.training.settings import Loader, Optim
from vitdistill.verbs.check import check
from vitdistill.verbs.common import make_student
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
    optim = Optim(lr=1e-3, lr_batch=0, warmup_epochs=0)
    options = {**TRAINING, "epochs": 10, "optim": optim, "student_args": {**NET, "decoder": "linear"}}
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
    touching = evaluate(str(run), segments=SegmentTest(stride=32), workers=0, json=True)
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
            evaluate(str(run), segments=SegmentTest(**unread))


def test_what_does_not_fit_is_one_line(run: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 3 and ADEChallengeData2016 has 4|must have the 4 classes"):
        evaluate(str(run), segments=SegmentTest(classes=4), workers=0)
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
    assert not Segmentation(11).keeps(lambda: vit) and Segmentation(11).keeps(lambda: pixels)
    assert not Boxes(classes=5).keeps(lambda: vit) and Classification(10).keeps(lambda: vit)


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


def test_several_sizes_and_mirror_images_are_averaged(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"workers": 0, "json": True}
    plain = evaluate(str(run), **options)
    assert plain["test"] == "single scale"
    assert evaluate(str(run), segments=SegmentTest(test_ratios=[1.0]), **options) == plain
    many = SegmentTest(stride=16, test_ratios=[0.75, 1.0, 1.5], test_flip=True)
    found = evaluate(str(run), segments=many, batch_size=3, **options)
    assert found["test"] == "ratios 0.75, 1, 1.5 and their mirror images" and found["samples"] == plain["samples"]
    assert found["loss"] != plain["loss"] and sum(row["pixels"] for row in found["per_class"]) == sum(
        row["pixels"] for row in plain["per_class"]
    )
    assert evaluate(str(run), segments=many, **options)["miou"] == pytest.approx(found["miou"], abs=0.1), "windows"
    capsys.readouterr()
    line = f"evaluate {run} --workers 0 --segments.stride 32 --segments.test_ratios [0.5,1.0] --segments.test_flip true"
    assert main(line.split()) == 0 and "test: ratios 0.5, 1 and their mirror images" in capsys.readouterr().out
    pictures = [str(folder / "images" / "validation")]
    rows = predict(str(run), pictures, out=str(tmp_path / "masks"), segments=many)
    for row in rows:
        with Image.open(row["mask"]) as mask, Image.open(row["path"]) as image:
            assert mask.size == image.size
    with pytest.raises(UserError, match=r"must leave a patch .8 pixels. of the 32 .*; got 0.2. Use at least 0.25$"):
        evaluate(str(run), segments=SegmentTest(test_ratios=[0.2, 1.0]), workers=0)
    with pytest.raises(UserError, match="--segments.classes has no effect on pictures without masks"):
        predict(str(run), pictures, out=str(tmp_path / "masks"), segments=SegmentTest(classes=3))
    with pytest.raises(UserError, match="--segments has no effect unless the model labels pixels"):
        predict("digits-teacher", pictures, segments=many)


def test_training_has_no_ratios_of_tests(capsys: pytest.CaptureFixture[str]) -> None:
    line = "supervised --task segmentation --student segmenter_tiny --data scenes --out o --segments.test_flip true"
    assert main(line.split()) == 2
    assert "segments.test_flip" in capsys.readouterr().err


@pytest.fixture
def reordered(folder: Path, tmp_path: Path) -> Path:
    """The same images with the same classes, counted from the other end."""
    other = tmp_path / "reordered"
    shutil.copytree(folder, other)
    for path in (other / "annotations").rglob("*.png"):
        with Image.open(path) as mask:
            numbers = np.asarray(mask)
        Image.fromarray(np.where((numbers >= 1) & (numbers <= 3), 4 - numbers, numbers).astype(np.uint8)).save(path)
    return other


def test_classes_in_another_order_go_by_name(
    run: Path, folder: Path, reordered: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("sky\nbuilding\nwall\n")
    files = {"classes": str(names), "reduce_zero_label": True}
    expected = evaluate(str(run), workers=0, json=True)
    assert len({row["IoU %"] for row in expected["per_class"]}) > 1, "so that another order would show"
    options: dict[str, Any] = {"data": str(reordered), "segments": SegmentTest(**files), "workers": 0, "json": True}
    with caplog.at_level("WARNING"):
        found = evaluate(str(run), **options)
    assert found["miou"] == expected["miou"] and found["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    assert found["per_class"] == expected["per_class"][::-1] and "same classes in another order" in caplog.text
    # What goes on is put into the data's order, and so is what it exports.
    standing = {**TRAINING, "epochs": 1, "optim": Optim(lr=1e-9, lr_batch=0, warmup_epochs=0)}
    out = tmp_path / "on"
    supervised(student=str(run), data=str(reordered), segments=SegmentFiles(**files), out=str(out), **standing)
    assert json.loads((out / "student.json").read_text())["classes"] == ["sky", "building", "wall"]
    again = evaluate(str(out), workers=0, json=True)
    assert again["per_class"] == expected["per_class"][::-1] and again["miou"] == expected["miou"]


def test_other_classes_are_one_line(run: Path, folder: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("mur\nbatiment\nciel\n")
    files = SegmentFiles(classes=str(names))
    for refused in (
        lambda: evaluate(str(run), segments=SegmentTest(classes=str(names)), workers=0),
        lambda: supervised(student=str(run), data=str(folder), out=str(tmp_path / "x"), segments=files, **TRAINING),
    ):
        with pytest.raises(UserError, match="classes of .* those of the data; .* has 'wall', .* has 'mur'") as caught:
            refused()
        assert "\n" not in str(caught.value)


def test_a_head_that_goes_is_not_spoken_of(run: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A labeller of pixels of three classes that becomes a detector of ten: nothing of its head is taken over."""
    images = Segmentation.open(str(folder), augment=Augment(recipe="none"))[0]
    source, task = replace(images, classes=[*"0123456789"]), Boxes(classes=10)
    with caplog.at_level("WARNING"):
        body = make_student(str(run), source, args=None, image_size=None, keeps=task.keeps)
        detector = task.student(body)
    assert not caplog.messages and detector.num_classes == 10
    task.check(detector)
    assert torch.equal(detector.net.blocks[1].mlp.fc1.weight, build(str(run)).net.encoder.blocks[1].mlp.fc1.weight)
    assert make_student(str(run), source, args=None, image_size=None).num_classes == 10


def test_commands_say_what_they_found(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(folder), "--workers", "0"]) == 0
    assert "images" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--workers", "0", "--segments.stride", "16"]) == 0
    printed = capsys.readouterr().out
    assert "mIoU %" in printed and "building" in printed and "test: single scale" in printed
