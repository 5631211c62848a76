"""Pictures in containers are decoded as those in folders are: 16 bits, orientation, transparency, CMYK."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import contained
from vitdistill.data import open_source
from vitdistill.data.containers.torch_data import TorchImages


def sixteen_bits() -> bytes:
    """Grey of a quarter of the range of 16 bits; clipped to 8 bits it would be white."""
    content = io.BytesIO()
    Image.fromarray(np.full((24, 20), 16448, dtype=np.uint16)).save(content, "png")
    return content.getvalue()


def on_its_side() -> bytes:
    """As telephones write it: 40 wide and 20 high, the left half white; upright it is 20 wide, the upper half white."""
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    image.save(content, "jpeg", exif=exif, quality=95)
    return content.getvalue()


def see_through() -> bytes:
    """Transparent black, which is shown over white."""
    content = io.BytesIO()
    Image.new("RGBA", (24, 24), (0, 0, 0, 0)).save(content, "png")
    return content.getvalue()


def cyan() -> bytes:
    content = io.BytesIO()
    Image.new("CMYK", (24, 24), (255, 0, 0, 0)).save(content, "tiff")
    return content.getvalue()


def pictures(split: str, broken: object = ()) -> list[bytes]:
    made = [sixteen_bits(), on_its_side(), see_through(), cyan()]
    return made + made[:2] if split == "train" else made


def image_folder(folder: Path) -> Any:
    """One of torchvision's sets that take a loader, given to the training as an object."""
    from torchvision.datasets import ImageFolder

    for number, content in enumerate(pictures("train")):
        place = folder / f"{number:02d}"
        place.mkdir()
        (place / "picture.png").write_bytes(content)
    return open_source((ImageFolder(str(folder), loader=Image.open),) * 2)


@pytest.mark.parametrize(
    "write",
    [contained.shards, contained.saved, contained.parquet, contained.csv, image_folder],
    ids=["shards", "hf", "parquet", "csv", "torch"],
)
def test_pictures_come_out_upright_and_in_their_brightness(
    write: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITDISTILL_CACHE", str(tmp_path / "indices"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(contained, "pictures", pictures)
    (tmp_path / "data").mkdir()
    samples = write(tmp_path / "data").train
    grey, upright, clear, blue = (samples.load(index)[0] for index in range(4))
    assert grey.size == (20, 24) and grey.getpixel((3, 3)) == (64, 64, 64)
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == (255, 255, 255) and upright.getpixel((10, 35)) == (0, 0, 0)
    assert clear.getpixel((3, 3)) == (255, 255, 255)
    assert blue.getpixel((3, 3)) == (0, 255, 255)
    assert isinstance(samples, TorchImages) == (write is image_folder)


def test_sets_of_torchvision_with_a_loader_are_given_ours(tmp_path: Path) -> None:
    for name, content in (("a", sixteen_bits()), ("b", on_its_side())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "picture.JPEG").write_bytes(content)
    source = open_source(f"torchvision:ImageFolder?root={tmp_path}&val=0.5")
    found = {source.classes[label]: image for image, label in (part.load(0) for part in (source.train, source.val))}
    assert found["a"].getpixel((3, 3)) == (64, 64, 64) and found["b"].size == (20, 40)
