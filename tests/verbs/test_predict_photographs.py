"""predict on what people really have: turned, deep, printed, animated and modern pictures, and a text named .jpg."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from vitdistill.cli import main
from vitdistill.data.bundled.digits import digits
from vitdistill.data.folders import is_image
from vitdistill.verbs.predict import predict


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """One digit, large, in many forms; `plain.png` is what all of them show."""
    small = digits().val.load(next(index for index, label in enumerate(digits().val.labels or []) if label == 2))[0]
    image = small.convert("L").resize((96, 96), Image.Resampling.NEAREST)
    folder = tmp_path / "photographs"
    folder.mkdir()
    image.save(folder / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image.rotate(90, expand=True).convert("RGB").save(folder / "telephone.jpg", exif=exif, quality=95)
    Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(folder / "sixteen_bits.png")
    image.convert("RGB").convert("CMYK").save(folder / "printed.jpg", quality=95)
    image.save(folder / "animated.gif", save_all=True, append_images=[Image.new("L", (96, 96))])
    if features.check("avif"):
        image.convert("RGB").save(folder / "modern.avif", quality=95)
    (folder / "text.jpg").write_text("This is no picture.")
    return folder


def test_every_form_is_read_right(
    photographs: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    if not is_image("a.gif"):
        pytest.skip("decoding of these forms is not there yet")
    assert main(["predict", "digits-teacher", str(photographs), "--workers", "0"]) == 0
    assert "text.jpg" not in capsys.readouterr().out
    assert len([record for record in caplog.records if "text.jpg" in record.getMessage()]) == 1
    rows = {Path(row["path"]).name: row for row in predict("digits-teacher", [str(photographs)], workers=0)}
    assert set(rows) == {path.name for path in photographs.iterdir()} - {"text.jpg"}
    plain = rows["plain.png"]
    assert plain["label"] == "2"
    for name, row in rows.items():
        assert row["label"] == "2" and row["probability"] == pytest.approx(plain["probability"], abs=0.1), name


def test_a_turned_or_dim_digit_is_another(photographs: Path) -> None:
    """What makes the test above one of orientation and brightness."""
    image = Image.open(photographs / "plain.png")
    image.rotate(90).save(photographs / "turned.png")
    image.point([level // 256 for level in range(256)]).save(photographs / "black.png")
    names = [str(photographs / name) for name in ("plain.png", "turned.png", "black.png")]
    plain, *others = predict("digits-teacher", names, workers=0)
    for row in others:
        assert row["label"] != "2" or row["probability"] < plain["probability"] - 0.2


def test_a_text_named_jpg_is_one_line(photographs: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rows = predict("digits-teacher", [str(photographs / "plain.png"), str(photographs / "text.jpg")], workers=0)
    assert [Path(row["path"]).name for row in rows] == ["plain.png"]
    assert len([record for record in caplog.records if "text.jpg" in record.getMessage()]) == 1
