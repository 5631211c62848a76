"""Augmentation recipes, all through timm: what happens to an image between the file and the device.

What runs on the device afterwards (normalisation, erasing, mixup) is in `device.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from vitdistill.data.images.augment import RECIPES, Augment, RecipeName, ResolvedAugment
from vitdistill.errors import UserError

__all__ = ["RECIPES", "Augment", "RecipeName", "ResolvedAugment", "eval_transform", "train_transform"]

ImageSize = int | tuple[int, int]
SMALLEST = 4  # pixels of the shorter edge that a random crop needs
LONGEST = 200  # how many times longer than wide a picture may be before the ends are left out in validation


@dataclass(frozen=True)
class ImageTransform:
    """From a decoded image to a uint8 tensor; normalisation happens on the device.

    Attributes:
        steps: what runs, in order.
        random: whether the outcome depends on the state of the random number generators.
        shape: of every image: (channels, height, width).
    """

    steps: Callable[[Image.Image], Any]
    random: bool
    shape: tuple[int, int, int]

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "ch height width"]:
        if self.random and min(image.size) < SMALLEST:  # timm's random crop could be no pixel wide, and black
            image = image.resize((image.width * SMALLEST, image.height * SMALLEST), Image.Resampling.NEAREST)
        pixels = self.steps(image)
        # timm's prefetcher path ends in a tensor or, in older releases, a numpy array.
        return torch.from_numpy(np.ascontiguousarray(pixels)) if isinstance(pixels, np.ndarray) else pixels


def train_transform(augment: Augment, image_size: ImageSize, channels: int = 3) -> ImageTransform:
    """The training transform of a recipe.

    Args:
        augment: the recipe.
        image_size: height and width in pixels, or one number for both.
        channels: 3 for RGB, 1 for grey. All augmentation runs on RGB.

    Raises:
        UserError: when an option is out of range, or for other channels.
    """
    from timm.data import create_transform
    from torchvision.transforms import Compose

    options = augment.resolved()
    policy = None if options.auto_augment == "none" else options.auto_augment
    crop_and_flip, distort, to_tensor = create_transform(
        _square(image_size),
        is_training=True,
        use_prefetcher=True,
        separate=True,
        scale=(options.scale, 1.0),
        hflip=options.hflip,
        color_jitter=options.color_jitter,
        auto_augment=policy,
        interpolation=options.interpolation,
    )
    steps = list(crop_and_flip.transforms)
    if options.scale == 1:  # the centre crop of validation in place of the random crop
        steps[:1] = [_not_too_long, *_eval_steps(options, image_size).transforms[:-1]]
    distortions = list(distort.transforms)
    for transform in distortions:
        mend_posterize(transform)
    if not options.color_jitter and policy is None:
        distortions.clear()  # timm adds a jitter of strength 0, which only costs time
    random = options.scale < 1 or options.hflip > 0 or options.color_jitter > 0 or policy is not None
    run = Compose([*steps, *distortions, *to_channels(channels), *to_tensor.transforms])
    return ImageTransform(run, random, _shape(image_size, channels))


def mend_posterize(policy: Any) -> None:
    """Keep at least one bit: timm's strongest posterize asks for none, which Pillow has come to refuse."""
    for operation in getattr(policy, "ops", []):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = partial(_posterize, operation.aug_fn)


def _posterize(posterize: Callable[..., Image.Image], image: Image.Image, bits: int, **options: Any) -> Image.Image:
    return posterize(image, max(1, bits), **options)


def eval_transform(augment: Augment, image_size: ImageSize, channels: int = 3) -> ImageTransform:
    """The validation transform of a recipe: resize the shorter edge to size / crop_pct, crop the centre.

    Args:
        augment: the recipe.
        image_size: height and width in pixels, or one number for both.
        channels: 3 for RGB, 1 for grey.

    Raises:
        UserError: when an option is out of range, or for other channels.
    """
    from torchvision.transforms import Compose

    *steps, to_tensor = _eval_steps(augment.resolved(), image_size).transforms
    run = Compose([_not_too_long, *steps, *to_channels(channels), to_tensor])
    return ImageTransform(run, random=False, shape=_shape(image_size, channels))


def _eval_steps(options: ResolvedAugment, image_size: ImageSize) -> Any:
    from timm.data import create_transform

    return create_transform(
        _square(image_size),
        is_training=False,
        use_prefetcher=True,
        crop_pct=options.crop_pct,
        interpolation=options.interpolation,
    )


def _not_too_long(image: Image.Image) -> Image.Image:
    """The middle of a strip: resizing all of it by its shorter edge would take memory without end."""
    width, height = image.size
    longest = LONGEST * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def to_channels(channels: int) -> list[Callable[[Image.Image], Image.Image]]:
    """From RGB to the channels of a network.

    Raises:
        UserError: for others than 3 or 1.
    """
    if channels == 3:
        return []
    if channels == 1:
        return [_grey]
    raise UserError("Images are read as RGB or grey, for networks with 3 channels or 1", f"in_chans {channels}")


def _grey(image: Image.Image) -> Image.Image:
    return image.convert("L")  # luma; of a grey picture in RGB exactly its grey


def _shape(image_size: ImageSize, channels: int) -> tuple[int, int, int]:
    return (channels, *image_size) if isinstance(image_size, tuple) else (channels, image_size, image_size)


def _square(image_size: ImageSize) -> ImageSize:
    """One number for a square: timm resizes squares by the shorter edge, without touching images that fit."""
    return image_size[0] if isinstance(image_size, tuple) and image_size[0] == image_size[1] else image_size
