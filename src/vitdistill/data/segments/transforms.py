"""What happens to an image and its mask together, between the files and the device (as in mmsegmentation).

Training: another size, a crop in which no class takes nearly all, a flip, other colours. Validation: one size, told by
the image's own; the mask stays as it is, since predictions are brought to its size and not the reverse.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from vitdistill.data.segments.masks import IGNORED, PADDING
from vitdistill.data.segments.sizes import scaled_size, scored_size

COMMON, REDRAWS = 0.75, 10  # share of a crop from which a class is too common, and how often the crop is drawn anew
BRIGHTNESS, CONTRAST, HUE = 64, 1.0, 0.2  # ranges at full strength: of 255, around 1, and of the circle of colours


@dataclass(frozen=True)
class TrainTransform:
    """From an image and its mask to a crop of both.

    Attributes:
        size: height and width of the crop.
        ratio: smallest and largest factor on the size at which the image fits.
        hflip: probability of a horizontal flip.
        jitter: strength of the photometric distortion; 0.5 is the usual one.
        common: share of the labelled pixels from which a class is too common in a crop.
    """

    size: tuple[int, int]
    ratio: tuple[float, float]
    hflip: float = 0.0
    jitter: float = 0.0
    common: float = COMMON

    @property
    def random(self) -> bool:
        return True

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3, *self.size)

    def __call__(self, sample: Any) -> tuple[UInt8[Tensor, "3 height width"], UInt8[Tensor, "height width"]]:
        """
        Returns:
            The crop, and its class numbers: `PADDING` where it lies beyond the image, which is then of any colour.
        """
        image, mask = tensors(sample)
        own = (int(mask.shape[0]), int(mask.shape[1]))
        size = scaled_size(own, self.size, _uniform(*self.ratio))
        image, mask = resized(image, size), resized(mask, size)
        window = self._window(mask)
        image, mask = image[:, *window], mask[window]
        if self.hflip and _uniform() < self.hflip:
            image, mask = tvf.horizontal_flip(image), tvf.horizontal_flip(mask)
        pixels = image.as_subclass(Tensor)
        if self.jitter:
            pixels = distorted(pixels, self.jitter)
        beyond = (0, self.size[1] - mask.shape[1], 0, self.size[0] - mask.shape[0])
        return pad(pixels, beyond).contiguous(), pad(mask.as_subclass(Tensor), beyond, value=PADDING).contiguous()

    def _window(self, mask: UInt8[Tensor, "height width"]) -> tuple[slice, slice]:
        """Where to cut: drawn anew while one class takes nearly all of it, or it has one class only."""
        rooms = [max(0, own - side) for own, side in zip(mask.shape, self.size, strict=True)]
        for attempt in range(REDRAWS + 1):
            starts = [int(torch.randint(room + 1, ())) for room in rooms]
            window = tuple(slice(start, start + side) for start, side in zip(starts, self.size, strict=True))
            if attempt == REDRAWS or not any(rooms) or self.common >= 1:
                break
            counts = torch.bincount(mask[window].flatten(), minlength=IGNORED + 1)[:IGNORED]
            if int((counts > 0).sum()) > 1 and int(counts.max()) < self.common * int(counts.sum()):
                break
        return window[0], window[1]


@dataclass(frozen=True)
class ValTransform:
    """From an image and its mask to the image at the size at which it is tested, and the mask as it is.

    Attributes:
        size: height and width of the network's input.
        ratios: factors on the size; of several, the images lie one below another, see `parted`.
        sizes_differ: images are filled up to the largest of their batch.
    """

    size: tuple[int, int]
    ratios: tuple[float, ...] = (1.0,)
    sizes_differ: bool = True

    @property
    def random(self) -> bool:
        return False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the smallest images."""
        return (3, *self.size)

    def __call__(self, sample: Any) -> tuple[UInt8[Tensor, "3 height width"], UInt8[Tensor, "rows columns"]]:
        image, mask = tensors(sample)
        return stacked([tested(image, self.size, ratio) for ratio in self.ratios]), mask.as_subclass(Tensor)


def tested(image: Any, crop: tuple[int, int], ratio: float) -> UInt8[Tensor, "3 height width"]:
    """An image at the size at which it is tested. At a ratio below 1 it is made so small first, and then enlarged.

    At other ratios only a panorama would need two steps, and takes one.

    Args:
        image: as torchvision's transforms take it.
        crop: height and width of the network's input.
        ratio: factor on the size.
    """
    own = (int(image.shape[-2]), int(image.shape[-1]))
    if ratio < 1:
        image = resized(image, scaled_size(own, crop, ratio))
    return resized(image, scored_size(own, crop, ratio)).as_subclass(Tensor)


def stacked(images: Sequence[UInt8[Tensor, "3 _ _"]]) -> UInt8[Tensor, "3 height width"]:
    """Images one below another, filled up at the right."""
    width = max(image.shape[-1] for image in images)
    return torch.cat([pad(image, (0, width - image.shape[-1])) for image in images], dim=-2)


def parted(
    stack: Shaped[Tensor, "*b ch height width"], sizes: Sequence[tuple[int, int]]
) -> Iterator[Shaped[Tensor, "*b ch _ _"]]:
    """The images that lie one below another.

    Args:
        stack: as of `stacked`, filled up or not.
        sizes: height and width of each.

    Example:
        >>> [part.shape for part in parted(stacked([torch.ones(3, 2, 4), torch.ones(3, 1, 2)]), [(2, 4), (1, 2)])]
        [torch.Size([3, 2, 4]), torch.Size([3, 1, 2])]
    """
    top = 0
    for height, width in sizes:
        yield stack[..., top : top + height, :width]
        top += height


def tensors(sample: Any) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """Image and mask as what torchvision's transforms take."""
    pixels = torch.from_numpy(np.array(sample.image)).permute(2, 0, 1).contiguous()
    return tv_tensors.Image(pixels), tv_tensors.Mask(torch.from_numpy(sample.mask.copy()))


def resized(what: Any, size: tuple[int, int]) -> Any:
    """At another size: images between the nearest four pixels, as OpenCV does it; those of masks are the nearest."""
    if tuple(what.shape[-2:]) == size:
        return what
    return tvf.resize(what, list(size), interpolation=InterpolationMode.BILINEAR, antialias=False)


def distorted(image: UInt8[Tensor, "3 height width"], strength: float) -> UInt8[Tensor, "3 height width"]:
    """Other brightness, contrast, saturation and hue, each with probability one half (mmsegmentation's distortion).

    Not torchvision's `RandomPhotometricDistort`, which also exchanges the channels.

    Args:
        image: RGB.
        strength: 0.5 adds up to 32 to the brightness, multiplies contrast and saturation by 0.5 to 1.5, and turns the
            hue by up to 36 degrees.
    """
    pixels = image.permute(1, 2, 0).numpy().astype(np.float32)
    steps: list[Callable[[np.ndarray], np.ndarray]] = []
    late = _uniform() < 0.5
    spread = (1 - CONTRAST * strength, 1 + CONTRAST * strength)
    if _uniform() < 0.5:
        brightness = _uniform(-BRIGHTNESS * strength, BRIGHTNESS * strength)
        steps.append(lambda x: x + brightness)
    contrast = _uniform(*spread) if _uniform() < 0.5 else None
    if contrast is not None and not late:
        steps.append(lambda x: x * contrast)
    saturation = _uniform(*spread) if _uniform() < 0.5 else 1.0
    hue = round(_uniform(-HUE * strength, HUE * strength) * 256) if _uniform() < 0.5 else 0
    if saturation != 1 or hue:
        steps.append(lambda x: _other_colours(x, saturation, hue))
    if contrast is not None and late:
        steps.append(lambda x: x * contrast)
    for step in steps:
        pixels = step(pixels).clip(0, 255)
    return torch.from_numpy(pixels.astype(np.uint8)).permute(2, 0, 1).contiguous()


def _other_colours(pixels: np.ndarray, saturation: float, hue: int) -> np.ndarray:
    """With another saturation, and the hue turned by so many of 256 steps."""
    hsv = np.array(Image.fromarray(pixels.astype(np.uint8)).convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + hue) % 256
    hsv[..., 1] = (hsv[..., 1] * saturation).clip(0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"), dtype=np.float32)


def _uniform(low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand(()))
