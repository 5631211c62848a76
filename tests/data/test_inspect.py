"""How large the pictures of a source are, by a look at a few headers."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitdistill.data.bundled.digits import digits
from vitdistill.data.containers.torch_data import open_torch
from vitdistill.data.images.folder import FolderImages, image_folder
from vitdistill.data.inspect import LOOKED_AT, usual_short_side


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 pictures to train on, most of them 30 pixels high and some wide ones, of which the third is no picture."""
    for split, count in (("train", 20), ("val", 1)):
        for name in ("a", "b"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (90 if number % 5 == 0 else 40, 30)).save(folder / f"{number:02}.png")
    (tmp_path / "train" / "a" / "02.png").write_bytes(b"no picture")
    return tmp_path


def test_a_source_of_one_size_says_it() -> None:
    assert usual_short_side(digits()) == 12


def test_a_few_headers_of_a_folder_are_read_and_nothing_is_decoded(photos: Path, monkeypatch: Any) -> None:
    asked, short_side = [], FolderImages.short_side
    monkeypatch.setattr(FolderImages, "load", lambda self, index: pytest.fail("decoded"))
    monkeypatch.setattr(FolderImages, "short_side", lambda self, index: asked.append(index) or short_side(self, index))
    assert usual_short_side(image_folder(photos)) == 30
    assert len(asked) == LOOKED_AT and asked[0] == 0 and asked[-1] > 35  # from everywhere; 2 of them is no picture
    assert 2 in asked


def test_a_slow_disk_is_asked_only_so_often(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(FolderImages, "short_side", lambda self, index: time.sleep(0.06) or asked.append(index) or 7)
    assert usual_short_side(image_folder(photos)) == 7
    assert asked == [0]


def test_nothing_readable_says_nothing(photos: Path) -> None:
    source = image_folder(photos)
    for file in (photos / "train").rglob("*.png"):
        file.write_bytes(b"")
    assert usual_short_side(source) is None


def test_pictures_of_containers_count_as_well() -> None:
    """CIFAR is never a folder, and its pictures are the smallest that people train on."""
    generator = np.random.default_rng(0)
    data = [(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8), number % 2) for number in range(8)]
    assert usual_short_side(open_torch((data, data[:2]), labels=True)) == 24
    tensors = torch.utils.data.TensorDataset(torch.zeros(4, 3, 28, 28), torch.tensor([0, 1, 0, 1]))
    assert usual_short_side(open_torch((tensors, tensors), labels=True)) == 28
