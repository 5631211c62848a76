"""Several crops of an image: sizes, randomness, colours, and what is refused."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitdistill.data import Augment, ViewOptions, open_source
from vitdistill.data.images.multicrop import Blur, eval_crops, train_crops
from vitdistill.data.images.views import MultiCrop
from vitdistill.data.loader import make_loader
from vitdistill.data.order import EpochBatchSampler
from vitdistill.errors import UserError
from vitdistill.types import InputSpec

PRETRAIN = Augment(recipe="pretrain")
PLAIN = MultiCrop(locals=3, jitter=0.0, grey=0.0, blur=(0.0, 0.0, 0.0), solarize=0.0)


def spec(size: int = 32, patch: int = 8, channels: int = 3, frames: int | None = None) -> InputSpec:
    shape = (channels, size, size) if frames is None else (channels, frames, size, size)
    return InputSpec(shape, (0.5,) * channels, (0.5,) * channels, (1, patch, patch))


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("size", "patch", "expected"), [(224, 16, 96), (224, 14, 98), (32, 8, 16), (12, 2, 6), (8, 8, 8)]
)
def test_small_crops_are_whole_patches_of_about_96_of_224_pixels(size: int, patch: int, expected: int) -> None:
    assert MultiCrop().local_shape(spec(size, patch)) == (expected, expected)


def test_views_come_in_order_with_their_sizes(photo: Image.Image) -> None:
    for channels in (3, 1):
        for make in (train_crops, eval_crops):
            transform = make(MultiCrop(locals=3), PRETRAIN, spec(channels=channels))
            made = pickle.loads(pickle.dumps(transform))(photo).views
            assert tuple(tuple(view.shape) for view in made) == transform.shape
            assert transform.shape == ((channels, 32, 32),) * 2 + ((channels, 16, 16),) * 3
            assert all(view.dtype == torch.uint8 for view in made) and transform.random == (make is train_crops)


def test_random_crops_repeat_with_the_seed_and_differ_from_each_other(photo: Image.Image) -> None:
    transform = train_crops(MultiCrop(), PRETRAIN, spec())
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(transform(photo).views)
    assert all(torch.equal(a, b) for a, b in zip(*made[:2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(*made[1:], strict=True))
    assert not torch.equal(made[0][0], made[0][1]) and not torch.equal(made[0][2], made[0][3])


def test_colours_are_as_published() -> None:
    crops = train_crops(MultiCrop(), PRETRAIN, spec()).crops
    names = [[type(step).__name__ for step in crop.transforms] for crop in crops]  # type: ignore[attr-defined]
    shared = ["RandomResizedCrop", "RandomHorizontalFlip", "RandomApply", "RandomGrayscale", "RandomApply"]
    assert names[0] == [*shared, "PILToTensor"] == names[2]
    assert names[1] == [*shared, "RandomSolarize", "PILToTensor"]
    first, second, small = (crops[number].transforms for number in (0, 1, 2))  # type: ignore[attr-defined]
    assert [steps[0].scale for steps in (first, second, small)] == [(0.4, 1.0), (0.4, 1.0), (0.05, 0.4)]
    assert [steps[4].p for steps in (first, second, small)] == [1.0, 0.1, 0.5]
    jitter = first[2].transforms[0]
    assert first[2].p == 0.8 and (jitter.brightness, jitter.contrast) == ((0.6, 1.4), (0.6, 1.4))
    assert (jitter.saturation, jitter.hue) == ((0.8, 1.2), (-0.1, 0.1))
    assert (second[5].threshold, second[5].p, first[3].p) == (128, 0.2, 0.2)


def test_nothing_is_recoloured_where_nothing_shall_be(photo: Image.Image) -> None:
    steps = train_crops(PLAIN, Augment(recipe="pretrain", hflip=0.0), spec()).crops[1].transforms  # type: ignore[attr-defined]
    assert [type(step).__name__ for step in steps] == ["RandomResizedCrop", "PILToTensor"]


def test_the_blur_has_a_random_radius(photo: Image.Image) -> None:
    torch.manual_seed(0)
    blurred = [np.asarray(Blur()(photo)).astype(float).std() for _ in range(3)]
    assert len(set(blurred)) == 3 and max(blurred) < np.asarray(photo).std()


def test_validation_sees_the_whole_crop_its_middle_and_its_corners() -> None:
    ramp = np.zeros((32, 32, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(32)[:, None], np.arange(32)[None]  # the row and the column
    views = eval_crops(MultiCrop(locals=6), Augment(recipe="none"), spec())(Image.fromarray(ramp)).views
    assert torch.equal(views[0], torch.from_numpy(ramp).permute(2, 0, 1))
    # 70% of the area from the middle, then 22.5% from each corner and the middle.
    assert [int(value) for value in views[1].float().mean(dim=(1, 2)).round()[:2]] in ([15, 15], [16, 16])
    means = [view.float().mean(dim=(1, 2))[:2].round().tolist() for view in views[2:]]
    low, high = min(means[0]), max(means[3])
    assert low < 10 < 22 < high
    assert means[0] == [low, low] and means[1] == [low, high] and means[2] == [high, low] and means[3] == [high, high]
    assert torch.equal(views[2], views[7])  # the corners come again


def test_very_small_pictures_and_strips_can_be_cropped() -> None:
    for size in ((1, 1), (3, 40), (1, 4000)):
        picture = Image.new("RGB", size)
        for make in (train_crops, eval_crops):
            views = make(MultiCrop(locals=1), PRETRAIN, spec())(picture).views
            assert [view.shape[-1] for view in views] == [32, 32, 16]


def test_batches_hold_one_stack_per_view() -> None:
    source = open_source("digits")
    options = ViewOptions(augment=PRETRAIN, labels=False, several=PLAIN)
    transform = source.train.transform(spec(12, 2), options, train=True)
    loader = make_loader(source.train, transform, EpochBatchSampler(len(source.train), 4, seed=0), seed=0)
    batch = next(iter(loader))
    assert [tuple(view.shape) for view in batch.images] == [(4, 3, 12, 12)] * 2 + [(4, 3, 6, 6)] * 3
    again = next(iter(make_loader(source.train, transform, EpochBatchSampler(len(source.train), 4, seed=0), seed=0)))
    assert all(torch.equal(a, b) for a, b in zip(batch.images, again.images, strict=True))


# --- bad input --------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"globals": 0}, "--views.globals must be at least 1, not 0"),
        ({"locals": -1}, "--views.locals must be 0 or more"),
        (
            {"local_size": 20},
            "patches of 8x8 pixels must fill the small crops; got --views.local_size 20. Use 16 or 24",
        ),
        ({"local_size": 3}, "got --views.local_size 3. Use 8$"),
        ({"global_scale": (0.9, 0.4)}, "--views.global_scale must be two shares"),
        ({"local_scale": (0.0, 0.4)}, "--views.local_scale must be two shares"),
        ({"blur": (1.0, 0.1)}, "--views.blur must be three probabilities"),
        ({"jitter": 1.5, "grey": 2.0}, r"--views.jitter must lie in \[0, 1\], not 1.5; --views.grey"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(options: dict[str, Any], words: str, unchecked: None) -> None:
    with pytest.raises(UserError, match=words) as error:
        train_crops(MultiCrop(**options), PRETRAIN, spec())
    assert "\n" not in str(error.value)


def test_options_of_single_crops_are_refused() -> None:
    with pytest.raises(UserError, match=r"--augment.scale and --augment.auto_augment have no effect on several crops"):
        train_crops(MultiCrop(), Augment(recipe="pretrain", scale=0.5, auto_augment="rand-m9"), spec())


def test_videos_are_refused_in_one_line() -> None:
    source = open_source("moving_digits")
    options = ViewOptions(augment=PRETRAIN, labels=False, several=MultiCrop())
    for frames in (None, 8):
        with pytest.raises(UserError, match="Several crops are made of images; got videos") as error:
            source.train.transform(spec(16, 4, frames=frames), options, train=True)
        assert "\n" not in str(error.value)
