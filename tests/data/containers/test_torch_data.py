"""Torch data sets as data in Python: forms of pictures, where labels are found, wrappers, pairs, verbs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, RandomHorizontalFlip, ToTensor

import vitdistill
from contained import CLASSES, Listed, Pairs
from vitdistill import Augment
from vitdistill.data import ViewOptions, open_source
from vitdistill.data.containers.torch_data import as_picture
from vitdistill.data.loader import make_loader
from vitdistill.data.order import EpochBatchSampler
from vitdistill.errors import UserError
from vitdistill.types import InputSpec
from vitdistill.verbs.evaluate import evaluate
from vitdistill.verbs.resume import resume

PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
GREY = np.repeat(PIXELS[..., :1], 3, axis=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(8):
        path = tmp_path / "photos" / CLASSES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(path)
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Image.fromarray(PIXELS), PIXELS),
        (PIXELS, PIXELS),
        (PIXELS.transpose(2, 0, 1), PIXELS),
        (PIXELS[..., 0], GREY),
        (PIXELS[..., :1], GREY),
        (PIXELS / 255, PIXELS),
        ((PIXELS / 255).astype(np.float32), PIXELS),
        (PIXELS.astype(np.int64), PIXELS),
        (PIXELS.astype(np.uint16) * 257, PIXELS),
        (torch.from_numpy(PIXELS).permute(2, 0, 1), PIXELS),
        (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255, PIXELS),
        (torch.from_numpy(PIXELS).permute(2, 0, 1).to(torch.float16) / 255, PIXELS),
        (torch.from_numpy(PIXELS)[..., 0], GREY),
        (torch.from_numpy(PIXELS)[..., 0][None], GREY),
        (PIXELS > 50, (PIXELS > 50) * np.uint8(255)),
    ],
)
def test_forms_of_pictures(value: Any, expected: np.ndarray) -> None:
    assert np.array_equal(np.asarray(as_picture(value, "it")), expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            torch.linspace(-2, 2, 48).view(3, 4, 4),
            "Float pictures must lie in 0..1; got -2 to 2 from it. Take Normalize out of its transform, or",
        ),
        (torch.full((3, 4, 4), float("nan")), "Float pictures must lie in 0..1; got nan"),
        (torch.full((3, 4, 4), 300), "whole numbers must lie in 0..255; got 300 to 300"),
        (torch.zeros(3, 8, 4, 4), r"A picture must be a PIL image.*; got the shape \(3, 8, 4, 4\) from it"),
        (torch.zeros(5, 4, 4), r"got the shape \(5, 4, 4\)"),
        ("cat.jpg", "got str from it"),
    ],
)
def test_what_is_no_picture_is_said(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_picture(value, "it")


def test_labels_of_wrappers_are_found_without_reading(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = ImageFolder(folder)  # cat: 0, 2, 4, 6; dog: 1, 3, 5, 7
    part = Subset(photos, [0, 5, 7])
    assert open_source((part, photos)).train.labels == [0, 1, 1]
    assert open_source((part, photos)).train.path(1) == str(folder / "dog/3.png")
    both = ConcatDataset([part, Subset(photos, [1])])
    assert open_source((both, photos)).train.labels == [0, 1, 1, 0]
    turned = ImageFolder(folder, target_transform=lambda label: 1 - label)
    assert open_source((turned, photos)).train.labels == [1] * 4 + [0] * 4
    assert open_source((Subset(turned, [0, 7]), photos)).train.labels == [1, 0]
    tensors = TensorDataset(torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2] * 2))
    assert open_source((tensors, tensors)).train.labels == [0, 1, 2] * 2
    assert open_source((tensors, tensors)).classes == ["0", "1", "2"]
    assert "Reading every sample" not in caplog.text
    assert open_source(Pairs("train")).classes == CLASSES
    assert "Reading every sample of Pairs once" in caplog.text


def test_labels_in_a_list_that_say_something_else_are_not_believed(caplog: pytest.LogCaptureFixture) -> None:
    class Shifted(Listed):
        targets = [1, 0, 1, 0, 1, 0]  # type: ignore[assignment]  # noqa: RUF012

    assert open_source((Shifted("train"), Listed("val"))).train.labels == [0, 1] * 3
    assert "Reading every sample of Shifted" in caplog.text


def test_names_of_classes_in_a_mapping() -> None:
    class Mapped(Listed):
        classes = None  # type: ignore[assignment]
        class_to_idx = {"wolf": 0, "fox": 1}  # noqa: RUF012

    assert open_source((Mapped("train"), Mapped("val"))).classes == ["wolf", "fox"]
    parts = torch.utils.data.random_split(Listed("train"), [4, 2])
    assert [len(part) for part in (open_source(parts).train, open_source(parts).val)] == [4, 2]


def test_one_set_lends_a_share_for_validation(folder: Path) -> None:
    source = open_source(ImageFolder(folder))
    assert (source.name, source.classes, len(source.train), len(source.val)) == ("ImageFolder", CLASSES, 7, 1)
    names = [(Image.new("RGB", (8, 8)), name) for name in ("b", "a", "b")]
    assert open_source(names).classes == ["a", "b"]


def test_without_labels_pictures_alone_will_do() -> None:
    pictures = TensorDataset(torch.rand(6, 3, 8, 8))
    assert open_source(pictures, labels=False).classes == []
    with pytest.raises(UserError, match=r"Labelled data is needed; got TensorDataset, which has no labels"):
        open_source(pictures)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


class HalfBroken(torch.utils.data.Dataset[Any]):
    """Has no list of classes, and a picture in the middle that cannot be read."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        if index == 9:
            raise OSError("damaged")
        return torch.zeros(3, 8, 8, dtype=torch.uint8), index % 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "a map-style Dataset or a pair"),
        ([None, None], "Samples of the list must be .picture, class.; got NoneType as sample 0"),
        ((None, None), "must be .picture, class.; got NoneType as sample 0"),
        (HalfBroken(), "class of every sample of HalfBroken must be known; got sample 9 cannot be read .damaged."),
        (Stream(), "how many samples it has; got Stream"),
        (TensorDataset(torch.rand(4, 3, 8, 8), torch.arange(4), torch.arange(4)), "3 values a sample"),
        (
            TensorDataset(torch.randn(4, 3, 8, 8), torch.arange(4)),
            r"Float pictures must lie in 0..1; got .*TensorDataset\[0",
        ),
        (TensorDataset(torch.rand(4, 3, 8, 8), torch.eye(4)), "which has no labels. Samples must be .picture, class."),
        (TensorDataset(torch.rand(4, 3, 8, 8), torch.rand(4)), "one class, a whole number or a name"),
        (TensorDataset(torch.rand(0, 3, 8, 8), torch.arange(0)), "at least one sample"),
        (TensorDataset(torch.rand(4, 3, 8, 8), torch.tensor([0, 0, 0, 0])), "at least two classes"),
    ],
)
def test_what_data_cannot_be_is_one_line(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_source(data)
    assert "\n" not in str(caught.value)


def test_both_sets_of_a_pair_have_the_same_classes(folder: Path, tmp_path: Path) -> None:
    for name in ("dog", "bird"):
        (tmp_path / "other" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "other" / name / "1.png")
    with pytest.raises(UserError, match="the same classes in the same order"):
        open_source((ImageFolder(folder), ImageFolder(tmp_path / "other")))


def test_a_random_transform_of_the_set_repeats_exactly(folder: Path) -> None:
    photos = ImageFolder(folder, transform=Compose([RandomHorizontalFlip(), ToTensor(), lambda x: x * torch.rand(1)]))
    samples = open_source((photos, photos)).train
    transform = samples.transform(
        InputSpec((3, 16, 16), (0.5,) * 3, (0.5,) * 3), ViewOptions(augment=Augment(recipe="none")), train=True
    )

    def epoch(number: int, first: int = 0) -> list[torch.Tensor]:
        sampler = EpochBatchSampler(8, 2, seed=1)
        sampler.set_position(number, first)
        torch.rand(first + 1)  # the state of the generators does not matter
        return [batch.images for batch in make_loader(samples, transform, sampler, seed=1)]

    whole = epoch(1)
    assert all(torch.equal(one, other) for one, other in zip(whole[2:], epoch(1, 2), strict=True))
    assert not torch.equal(torch.stack(whole), torch.stack(epoch(2)))


def test_a_run_on_a_torch_data_set(folder: Path, tmp_path: Path) -> None:
    """Trained, recorded by its class, evaluated with the object; without it one line says what to do."""
    photos = ImageFolder(folder)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    options = {
        "student": "vit_tiny_patch16_224",
        "student_args": small,
        "data": (photos, photos),
        "out": str(tmp_path / "run"),
        "epochs": 1,
        "batch_size": 4,
        "augment": Augment(recipe="none"),
        "loader": vitdistill.Loader(workers=0),
    }
    info = vitdistill.supervised(**options)
    assert info["status"] == "finished" and info["data"]["train_images"] == 8
    assert "data: <ImageFolder, ImageFolder>\n" in (tmp_path / "run/config.yaml").read_text()
    run = str(tmp_path / "run")
    assert evaluate(run, data=(photos, photos), json=True)["images"] == 8
    with pytest.raises(UserError, match="its data as a Python object; got <ImageFolder, ImageFolder>. Give --data"):
        evaluate(run)
    record = tmp_path / "run/run.json"
    record.write_text(record.read_text().replace('"finished"', '"interrupted"'))
    with pytest.raises(UserError, match="given Python objects must be resumed in Python; got data in"):
        resume(run)
