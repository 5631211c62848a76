"""What sets say of the transform of validation: it is what the transform does."""

from typing import Any

import pytest
import torch

from vitdistill.data.bundled.digits import digits
from vitdistill.data.bundled.moving_digits import moving_digits
from vitdistill.data.images.augment import Augment
from vitdistill.data.samples import ViewOptions
from vitdistill.types import InputSpec

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
COMMON = {"channels": 3, "crop_mode": "center", "mean": list(MEAN), "std": list(STD)}


@pytest.mark.parametrize(("size", "crop_pct"), [((28, 28), 0.875), ((16, 40), 0.5)])
def test_images(size: tuple[int, int], crop_pct: float) -> None:
    import timm

    spec = InputSpec((3, *size), MEAN, STD)
    options = ViewOptions(augment=Augment(recipe="tiny", crop_pct=crop_pct, interpolation="bilinear"))
    samples = digits().val
    found = samples.preprocessing(spec, options)
    assert found == {**COMMON, "size": list(size), "crop_pct": crop_pct, "interpolation": "bilinear"}
    config = {"input_size": (3, *size), "crop_pct": crop_pct, "interpolation": "bilinear", "normalize": False}
    image = samples.load(0)[0].resize((50, 37))
    theirs = timm.data.create_transform(**config, is_training=False)(image)
    assert torch.equal(samples.transform(spec, options, train=False)(image), theirs)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"sampling": "dense", "stride": 1}),  # bundled clips are taken whole
        ({"stride": 2}, {"sampling": "dense", "stride": 2}),
        ({"sampling": "uniform"}, {"sampling": "uniform", "stride": None}),
    ],
)
def test_clips(given: dict[str, Any], expected: dict[str, Any]) -> None:
    spec = InputSpec((3, 8, 16, 16), MEAN, STD, (2, 4, 4))
    found = moving_digits().val.preprocessing(spec, ViewOptions(augment=Augment(), **given))
    clips = {"size": [16, 16], "frames": 8, "crop_pct": 1.0, "interpolation": "bilinear"}
    assert found == {**COMMON, **clips, **expected}


def test_frames_of_videos_are_images() -> None:
    spec = InputSpec((3, 16, 16), MEAN, STD)
    found = moving_digits().val.preprocessing(spec, ViewOptions(augment=Augment(recipe="none")))
    assert "frames" not in found and found["interpolation"] == "bicubic"
