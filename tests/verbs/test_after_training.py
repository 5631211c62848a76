"""evaluate and export on a trained run; a run on an image folder with a broken file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from vitdistill.data.images.augment import Augment
from vitdistill.errors import UserError
from vitdistill.models.record import ModelRecord, record_of
from vitdistill.runs.read import read_run
from vitdistill.training.settings import Optim
from vitdistill.verbs.evaluate import evaluate
from vitdistill.verbs.export import export
from vitdistill.verbs.supervised import supervised

pytestmark = pytest.mark.usefixtures("few_digits")

SMALL: dict[str, Any] = {"embed_dim": 12, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verbs") / "run"
    supervised(
        student="digits_vit_small",
        data="digits",
        out=str(out),
        epochs=2,
        batch_size=24,
        student_args=SMALL,
        augment=Augment(recipe="none"),
        optim=Optim(lr=3e-3, lr_batch=0, warmup_epochs=0, ema=0.9),
    )
    return out


def test_evaluate_repeats_the_runs_own_numbers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = json.loads((run / "run.json").read_text())["accuracy"]
    result = evaluate(str(run), json=True)
    assert json.loads(capsys.readouterr().out) == result
    assert result["top1"] == pytest.approx(recorded["top1"], abs=1e-3)
    assert result["top5"] == pytest.approx(recorded["top5"], abs=1e-3)
    assert result["loss"] == pytest.approx(recorded["loss"], abs=1e-3)
    assert result["images"] == 60
    assert evaluate(str(run), checkpoint="last")["top1"] == result["top1"]
    assert evaluate(str(run), checkpoint="best")["top1"] == pytest.approx(recorded["best_top1"], abs=1e-3)
    assert evaluate(str(run), checkpoint="ema")["top1"] == pytest.approx(recorded["ema_top1"], abs=1e-3)


def test_a_run_records_how_its_images_are_made_ready(run: Path, tmp_path: Path) -> None:
    record = ModelRecord.read(run)
    assert record.preprocessing == {
        **{"size": [12, 12], "channels": 3, "crop_pct": 1.0, "interpolation": "bicubic", "crop_mode": "center"},
        **{"mean": record.mean, "std": record.std},
    }
    assert ModelRecord.of_file(run / "student.safetensors") == record
    for checkpoint in ("exported", "best", "ema"):
        student = record_of(read_run(run).student(checkpoint).net)  # type: ignore[arg-type]
        assert student.preprocessing == record.preprocessing and student.classes == record.classes
    image_folder(tmp_path / "data", per_class=20, broken=0)
    info = train_on(tmp_path / "data", tmp_path / "run", augment=Augment(recipe="tiny", crop_pct=0.7))
    assert info["status"] == "finished"
    before, config = evaluate(str(tmp_path / "run")), tmp_path / "run" / "config.yaml"
    assert ModelRecord.read(tmp_path / "run").preprocessing["crop_pct"] == 0.7
    config.write_text(config.read_text().replace("crop_pct: 0.7", "crop_pct: null"))
    assert evaluate(str(tmp_path / "run")) == before  # the record alone says it
    assert evaluate(str(tmp_path / "run"), crop_pct=1.0)["loss"] != before["loss"]


def test_evaluate_on_fewer_patches_gives_another_loss(run: Path) -> None:
    assert evaluate(str(run), keep=9)["loss"] != evaluate(str(run))["loss"]


def test_an_exported_student_loads_with_timm_alone(run: Path) -> None:
    result = export(str(run))
    record = json.loads((run / "student.json").read_text())
    net = timm.create_model(record["architecture"], checkpoint_path=result["path"], **record["args"]).eval()
    from vitdistill.models.build import build

    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(net(images), build(str(run)).eval().net(images))
    assert record["args"]["num_classes"] == 10 and record["classes"] == [str(digit) for digit in range(10)]
    assert result["max_difference"] == 0


def test_onnx_gives_the_same_logits_for_any_batch(run: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    result = export(str(run), format="onnx")
    assert result["max_difference"] < 1e-4
    session = onnxruntime.InferenceSession(result["path"])
    images = np.random.default_rng(0).standard_normal((5, 3, 12, 12), dtype=np.float32)
    from vitdistill.models.build import build

    with torch.no_grad():
        expected = build(str(run)).eval().net(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(session.run(None, {"images": images})[0], expected, atol=1e-4)


def image_folder(root: Path, per_class: int, broken: int) -> None:
    """Two classes of generated JPEGs, some of them cut off in the middle."""
    pixels = np.random.default_rng(0)
    for split, count in (("train", per_class), ("val", per_class // 10)):
        for number, name in enumerate(("dark", "bright")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                values = pixels.integers(120 * number, 120 * number + 100, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(values).save(folder / f"{index}.jpg")
    for index in range(broken):
        path = root / "train" / "dark" / f"{index}.jpg"
        path.write_bytes(path.read_bytes()[:200])


def train_on(folder: Path, out: Path, augment: Augment = Augment(recipe="tiny")) -> dict[str, Any]:
    return supervised(
        student="vit_tiny_patch16_224",
        student_args={**SMALL, "img_size": 16, "patch_size": 8, "depth": 1},
        data=str(folder),
        out=str(out),
        epochs=2,
        batch_size=20,
        augment=augment,
        optim=Optim(lr=3e-3, lr_batch=0, warmup_epochs=0),
    )


def test_an_image_folder_with_a_broken_file(tmp_path: Path) -> None:
    image_folder(tmp_path / "data", per_class=60, broken=1)
    info = train_on(tmp_path / "data", tmp_path / "run")
    corrupt = info["data"]["corrupt"]
    assert corrupt["count"] == 1 and corrupt["files"][0].endswith("dark/0.jpg")
    assert info["accuracy"]["top1"] > 90  # dark against bright


def test_too_many_broken_files_stop_the_run(tmp_path: Path) -> None:
    image_folder(tmp_path / "data", per_class=60, broken=4)
    with pytest.raises(UserError, match=r"At most 1% of the images may be unreadable.*dark"):
        train_on(tmp_path / "data", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_evaluating_needs_matching_classes(run: Path, tmp_path: Path) -> None:
    image_folder(tmp_path / "data", per_class=10, broken=0)
    with pytest.raises(UserError, match=r"has 10 and .* has 2"):
        evaluate(str(run), data=str(tmp_path / "data"))


@pytest.mark.usefixtures("all_digits")
def test_the_bundled_teacher_is_small_and_good() -> None:
    from vitdistill.models.presets import BUNDLED

    assert (BUNDLED["digits-teacher"] / "student.safetensors").stat().st_size < 5e6
    assert evaluate("digits-teacher")["top1"] >= 97
