"""From one image to several crops of it, large ones and small ones (DINO, Caron et al., 2021)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import v2

from vitdistill.data.images.augment import Augment
from vitdistill.data.images.recipes import SMALLEST, eval_transform, to_channels
from vitdistill.data.images.views import MultiCrop, refuse_single_crops
from vitdistill.data.samples import SeveralViews
from vitdistill.types import InputSpec

JITTERED = 0.8  # share of the crops whose colours are jittered
BLUR = (0.1, 2.0)  # radius of the Gaussian in pixels
THRESHOLD = 128  # brightness from which solarising inverts

Crop = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class MultiCropTransform:
    """From a decoded image to several uint8 tensors; normalisation happens on the device.

    Attributes:
        crops: what makes each view, in order.
        random: whether the outcome depends on the state of the random number generators.
        shape: of every view: (channels, height, width).
        once: what happens to the image before all of them.
    """

    crops: tuple[Crop, ...]
    random: bool
    shape: tuple[tuple[int, int, int], ...]
    once: Callable[[Image.Image], Image.Image]

    def __call__(self, image: Image.Image) -> SeveralViews:
        image = self.once(image)
        return SeveralViews(tuple(crop(image) for crop in self.crops))


def train_crops(views: MultiCrop, augment: Augment, spec: InputSpec) -> MultiCropTransform:
    """The training transform: random crops, flips, colours, blur and solarisation, drawn for each view by itself.

    Args:
        views: which crops.
        augment: the recipe, of which flip and interpolation are used.
        spec: what the student takes.

    Raises:
        UserError: when an option is out of range or has no effect, or patches do not fill the small crops.
    """
    views.check()
    refuse_single_crops(augment)
    recipe, channels = augment.resolved(), spec.shape[0]
    resize = v2.InterpolationMode(recipe.interpolation)

    def crop(size: tuple[int, int], scale: tuple[float, float], blur: float, solarize: float) -> Crop:
        steps = [v2.RandomResizedCrop(size, scale=scale, interpolation=resize)]
        steps += [v2.RandomHorizontalFlip(recipe.hflip)] if recipe.hflip else []
        if strength := views.jitter:
            jitter = v2.ColorJitter(strength, strength, strength / 2, strength / 4)
            steps.append(v2.RandomApply([jitter], JITTERED))
        steps += [v2.RandomGrayscale(views.grey)] if views.grey else []
        steps += [v2.RandomApply([Blur()], blur)] if blur else []
        steps += [v2.RandomSolarize(THRESHOLD, solarize)] if solarize else []
        return v2.Compose([*steps, *to_channels(channels), v2.PILToTensor()])

    first, other, small = views.blur
    large = [
        crop(spec.size, views.global_scale, other if number else first, views.solarize if number else 0.0)
        for number in range(views.globals)
    ]
    locals_ = [crop(size, views.local_scale, small, 0.0) for size in _local_sizes(views, spec)]
    return MultiCropTransform((*large, *locals_), True, _shapes(views, spec), _large_enough)


def eval_crops(views: MultiCrop, augment: Augment, spec: InputSpec) -> MultiCropTransform:
    """The validation transform, without randomness, so that losses of epochs can be compared; colours stay.

    The first large view is the crop of validation, every other one the middle of it with the mean area of a large
    crop; the small ones are its corners and its middle, in turn, each with the mean area of a small crop.

    Args:
        views: which crops.
        augment: the recipe.
        spec: what the student takes.

    Raises:
        UserError: when an option is out of range, or patches do not fill the small crops.
    """
    views.check()
    whole = eval_transform(augment, spec.size, spec.shape[0])
    resize = Image.Resampling[augment.resolved().interpolation.upper()]

    def part(size: tuple[int, int], scale: tuple[float, float], corner: tuple[float, float]) -> Crop:
        return _Part(size, math.sqrt(sum(scale) / 2), corner, resize)

    middle, corners = (0.5, 0.5), ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))
    large = [part(spec.size, views.global_scale if number else (1.0, 1.0), middle) for number in range(views.globals)]
    small = [
        part(size, views.local_scale, corners[number % len(corners)])
        for number, size in enumerate(_local_sizes(views, spec))
    ]
    return MultiCropTransform((*large, *small), False, _shapes(views, spec), _Whole(whole))


class Blur(torch.nn.Module):
    """Pillow's Gaussian blur with a random radius, as DINO has it; torchvision's has a kernel of fixed size."""

    def forward(self, image: Image.Image) -> Image.Image:
        radius = float(torch.empty(()).uniform_(*BLUR))
        return image.filter(ImageFilter.GaussianBlur(radius))


@dataclass(frozen=True)
class _Whole:
    """The crop of validation, as an image."""

    steps: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> Image.Image:
        return v2.functional.to_pil_image(self.steps(image))


@dataclass(frozen=True)
class _Part:
    """A part of an image, of a given share of its edges, at a given place: 0 is left or top, 1 right or bottom."""

    size: tuple[int, int]
    share: float
    place: tuple[float, float]
    resampling: Image.Resampling

    def __call__(self, image: Image.Image) -> Tensor:
        width, height = (max(1, round(self.share * edge)) for edge in image.size)
        left, top = round(self.place[0] * (image.width - width)), round(self.place[1] * (image.height - height))
        part = image.crop((left, top, left + width, top + height))
        if part.size != self.size[::-1]:
            part = part.resize(self.size[::-1], self.resampling)
        return v2.functional.pil_to_tensor(part)


def _local_sizes(views: MultiCrop, spec: InputSpec) -> Sequence[tuple[int, int]]:
    return [views.local_shape(spec)] * views.locals if views.locals else []


def _shapes(views: MultiCrop, spec: InputSpec) -> tuple[tuple[int, int, int], ...]:
    sizes = [spec.size] * views.globals + list(_local_sizes(views, spec))
    return tuple((spec.shape[0], *size) for size in sizes)


def _large_enough(image: Image.Image) -> Image.Image:
    """A random crop of a very small picture could be no pixel wide."""
    if min(image.size) >= SMALLEST:
        return image
    return image.resize((image.width * SMALLEST, image.height * SMALLEST), Image.Resampling.NEAREST)
