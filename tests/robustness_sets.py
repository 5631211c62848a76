"""Tiny test sets in the layouts that ImageNet's have, and networks whose answers to them are known."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vitdistill.data.robustness import sets
from vitdistill.data.robustness.published import CORRUPTIONS
from vitdistill.models.families import as_network
from vitdistill.models.network import Network
from vitdistill.models.record import ModelRecord, attach_record

FOUR = ["n01440764", "n01443537", "n01484850", "n01491361"]
REAL = [[0], [2, 1], [], [3], [1, 3, 0], []]  # classes that the first validation images show
STEP = 8  # between two colours that mean different classes


def code(number: int) -> tuple[int, int, int]:
    """The colour that means a class."""
    return number % 32 * STEP, number // 32 * STEP, 0


def write_image(file: Path, number: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), code(number)).save(file, format="PNG")


def linked(root: Path, folders: Mapping[str, Path]) -> Path:
    """A folder with links to others under new names."""
    root.mkdir(parents=True)
    for name, folder in folders.items():
        os.symlink(folder, root / name)
    return root


class Coded(nn.Module):
    """Tells every class by its colour; the class of highest bias where there is one."""

    def __init__(self, classes: Sequence[str], bias: Mapping[int, float] | None = None) -> None:
        super().__init__()
        self.num_classes = len(classes)
        self.pretrained_cfg = {"architecture": "coded", "input_size": (3, 8, 8)}
        codes = torch.tensor([code(number) for number in range(len(classes))], dtype=torch.float32)
        self.register_buffer("codes", codes)
        self.bias = nn.Parameter(torch.zeros(len(classes)))
        with torch.no_grad():
            for number, value in (bias or {}).items():
                self.bias[number] = value
        attach_record(self, ModelRecord(architecture=None, classes=list(classes)))

    def forward(self, images: Tensor) -> Tensor:
        mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
        pixels = 255 * (images.mean(dim=(2, 3)) * std + mean)
        return self.bias - torch.cdist(pixels, self.codes)


def coded(classes: Sequence[str], bias: Mapping[int, float] | None = None) -> Network:
    return as_network(Coded(classes, bias))


@pytest.fixture(scope="session")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet-V2: a folder for each class number, with an image of its colour."""
    root = tmp_path_factory.mktemp("v2") / "imagenetv2-matched-frequency-format-val"
    for number in range(1000):
        write_image(root / str(number) / "a.jpeg", number)
    return root


@pytest.fixture
def four_classes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All sets have four classes, those of ImageNet-A and -R three and two of them; six images have real labels."""
    files = {
        "imagenet_synsets.txt": "\n".join(FOUR),
        "imagenet_a_synsets.txt": "\n".join(FOUR[:3]),
        "imagenet_r_synsets.txt": f"{FOUR[1]}\n{FOUR[3]}",
        "imagenet_real_labels.json": json.dumps(REAL),
    }
    monkeypatch.setattr(sets, "_shipped", files.__getitem__)
    return FOUR


def classes_with(root: Path, counts: Mapping[str, int]) -> Path:
    """Class folders with so many images of the colour of the class."""
    for name, count in counts.items():
        for number in range(count):
            write_image(root / name / f"ILSVRC2012_val_{number:08d}.JPEG", FOUR.index(name))
    return root


def validation(root: Path, shown: Sequence[int], name: str = "ILSVRC2012_val_{:08d}.JPEG") -> Path:
    """Validation images, the first ones; each of the colour of a class, and filed under the classes in turn."""
    for number, each in enumerate(shown):
        write_image(root / FOUR[number % len(FOUR)] / name.format(number + 1), each)
    return root


def corrupted(root: Path, trees: Mapping[int, Path], corruptions: Sequence[str] = CORRUPTIONS) -> Path:
    """ImageNet-C, each severity of all corruptions being the same images."""
    for corruption in corruptions:
        linked(root / corruption, {str(severity): tree for severity, tree in trees.items()})
    return root
