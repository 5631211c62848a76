"""Generated JPEG folders: small, real files, different in every pixel."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_jpeg(path: Path, seed: int, size: tuple[int, int] = (40, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """`make_folder(train={"cat": 3}, val={"cat": 2})` writes that many JPEGs per class."""

    def make(name: str = "photos", **splits: dict[str, int]) -> Path:
        root = tmp_path / name
        root.mkdir()
        for split, classes in splits.items():
            for label, (class_name, count) in enumerate(classes.items()):
                (root / split / class_name).mkdir(parents=True)
                for number in range(count):
                    write_jpeg(root / split / class_name / f"{number:03d}.jpg", seed=100 * label + number)
        return root

    return make


@pytest.fixture
def photos(make_folder: Callable[..., Path]) -> Path:
    """Ten training and four validation images of two classes."""
    return make_folder(train={"cat": 5, "dog": 5}, val={"cat": 2, "dog": 2})
