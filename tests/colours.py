"""Folders of noisy single-coloured images: told apart in a second of training, so that wrong classes show."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdistill.data.images.augment import Augment
from vitdistill.training.settings import Loader, Optim

COLOURS = {"blue": (0, 0, 190), "green": (0, 190, 0), "red": (190, 0, 0)}
NETWORK = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}


def colours(root: Path, names: Mapping[str, str], train: int = 8, val: int = 4) -> Path:
    """Write a folder of images.

    Args:
        root: of the folder.
        names: colour of each class folder.
        train: images of each class to train on.
        val: images of each class to validate on.
    """
    random = np.random.RandomState(0)
    for split, count in (("train", train), ("val", val)):
        for name, colour in names.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                picture = random.randint(0, 64, (16, 16, 3)) + np.array(COLOURS[colour])
                Image.fromarray(picture.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


def options(data: Any, out: Path, epochs: int = 4, **more: Any) -> dict[str, Any]:
    """Of a verb that trains on them: a folder, or an open source."""
    return {
        "data": str(data) if isinstance(data, Path) else data,
        "out": str(out),
        "epochs": epochs,
        "batch_size": 12,
        "augment": Augment(recipe="none"),
        "optim": Optim(lr=1e-2, lr_batch=0, warmup_epochs=0),
        "loader": Loader(workers=0),
        **more,
    }


@pytest.fixture(scope="session")
def colour_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tells blue, green and red apart; its data lies beside it, in `data`."""
    from vitdistill.verbs.supervised import supervised

    root = tmp_path_factory.mktemp("colours")
    data = colours(root / "data", {name: name for name in COLOURS})
    info = supervised(student="vit_tiny_patch16_224", student_args=NETWORK, **options(data, root / "run"))
    assert info["accuracy"]["top1"] == 100
    return root / "run"


def renamed(data: Path, root: Path, names: Mapping[str, str]) -> Path:
    """A copy of a folder with some class folders under other names."""
    shutil.copytree(data, root)
    for split in ("train", "val"):
        for old, new in names.items():
            (root / split / old).rename(root / split / new)
    return root
