"""Action detection from end to end, on generated movies in which two boxes are red or green."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from run_reports import reports
from vitdistill.cli import main
from vitdistill.data.actions.files import ActionFiles
from vitdistill.data.images.augment import Augment
from vitdistill.errors import UserError
from vitdistill.runs.read import read_run
from vitdistill.training.settings import Loader, Optim
from vitdistill.verbs.evaluate import evaluate
from vitdistill.verbs.finetune import finetune
from vitdistill.verbs.resume import resume

av = pytest.importorskip("av")

START, SECONDS, RATE = 900, 8, 8
LEFT, RIGHT = (0.05, 0.1, 0.45, 0.6), (0.55, 0.3, 0.95, 0.9)
COLOURS = {1: (220, 30, 30), 2: (30, 200, 30)}
LABELS = 'item {\n  name: "red"\n  id: 1\n}\nitem {\n  name: "green"\n  id: 2\n}\nitem {\n  name: "there"\n  id: 4\n}\n'
NET = {"img_size": 16, "patch_size": 4, "frames": 4, "embed_dim": 48, "depth": 1, "num_heads": 2}
TRAINING: dict[str, Any] = {
    "model_args": NET,
    "task": "actions",
    "stride": 1,
    "epochs": 4,
    "batch_size": 8,
    "drop_path": 0.0,
    "head_init": 1.0,
    "loader": Loader(workers=0),
    "optim": Optim(lr=5e-3, lr_batch=0, warmup_epochs=0, layer_decay=0.9),
    "precision": "32-true",
}


def write_movie(path: Path, left: int, right: int) -> None:
    """Two boxes of the colours of actions, which change after half the time."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(SECONDS * RATE):
            picture = np.zeros((48, 64, 3), dtype=np.uint8)
            swapped = number >= SECONDS * RATE // 2
            for box, colour in ((LEFT, right if swapped else left), (RIGHT, left if swapped else right)):
                x1, y1, x2, y2 = (round(edge * size) for edge, size in zip(box, (64, 48, 64, 48), strict=True))
                picture[y1:y2, x1:x2] = COLOURS[colour]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def row(video: str, second: int, box: tuple[float, ...], *rest: object) -> str:
    return ",".join(map(str, [video, f"{second:04d}", *box, *rest]))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Movies and their annotations: action 4 is true of every box; two key frames of each half of a movie."""
    folder = tmp_path_factory.mktemp("ava")
    (folder / "videos").mkdir()
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for number in range(14):
        video, left, right = f"-m{number}", 1 + number % 2, 1 + number // 2 % 2
        write_movie(folder / "videos" / f"{video}.mp4", left, right)
        for second in (901, 902, 905, 906):
            pair = (left, right) if second < START + SECONDS // 2 else (right, left)
            for person, (box, action) in enumerate(zip((LEFT, RIGHT), pair, strict=True)):
                rows = [row(video, second, box, one, person) for one in (action, 4)]
                lines["train" if number < 10 else "val"] += rows
    lines["val"].append("-m13,0903,,,,,,")
    for split, rows in lines.items():
        (folder / f"{split}.csv").write_text("\n".join(rows) + "\n")
    (folder / "labels.pbtxt").write_text(LABELS)
    names = ("train.csv", "val.csv", "labels.pbtxt")
    return {name.split(".")[0]: str(folder / name) for name in names} | {"data": str(folder / "videos")}


def of(files: dict[str, str], **changed: Any) -> dict[str, Any]:
    """The options of the data: the folder of videos, and the annotations as a group."""
    group: dict[str, Any] = {"start": START, **files, **changed}
    return {"data": group.pop("data"), "actions": ActionFiles(**group)}


@pytest.fixture(scope="module")
def trained(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "run"
    with reports():
        return out, finetune("video_vit_small_patch16_224", out=str(out), **of(files), **TRAINING)


def test_detection_is_learnt_and_recorded(trained: tuple[Path, dict[str, Any]]) -> None:
    out, info = trained
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert len(rows) == 4 and float(rows[-1]["val/map"]) > 95
    assert float(rows[-1]["val/loss"]) < float(rows[0]["val/loss"])
    assert info["status"] == "finished" and info["accuracy"]["map"] == pytest.approx(float(rows[-1]["val/map"]))
    assert info["accuracy"]["best_map"] >= info["accuracy"]["map"]
    assert {"best.ckpt", "last.ckpt"} == {path.name for path in (out / "checkpoints").iterdir()}
    assert json.loads((out / "student.json").read_text())["classes"] == ["red", "green", "there"]
    assert info["metrics"] == {"map": "frame mAP %"} and (info["score"], info["score_per_sample"]) == ("map", False)
    assert "frame mAP %" in (out / "report.html").read_text()


def test_the_final_test_is_that_of_the_exported_network(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, info = trained
    result = json.loads((out / "detection.json").read_text())
    assert result["map"] == pytest.approx(info["accuracy"]["map"], abs=1e-3) == info["detection"]["map"]
    assert [(action["id"], action["name"], action["annotated"]) for action in result["actions"]] == [
        (1, "red", 16),
        (2, "green", 16),
        (4, "there", 32),
    ]
    again = evaluate(str(out), workers=0, out=str(tmp_path / "test"), json=True)
    assert again["map"] == result["map"] and again["actions"] == result["actions"]
    assert (tmp_path / "test" / "predictions.csv").read_bytes() == (out / "predictions.csv").read_bytes()
    best = evaluate(str(out), workers=0, checkpoint="best", json=True)
    assert best["map"] == pytest.approx(info["accuracy"]["best_map"], abs=1e-3)


def test_predictions_are_avas_submission(trained: tuple[Path, dict[str, Any]]) -> None:
    rows = [line.split(",") for line in (trained[0] / "predictions.csv").read_text().splitlines()]
    assert len(rows) == 4 * 4 * 2 * 3 and {len(fields) for fields in rows} == {8}
    assert {fields[6] for fields in rows} == {"1", "2", "4"} and {fields[1] for fields in rows} >= {"0901", "0906"}
    assert all(0 <= float(fields[7]) <= 1 for fields in rows)
    assert {tuple(map(float, fields[2:6])) for fields in rows} == {LEFT, RIGHT}


def test_boxes_of_a_detector_exclusions_and_a_subset_of_actions(
    trained: tuple[Path, dict[str, Any]], files: dict[str, str], tmp_path: Path
) -> None:
    """Detections of one box only, at a key frame that no score may find again, and one that is not sure enough."""
    boxes, excluded, two = tmp_path / "boxes.csv", tmp_path / "excluded.csv", tmp_path / "two.csv"
    lines = [row(f"-m{video}", second, LEFT, "", 0.9) for video in range(14) for second in (901, 902, 905, 906)]
    lines.append(row("-m13", 902, RIGHT, "", 0.5))
    boxes.write_text("\n".join(lines) + "\n")
    excluded.write_text("-m13,0905\n-m13,0906\n")
    two.write_text("label_id,label_name\n1,red\n2,green\n")
    options: Any = {"detections": str(boxes), "excluded": str(excluded), "evaluated": str(two)}
    result = evaluate(str(trained[0]), actions=ActionFiles(**options), workers=0, json=True)
    assert (result["key_frames"], result["boxes"]) == (14, 14)  # of the four movies to validate on
    assert [action["id"] for action in result["actions"]] == [1, 2]
    assert 30 < result["map"] < 70  # half of the boxes cannot be found
    unsure = evaluate(str(trained[0]), actions=ActionFiles(**options, threshold=0.4), workers=0, json=True)
    assert unsure["boxes"] == 15 and unsure["map"] > result["map"]


def test_an_interrupted_run_is_resumed_and_ends_alike(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdistill.training.module import TrainingModule

    optim = Optim(lr=5e-3, lr_batch=0, warmup_epochs=0, ema=0.5)
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("\n".join(row(f"-m{video}", 901, LEFT, "", 0.9) for video in range(10, 14)))
    options = {**TRAINING, "epochs": 2, "optim": optim, "dropout": 0.1, "drop_path": 0.1}
    options |= of(files, detections=str(boxes))
    name, whole, pieced = "video_vit_small_patch16_224", tmp_path / "whole", tmp_path / "pieced"
    finetune(name, out=str(whole), **options)
    step = TrainingModule.training_step

    def stop_in_the_second_epoch(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 1 and batch_idx == 2:
            raise RuntimeError("pulled plug")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", stop_in_the_second_epoch)
        with pytest.raises(RuntimeError, match="pulled plug"):
            finetune(name, out=str(pieced), **options)
    resume(str(pieced))
    same = ("student.safetensors", "student_ema.safetensors", "metrics.csv", "predictions.csv", "detection.json")
    for file in same:
        assert (whole / file).read_bytes() == (pieced / file).read_bytes(), file
    header = (whole / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/map", "ema/map"} <= set(header) and "val/loss" not in header  # detections are not annotated


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "vit_tiny_patch16_224", "model_args": None}, "must be a video ViT"),
        ({"task": "classification", "data": "digits"}, "--actions has no effect unless --task is actions"),
        ({"pool": "cls"}, "--pool has no effect with --task actions"),
        ({"sampling": "uniform"}, "--sampling has no effect on key frames"),
        ({"augment": Augment(recipe="deit")}, "hflip, erasing and repeats only; got scale, auto_augment"),
        ({"augment": Augment(recipe="none", mixup_prob=0.3)}, "hflip, erasing and repeats only; got mixup or cutmix"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"data": "digits"}, "must be an existing folder of videos; got 'digits'"),
    ],
)
def test_bad_input_is_one_line(files: dict[str, str], tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    options = {"model": "video_vit_small_patch16_224", **of(files), **TRAINING, **changed}
    with pytest.raises(UserError, match=words) as error:
        finetune(out=str(tmp_path / "run"), **options)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"start": 0.0}, r"second 906 of .*, which has 64 frames from second 0 on.*Set --actions.start"),
        ({"start": 903.0}, "before the start of the videos, 903 s; got 901 s"),
        ({"data": "nowhere"}, "--data must be an existing folder.*; got 'nowhere'"),
        ({"train": "nowhere.csv"}, r"must be readable; got 'nowhere.csv' \(No such file"),
        ({"train": None}, "--actions.train is required"),
        ({"val": None}, "--actions.val is required"),
        ({"threshold": 0.5}, "--actions.threshold has no effect without --actions.detections"),
        ({"threshold": 1.5}, r"--actions.threshold must lie in \[0, 1\]; got 1.5"),
        ({"frame_rate": 25.0}, "--actions.frame_rate has no effect on video files"),
    ],
)
def test_bad_files_are_one_line(files: dict[str, str], tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        finetune("video_vit_small_patch16_224", out=str(tmp_path / "run"), **of(files, **changed), **TRAINING)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gone1,901,0,0,1,1,1,0\ngone2,901,0,0,1,1,1,0", r"2 of 12 missing: 'gone1', 'gone2'"),
        ("-m1,901,0,0,1,1,3,0", r"must be in the label map; got action id 3\..*line 161 of .*train.csv"),
        ("-m1,901,0,0,1,1", r"Every line of .*train.csv must be video_id.*line 161: '-m1,901,0,0,1,1'"),
        ("-m1,901,0,0,64,48,1,0", "line 161.*shares of width and height"),
    ],
)
def test_bad_annotations_are_named(files: dict[str, str], tmp_path: Path, line: str, words: str) -> None:
    train = tmp_path / "train.csv"
    train.write_text(Path(files["train"]).read_text() + line + "\n")
    with pytest.raises(UserError, match=words) as error:
        finetune("video_vit_small_patch16_224", out=str(tmp_path / "run"), **of(files, train=str(train)), **TRAINING)
    assert "\n" not in str(error.value)


def test_what_goes_with_another_task_is_refused(trained: tuple[Path, dict[str, Any]]) -> None:
    """Of a run with actions what asks for a label each, and of other models what asks for actions."""
    for options in ({"keep": 0.5}, {"clips": 2}, {"crop_pct": 0.9}, {"image_size": 16}, {"per_class": True}):
        with pytest.raises(UserError, match=rf"--{next(iter(options))} has no effect on a run with --task actions"):
            evaluate(str(trained[0]), workers=0, **options)
    with pytest.raises(UserError, match="--actions has no effect unless the model is a run with --task actions"):
        evaluate("digits-teacher", actions=ActionFiles(start=900))


def test_a_run_of_the_former_verb_is_read_as_of_today(
    trained: tuple[Path, dict[str, Any]], files: dict[str, str], tmp_path: Path
) -> None:
    """As `detect` wrote them: files on the top level, and no word on metrics in run.json."""
    former = tmp_path / "former"
    shutil.copytree(trained[0], former)
    config = yaml.safe_load((former / "config.yaml").read_text())
    flat = {**config.pop("actions"), "videos": config.pop("data"), "threshold": 0.8, "frame_rate": 30.0}
    config = {name: value for name, value in config.items() if name not in ("task", "pool", "new_head", "sampling")}
    (former / "config.yaml").write_text(yaml.safe_dump({**config, **flat}))
    info = json.loads((former / "run.json").read_text())
    for name in ("metrics", "score", "score_per_sample"):
        del info[name]
    (former / "run.json").write_text(json.dumps({**info, "verb": "detect", "status": "interrupted"}))
    assert evaluate(str(former), workers=0, json=True)["map"] == pytest.approx(info["detection"]["map"], abs=1e-3)
    run = read_run(former)
    assert (run.score, run.columns, run.per_sample) == ("map", {"map": "frame mAP %"}, False)
    assert (run.config["data"], run.config["actions"]["val"]) == (files["data"], files["val"])
    with pytest.raises(UserError, match="`detect` is no verb any more. Use `vitdistill finetune --task actions`"):
        resume(str(former))


@pytest.mark.parametrize("former", ["detect", "frame_map"])
def test_former_verbs_name_the_new_ones(former: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([former, "anything", "--val", "x.csv"]) == 2
    line = capsys.readouterr().err
    new = {"detect": "vitdistill finetune --task actions", "frame_map": "vitdistill evaluate"}[former]
    assert line.startswith(f"error: `{former}` is no verb any more. Use `{new}`") and line.count("\n") == 1


def test_the_annotations_are_options_of_the_command_line(
    trained: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(trained[0]), "--actions.detections=none", "--workers=0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["map"] == pytest.approx(trained[1]["detection"]["map"], abs=1e-3)
    assert main(["evaluate", str(trained[0]), "--workers=0"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("red", "green", "there", "mAP at IoU 0.5"))


@pytest.mark.slow
def test_two_processes_score_like_one(files: dict[str, str], tmp_path: Path) -> None:
    """Every key frame here has two boxes, so that a mean of means is the mean."""
    places = ((name if name == "data" else f"actions.{name}", value) for name, value in files.items())
    common = ["finetune", "video_vit_small_patch16_224", "--task=actions", *(f"--{n}={value}" for n, value in places)]
    common += [f"--model_args.{name}={value}" for name, value in NET.items()]
    common += [
        "--actions.start=900",
        "--stride=1",
        "--epochs=2",
        "--drop_path=0",
        "--head_init=1",
        "--loader.workers=0",
        "--augment.recipe=none",
    ]
    common += ["--augment.hflip=0", "--optim.lr=1e-3", "--optim.lr_batch=0", "--optim.warmup_epochs=0"]
    common += ["--trainer.accelerator=cpu", "--precision=32-true"]
    found = {}
    for name, options in (
        ("one", ["--batch_size=10"]),
        ("two", ["--batch_size=5", "--trainer.devices=2", "--trainer.strategy=ddp"]),
    ):
        command = [sys.executable, "-m", "vitdistill", *common, *options, f"--out={tmp_path / name}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        found[name] = list(csv.DictReader((tmp_path / name / "metrics.csv").open()))
    for one, two in zip(found["one"], found["two"], strict=True):
        assert float(two["train/bce"]) == pytest.approx(float(one["train/bce"]), rel=1e-3)
        assert float(two["val/map"]) == pytest.approx(float(one["val/map"]), abs=0.1)
