"""Detection from end to end: scenes of a few images, and miniature trees of VOC and COCO."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import box_trees
from killed_runs import kill
from run_reports import reports
from vitdistill.cli import main
from vitdistill.data.boxes.files import BoxFiles
from vitdistill.data.boxes.sources import open_boxes
from vitdistill.data.images.augment import Augment
from vitdistill.data.segments.files import SegmentTest
from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.runs.read import read_run
from vitdistill.training.settings import Loader, Optim
from vitdistill.verbs.check import check
from vitdistill.verbs.evaluate import evaluate
from vitdistill.verbs.export import export
from vitdistill.verbs.finetune import finetune
from vitdistill.verbs.maskedkd import maskedkd
from vitdistill.verbs.masks import masks
from vitdistill.verbs.predict import predict
from vitdistill.verbs.resume import resume
from vitdistill.verbs.supervised import supervised

SMALL = {"patch_size": 12, "embed_dim": 24, "depth": 2, "num_heads": 2, "det_tokens": 6}
TRAINING: dict[str, Any] = {
    "task": "boxes",
    "epochs": 1,
    "batch_size": 8,
    "drop_path": 0.0,
    "loader": Loader(workers=0),
    "optim": Optim(lr=1e-3, lr_batch=0, warmup_epochs=0, clip=0.1),
    "precision": "32-true",
}
# Images of a miniature tree differ in size.
TREE: dict[str, Any] = {
    **TRAINING,
    "student": "yolos_tiny",
    "student_args": {**SMALL, "patch_size": 8, "img_size": [48, 64]},
    "boxes": BoxFiles(sides=[48, 64], longest=96, eval_side=48),
    "batch_size": 5,
    "epochs": 2,
}


@pytest.fixture(scope="module", autouse=True)
def few_scenes() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitdistill.data.boxes.sources._counts", lambda: {"train": 16, "val": 8})
        yield


@pytest.fixture(scope="module")
def trained(few_scenes: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "run"
    optim = Optim(lr=1e-3, lr_batch=0, warmup_epochs=0, clip=0.1, ema=0.5)
    options = {**TRAINING, "optim": optim}
    with reports():
        info = supervised(student="scenes_yolos_small", student_args=SMALL, data="scenes", out=str(out), **options)
    return out, info


def test_a_run_on_scenes_is_recorded(trained: tuple[Path, dict[str, Any]]) -> None:
    out, info = trained
    (row,) = csv.DictReader((out / "metrics.csv").open())
    parts = sum(float(row[f"train/{name}"]) for name in ("class", "box", "giou"))
    assert parts == pytest.approx(float(row["train/loss"]), rel=1e-4)
    assert {"val/ap", "val/ap50", "val/ap75", "ema/ap", "val/loss"} <= set(row)
    assert info["metrics"] == {"ap": "AP %", "ap50": "AP50 %", "ap75": "AP75 %"} and info["score"] == "ap"
    assert (out / "per_class.csv").read_text().startswith("class,boxes,AP %,AP50 %,AP75 %\n0,")
    record = json.loads((out / "student.json").read_text())
    assert record["classes"] == list("0123456789") and record["preprocessing"]["crop_mode"] == "squash"
    page = (out / "report.html").read_text()
    assert "AP50 %" in page and "validation images with annotated boxes" in page, "the report draws them"
    assert build(str(out)).num_classes == 10


def test_evaluating_a_run_writes_cocos_results(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, info = trained
    result = evaluate(str(out), workers=0, out=str(tmp_path), json=True)
    for name in ("ap", "ap50", "ap75"):
        assert result[name] == pytest.approx(info["accuracy"][name], abs=0.01)
    assert result["loss"] == pytest.approx(info["accuracy"]["loss"], rel=1e-3) and result["samples"] == 8
    rows = json.loads((tmp_path / "detections.json").read_text())
    assert len(rows) == 8 * 6 and {row["image_id"] for row in rows} == set(range(8))
    assert set(rows[0]) == {"image_id", "category_id", "bbox", "score"} and len(rows[0]["bbox"]) == 4
    assert (tmp_path / "per_class.csv").is_file() and [row["class"] for row in result["per_class"]] == list(
        "0123456789"
    )
    with pytest.raises(UserError, match="--keep has no effect on a run with --task boxes"):
        evaluate(str(out), keep=0.5)
    with pytest.raises(UserError, match="--boxes has no effect unless the model is a run with --task boxes"):
        evaluate("digits-teacher", boxes=BoxFiles(resize="voc"))


def test_objects_are_predicted_and_drawn(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, scene = str(trained[0]), open_boxes("scenes").val.load(0)[0].image
    scene.save(tmp_path / "a.png")
    scene.resize((96, 48)).save(tmp_path / "b.png")
    rows = predict(run, [str(tmp_path)], threshold=0.0, format="json", draw=str(tmp_path / "drawn"), workers=0)
    printed = capsys.readouterr().out
    assert json.loads(printed[: printed.rindex("]") + 1]) == rows and len(rows) == 12
    first, second = (rows[start : start + 6] for start in (0, 6))
    assert [row["score"] for row in first] == sorted((row["score"] for row in first), reverse=True)
    for one, other in zip(first, second, strict=True):  # squeezed to the same input, and back to their own sizes
        assert one["label"] == other["label"] == str(one["class"])
        assert 0 <= one["x1"] <= one["x2"] <= 48 and abs(other["x2"] - 2 * one["x2"]) < 12
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "drawn").iterdir()}
    assert sizes == {"a.png": (336, 336), "b.png": (672, 336)}, "small pictures are enlarged"
    large = scene.resize((336, 336), Image.Resampling.NEAREST)
    assert np.any(np.asarray(Image.open(tmp_path / "drawn/a.png")) != np.asarray(large))
    assert predict(run, [str(tmp_path / "a.png")], threshold=1.0, workers=0) == []
    assert "no object with a score of at least 1 in 1 files" in capsys.readouterr().out
    for options, words in (
        ({"top": 3}, "--top has no effect on a run with --task boxes"),
        ({"threshold": 1.5}, r"--threshold must lie in \[0, 1\]; got 1.5"),
        ({"draw": str(tmp_path / "a.png")}, "--draw must be a folder"),
    ):
        with pytest.raises(UserError, match=words):
            predict(run, [str(tmp_path / "a.png")], **options)
    with pytest.raises(UserError, match="--draw has no effect unless the model is a detector"):
        predict("digits-teacher", [str(tmp_path / "a.png")], draw="x")


def test_a_detector_that_is_no_run_is_tested_and_finds(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, exported = trained[0], tmp_path / "exported"
    export(str(run), out=str(exported / "student.safetensors"))
    open_boxes("scenes").val.load(0)[0].image.save(tmp_path / "a.png")
    ours, theirs = (predict(str(each), [str(tmp_path / "a.png")], threshold=0.0) for each in (run, exported))
    assert ours == theirs, "resized as the record says"
    of_run, found = (evaluate(str(each), data="scenes", workers=0, json=True) for each in (run, exported))
    assert {**found, "model": ""} == {**of_run, "model": ""}
    for options, words in (
        ({"keep": 0.5}, "--keep has no effect on a network whose task is boxes"),
        ({"boxes": BoxFiles(sides=[48])}, "--boxes.sides has no effect in a test"),
        ({"boxes": BoxFiles(det_tokens=6)}, "--boxes.det_tokens has no effect in a test"),
        ({"boxes": BoxFiles(class_weight=2.0)}, "--boxes.class_weight has no effect in a test"),
        ({"segments": SegmentTest(stride=3)}, "--segments has no effect on a network whose task is boxes"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate(str(exported), data="scenes", **options)


def test_a_masked_teacher_of_boxes(report: None, trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    teacher, out = str(trained[0]), tmp_path / "student"
    student = {**SMALL, "embed_dim": 16}
    options = {"student_args": student, "teacher": teacher, "keep": 0.5, "criterion": "student"}
    info = maskedkd(student="scenes_yolos_small", data="scenes", out=str(out), **options, **TRAINING)
    assert info["status"] == "finished" and (info["tokens"]["kept"], info["tokens"]["of"]) == (8, 16)
    (row,) = csv.DictReader((out / "metrics.csv").open())
    assert float(row["train/tokens"]) > 0 and read_run(out).config["distill"] == "tokens"
    page = (out / "report.html").read_text()
    assert "dropped patches are faded" in page, "the report shows what the teacher saw"
    masks([str(out)], out=str(tmp_path / "masks.png"), count=2)
    assert (tmp_path / "masks.png").is_file()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"augment": Augment(recipe="none", scale=0.5)}, "take the augmentations hflip and repeats only; got scale"),
        ({"boxes": BoxFiles(sides=[32])}, "--boxes.sides has no effect where all images get the network's size"),
        ({"task": "classification", "boxes": BoxFiles(resize="voc")}, "--boxes has no effect unless --task is boxes"),
        ({"boxes": BoxFiles(det_tokens=5)}, "--boxes.det_tokens has no effect on a detector, which has its own"),
        ({"task": "classification"}, "scenes have boxes.*none for the whole picture"),
        ({"data": "digits"}, "must be an existing folder of images with boxes, or scenes; got 'digits'"),
        ({"patch_drop": 0.5}, "--patch_drop has no effect unless --task is classification"),
    ],
    ids=["augment", "sides", "task", "det_tokens", "scenes", "digits", "patch_drop"],
)
def test_bad_input_is_one_line(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    options = {"student": "scenes_yolos_small", "student_args": SMALL, "data": "scenes", **TRAINING, **changed}
    with pytest.raises(UserError, match=words) as error:
        supervised(out=str(tmp_path / "run"), **options)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("student", "task", "data", "words"),
    [
        (
            "yolos_tiny",
            "classification",
            "digits",
            "classification trains no network that finds objects; .*--task boxes",
        ),
        ("segmenter_tiny", "classification", "digits", "Give --task segmentation"),
        ("ast_tiny", "boxes", "scenes", "made of a plain ViT|spectrogram"),
        ("digits_vit_small", "boxes", "digits", "It looks like data of --task classification"),
        ("digits_vit_small", "segmentation", "sounds", "It looks like data of --task classification"),
    ],
)
def test_a_wrong_pair_names_the_task(tmp_path: Path, student: str, task: str, data: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        supervised(student=student, task=task, data=data, out=str(tmp_path / "run"))
    assert "\n" not in str(error.value)


def test_check_counts_what_is_wrong_with_annotations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = box_trees.coco(tmp_path) / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    first = content["annotations"][0]
    for number, change in enumerate(
        ({"bbox": [-5, -5, 20, 20]}, {"bbox": [90, 0, 5, 5]}, {"bbox": [3, 3, 0, 4]}, {"category_id": 4})
    ):
        content["annotations"].append({**first, "id": 900 + number, **change})
    file.write_text(json.dumps(content))
    assert main(["check", str(tmp_path), "--task", "boxes", "--workers", "0"]) == 1
    printed = capsys.readouterr().out
    for words in (
        "annotations of a category that is not listed: 1",
        "boxes outside their image, left out: 1",
        "empty boxes, left out: 1",
        "boxes partly outside their image, cut to it: 1",
        "annotation 903, category 4",
    ):
        assert words in printed
    result = check(str(tmp_path), task="boxes", workers=0, json=True)
    assert not result["ok"] and result["counts"]["box cut"] == 1
    assert sum(of["val"] for of in result["classes"].values()) == sum(
        len(box_trees.objects(number, box_trees.size_of(number))) for number in range(10, 16)
    )
    with pytest.raises(UserError, match="--boxes has no effect unless --task is boxes"):
        check(str(tmp_path), boxes=BoxFiles(ids="dense"))


TRAINED_ON = {
    "voc": "VOCdevkit/VOC2012/ImageSets/Main/train.txt",
    "coco": "annotations/instances_train2017.json",
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", TRAINED_ON)
def test_a_miniature_tree_from_teacher_to_student(layout: str, tmp_path: Path) -> None:
    """Teacher, masked distillation on images of different sizes, evaluation, export and reload."""
    data = str(getattr(box_trees, layout)(tmp_path / "data"))
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    supervised(data=data, out=str(teacher), **TREE)
    small = {**TREE["student_args"], "embed_dim": 16}
    options = {**TREE, "student_args": small, "teacher": str(teacher), "keep": 0.5, "criterion": "student"}
    info = maskedkd(data=data, out=str(student), **options)
    assert info["status"] == "finished"
    trained_on = tmp_path / "data" / TRAINED_ON[layout]
    trained_on.rename(tmp_path / "away")  # a test does not read it
    result = evaluate(str(student), workers=0, json=True, out=str(tmp_path / "test"))
    assert result["ap"] == pytest.approx(info["accuracy"]["ap"], abs=0.05)
    (tmp_path / "away").rename(trained_on)
    rows = json.loads((tmp_path / "test/detections.json").read_text())
    assert len(rows) == 6 * 6 and {type(row["image_id"]) for row in rows} == {str if layout == "voc" else int}
    other = evaluate(str(student), workers=0, json=True, data=data, boxes=BoxFiles(eval_side=32))
    assert other["loss"] != result["loss"], "images of another size"
    again = finetune(str(student), data=data, out=str(tmp_path / "again"), **_finetuning())
    assert again["status"] == "finished" and build(str(tmp_path / "again")).num_classes == len(result["per_class"])


def _finetuning() -> dict[str, Any]:
    return {name: TREE[name] for name in ("task", "boxes", "batch_size", "loader", "precision")} | {
        "epochs": 1,
        "drop_path": 0.0,
        "optim": Optim(lr=1e-4, lr_batch=0, warmup_epochs=0),
    }


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    data = str(box_trees.voc(tmp_path / "data"))
    teacher = tmp_path / "teacher"
    supervised(data=data, out=str(teacher), **TREE)
    options = {**TREE, "data": data, "teacher": str(teacher), "keep": 0.5, "criterion": "student"}
    whole, pieced = tmp_path / "whole", tmp_path / "pieced"
    maskedkd(out=str(whole), **options)
    kill("maskedkd", {**options, "out": str(pieced)}, step=3)
    resume(str(pieced))
    for file in ("student.safetensors", "metrics.csv", "per_class.csv"):
        assert (whole / file).read_bytes() == (pieced / file).read_bytes(), file


@pytest.mark.slow
def test_a_classifier_becomes_a_detector(tmp_path: Path) -> None:
    info = finetune(
        "digits-teacher",
        data="scenes",
        out=str(tmp_path / "run"),
        image_size=48,
        epochs=1,
        drop_path=0.0,
        batch_size=8,
        task="boxes",
        boxes=BoxFiles(det_tokens=9),
        loader=Loader(workers=0),
    )
    assert info["status"] == "finished" and build(str(tmp_path / "run")).detections == 9
