"""What every data source promises. A new source is one line in SOURCES."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitdistill.data import Augment, DataSource, open_source
from vitdistill.data.images.recipes import eval_transform
from vitdistill.data.loader import make_loader
from vitdistill.data.order import EvalBatchSampler


def generated_folder(folder: Path) -> DataSource:
    for number, name in enumerate(["train/a/1", "train/a/2", "train/b/1", "val/a/1", "val/b/1", "val/b/2"]):
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 24), (number, 0, 0)).save(file)
    return open_source(folder)


def generated_unlabelled_folder(folder: Path) -> DataSource:
    for number, name in enumerate(["1", "a/2", "a/deeper/3", "b/4", "b/5"]):
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 24), (number, 0, 0)).save(file)
    return open_source(folder, labels=False)


SOURCES: dict[str, Callable[[Path], DataSource]] = {
    "digits": lambda _: open_source("digits"),
    "image_folder": generated_folder,
    "unlabelled_folder": generated_unlabelled_folder,
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> DataSource:
    return SOURCES[request.param](tmp_path)


@pytest.fixture(params=["train", "val"])
def images(request: pytest.FixtureRequest, source: DataSource):
    return getattr(source, request.param)


def test_names_and_classes(source):
    assert source.name and len(source.classes) == len(set(source.classes))
    assert len(source.classes) >= 2 or source.classes == ["image"]
    assert source.image_size is None or source.image_size > 0


def test_labels_are_class_numbers_and_every_class_occurs(source, images):
    assert len(images) == len(images.labels) > 0
    assert set(images.labels) == set(range(len(source.classes)))


def test_loading_gives_rgb_the_listed_label_and_the_same_pixels_each_time(source, images):
    for index in (0, len(images) // 2, len(images) - 1):
        image, label = images.load(index)
        assert image.mode == "RGB" and type(label) is int and label == images.labels[index]
        assert np.array_equal(np.asarray(image), np.asarray(images.load(index)[0]))
        assert source.image_size is None or image.size == (source.image_size, source.image_size)


def test_paths_tell_images_apart(source):
    paths = [images.path(index) for images in (source.train, source.val) for index in range(len(images))]
    assert len(set(paths)) == len(paths) and all(paths)


def test_workers_can_receive_a_copy(images):
    copy = pickle.loads(pickle.dumps(images))
    assert copy.labels == images.labels
    assert np.array_equal(np.asarray(copy.load(0)[0]), np.asarray(images.load(0)[0]))


def test_every_validation_image_is_loaded_once(source):
    loader = make_loader(source.val, eval_transform(Augment(), 16), EvalBatchSampler(len(source.val), 50), seed=0)
    batches = list(loader)
    assert torch.cat([batch.targets for batch in batches]).tolist() == source.val.labels
    assert all(batch.images.shape[1:] == (3, 16, 16) and not batch.skipped for batch in batches)
