"""predict and embed: files of users through the transform of the model's own evaluation."""

import csv
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitdistill
from generated_videos import write_video
from kept_models import CLASSES, keep_model
from vitdistill.cli import main
from vitdistill.data.bundled.digits import digits
from vitdistill.data.given import given_files
from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.verbs.parser import normalised
from vitdistill.verbs.rows import RowWriter


def predict(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
    return vitdistill.predict(*arguments, workers=0, device="cpu", **options)


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 40 digits to validate on, as files, in folders of their class."""
    root, samples = tmp_path_factory.mktemp("digits"), digits().val
    for index in range(40):
        image, label = samples.load(index)
        path = root / str(label) / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    return root


def test_a_folder_is_predicted_as_it_is_evaluated(digit_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = predict("digits-teacher", [str(digit_files)], format="json", top=3)
    assert json.loads(capsys.readouterr().out) == rows and len(rows) == 40
    assert [row["path"] for row in rows] == sorted(str(path) for path in digit_files.rglob("*.png"))
    right = [row["label"] == Path(row["path"]).parent.name for row in rows]
    assert sum(right) >= 38  # the teacher has 98.9%
    network, samples = build("digits-teacher").eval(), digits().val
    transform = samples.transform(network.input, vitdistill_options(), train=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.input.mean, network.input.std))
    for row in rows[:5]:
        pixels = transform(samples.load(int(Path(row["path"]).stem))[0])
        with torch.no_grad():
            wanted = network((pixels / 255 - mean).div(std)[None]).prediction.softmax(1)[0]
        assert [each["class"] for each in row["top"]] == wanted.topk(3).indices.tolist()
        assert row["probability"] == pytest.approx(float(wanted.max()), abs=1e-5)


def vitdistill_options() -> Any:
    from vitdistill.data.samples import ViewOptions

    return ViewOptions(augment=vitdistill.Augment(recipe="none"))


def test_rows_as_csv_file_with_the_names_of_the_classes(digit_files: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "rows.csv"
    files = [str(digit_files / "0"), str(next((digit_files / "1").iterdir()))]
    rows = predict("digits-teacher", files, out=str(out), top=2)
    with out.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["path", "label", "probability", "label_2", "probability_2"]
    assert [row["path"] for row in read] == [row["path"] for row in rows]
    assert float(read[0]["probability"]) == rows[0]["probability"]


def test_fewer_patches_give_other_probabilities(digit_files: Path) -> None:
    some, every = (predict("digits-teacher", [str(digit_files / "0")], keep=keep) for keep in (0.3, 1.0))
    assert [row["probability"] for row in some] != [row["probability"] for row in every]


def test_unreadable_files_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (20, 20), "white").save(tmp_path / "a good one.png")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "notes.txt").write_text("left out")
    (tmp_path / ".hidden.png").write_text("passed over")
    words = ["predict", "digits-teacher", str(tmp_path), "--workers", "0", "--format", "csv"]
    assert main(words) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    warnings = [record.getMessage() for record in caplog.records]
    for name in ("notes.txt", "text.jpg"):
        assert sum(name in text for text in warnings) == 1
    assert not any("hidden" in text for text in warnings)
    (tmp_path / "a good one.png").unlink()
    assert main(words) == 2  # as none could be read
    assert "At least one file must be readable; got none of 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("digits-mae", {}, "no classifier to predict with"),
        ("digits-teacher", {"top": 0}, "top must be at least 1"),
        ("digits-teacher", {"batch_size": 0}, "batch_size must be at least 1"),
        ("digits-teacher", {"model_args": {"num_classes": 3}}, "random weights"),
        ("digits-teacher", {"clips": 2}, "clips has no effect with a network over single images"),
        ("digits-teacher", {"out": "."}, "--out must be a file"),
        ("moving-digits-videomae", {}, "must be videos; got none"),
    ],
)
def test_refused(model: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=message):
        predict(model, [str(tmp_path / "a.png")], **options)


def test_a_new_classifier_predicts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of weights whose classifier is for other classes than the architecture that they are loaded into."""
    from vitdistill.evaluation import files
    from vitdistill.models.record import mark_new_head

    network = build("digits-teacher")
    mark_new_head(network.net)
    monkeypatch.setattr(files, "load", lambda *_: network)
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="is new and has random weights. Fine-tune it, or use `vitdistill embed`"):
        predict("digits-teacher", [str(tmp_path / "a.png")])
    with pytest.raises(UserError, match=r"--model_args.num_classes would replace the trained classifier"):
        vitdistill.embed("digits-teacher", [str(tmp_path / "a.png")], model_args={"num_classes": 3})
    assert (
        vitdistill.embed("digits-teacher", [str(tmp_path / "a.png")])["features"].shape[0] == 1
    )  # which needs no classifier


def test_missing_files_are_refused_from_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "digits-teacher", "nowhere/a.jpg", "b.png"]) == 2
    assert "must exist; got 'nowhere/a.jpg', 'b.png'" in capsys.readouterr().err


def test_names_in_another_encoding_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    for format in ("table", "csv", "json"):
        assert predict("digits-teacher", [str(tmp_path)], format=format)[0]["path"].endswith(name)
        assert "caf\ufffd.png" in capsys.readouterr().out
    vitdistill.embed("digits-teacher", [str(tmp_path)], out=str(tmp_path / "f.parquet"))


def test_words_fill_positional_options_in_turn() -> None:
    wanted = ["--top", "2", "--model", "runs/x", "--files", '["a.jpg", "b c.jpg"]']
    assert normalised("predict", ["runs/x", "--top", "2", "a.jpg", "b c.jpg"]) == wanted
    assert normalised("predict", ["--model", "m", "a.jpg"]) == ["--model", "m", "--files", '["a.jpg"]']
    with pytest.raises(UserError, match="One model may be given without its option's name; got also b"):
        normalised("evaluate", ["a", "b"])


# --- videos ------------------------------------------------------------------------------------------------------


@pytest.fixture
def video_model(tmp_path: Path) -> Path:
    """A tiny video network with a record, in a folder of its own."""
    torch.manual_seed(0)
    network = build(
        "moving_digits_vit_small", args={"frames": 4, "img_size": 32, "patch_size": 16, "num_classes": 4, "depth": 1}
    )
    return keep_model(network, tmp_path / "video", frames=4, stride=3, sampling="dense", interpolation="bilinear")


def test_videos_for_networks_over_clips_and_over_images(
    video_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    (data / "frames").mkdir(parents=True)
    write_video(data / "a.mp4", 30)
    Image.new("RGB", (40, 40), "red").save(data / "b.png")
    for number in range(12):
        Image.new("RGB", (40, 40), (20 * number,) * 3).save(data / "frames" / f"img_{number:03d}.png")
    rows = predict(str(video_model), [str(data)], top=1)
    assert [Path(row["path"]).name for row in rows] == ["a.mp4", "frames"] and rows[0]["label"] in CLASSES
    assert [record.getMessage() for record in caplog.records] == [f"Left out, since no videos (1): '{data}/b.png'"]
    several = predict(str(video_model), [str(data / "a.mp4")], clips=2, crops=3)
    assert len(several) == 1 and several[0]["probability"] != rows[0]["probability"]
    # The recorded stride is the default.
    assert predict(str(video_model), [str(data / "a.mp4")], stride=3)[0]["probability"] == rows[0]["probability"]
    assert predict(str(video_model), [str(data / "a.mp4")], stride=1)[0]["probability"] != rows[0]["probability"]
    rows = predict("digits-teacher", [str(data / "a.mp4"), str(data / "b.png")])
    assert [Path(row["path"]).name for row in rows] == ["a.mp4", "b.png"]


# --- features ----------------------------------------------------------------------------------------------------


def test_features_are_those_of_knn(digit_files: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    files = [str(digit_files)]
    found = vitdistill.embed("digits-teacher", files, out=str(tmp_path / "f.npy"), workers=0, device="cpu")
    values = np.load(tmp_path / "f.npy")
    assert values.shape == (40, 96) and values.dtype == np.float32
    np.testing.assert_array_equal(values, found["features"])
    assert (tmp_path / "f.csv").read_text().splitlines() == ["path", *found["paths"]]
    numbers = [int(Path(path).stem) for path in found["paths"]]

    from vitdistill.evaluation.features import extract
    from vitdistill.evaluation.loading import Reader, open_subject

    options: dict[str, Any] = {"data": "digits", "image_size": None, "crop_pct": None, "model_args": None}
    subject = open_subject("digits-teacher", checkpoint="exported", **options)
    reader = Reader(subject, batch_size=64, device="cpu", workers=0)
    wanted = extract(reader, subject.source.val).values[numbers]
    np.testing.assert_allclose(values, wanted, atol=1e-5)
    vitdistill.embed("digits-teacher", files, out=str(tmp_path / "f.parquet"), pool="avg", workers=0, device="cpu")
    table = parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert table["path"] == found["paths"] and len(table["features"][0]) == 96
    assert not np.allclose(np.array(table["features"]), values)


def test_features_need_a_known_ending(digit_files: Path) -> None:
    with pytest.raises(UserError, match=r"--out must end in .npy or .parquet; got a.txt"):
        vitdistill.embed("digits-teacher", [str(digit_files)], out="a.txt")


def test_paths_of_features_replace_no_other_table(digit_files: Path, tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_text("predictions")
    with pytest.raises(UserError, match="photos.csv would be replaced by the paths of photos.npy"):
        vitdistill.embed("digits-teacher", [str(digit_files)], out=str(tmp_path / "photos.npy"))
    assert (tmp_path / "photos.csv").read_text() == "predictions"


def test_rows_in_json_can_be_read_when_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    writer = RowWriter(str(path), None).__enter__()
    writer.write([{"path": "a.jpg"}, {"path": "b.jpg"}])
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert json.loads(path.read_text()) == [{"path": "a.jpg"}, {"path": "b.jpg"}]


def test_a_published_network_says_imagenets_names_in_words() -> None:
    from vitdistill.verbs.predict import _labels

    labels = _labels(build("vit_tiny_patch16_224", meta=True))
    assert len(labels) == 1000 and "tench" in labels[0]


def test_classes_without_names_are_numbers(caplog: pytest.LogCaptureFixture) -> None:
    from vitdistill.verbs.predict import _labels

    with caplog.at_level(logging.WARNING):
        assert _labels(build("digits_vit_small", args={"num_classes": 3})) == ["0", "1", "2"]
    assert "not known" in caplog.text


def test_a_folder_with_one_picture_is_no_video(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("clip/1.png", "clip/2.png", "holiday/only.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    assert given_files([str(tmp_path)], clips=True).path(0) == str(tmp_path / "clip")
    assert len(given_files([str(tmp_path)], clips=True)) == 1
    assert "Left out, since no videos (1)" in caplog.text and "only.png" in caplog.text
