"""From an image with boxes to the input of a network and its targets: torchvision moves boxes along with pixels."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tvf

from vitdistill.data.boxes.resizing import Resizing, Size, resized
from vitdistill.data.images.recipes import to_channels

SHIFT = 4  # pixels by which bundled scenes are moved at most


@dataclass(frozen=True)
class BoxImage:
    """An image and the boxes to train on in it.

    Attributes:
        image: RGB.
        corners: x1, y1, x2, y2 in pixels.
        classes: class numbers.
    """

    image: Image.Image
    corners: Float32[np.ndarray, "n 4"]
    classes: Int64[np.ndarray, "n"]


class Boxed(NamedTuple):
    """An image, its boxes and their classes while they are moved."""

    image: Any
    boxes: Any
    classes: Tensor


@dataclass(frozen=True)
class BoxTransform:
    """From an image with boxes to a uint8 tensor and rows of class number, centre x and y, width and height.

    Boxes are shares of the image's own width and height, as it is before it is filled up to the size of its batch.

    Attributes:
        shape: of the network's inputs: channels, height, width.
        resizing: sizes of the recipe; None brings all images to `shape`.
        patch: height and width, of which sides are multiples.
        rows: to which boxes are filled up with NaN.
        train: with the recipe's randomness.
        hflip: probability of a flip.
        shift: pixels by which images are moved at most, their borders repeated.
    """

    shape: tuple[int, int, int]
    resizing: Resizing | None
    patch: tuple[int, ...]
    rows: int
    train: bool
    hflip: float = 0.0
    shift: int = 0

    @property
    def sizes_differ(self) -> bool:
        """Whether images are filled up to the size of their batch."""
        return self.resizing is not None

    @property
    def random(self) -> bool:
        return self.train and (self.resizing is not None or self.hflip > 0 or self.shift > 0)

    def __call__(self, sample: BoxImage) -> tuple[UInt8[Tensor, "ch height width"], Float32[Tensor, "rows 5"]]:
        image = sample.image
        corners = torch.from_numpy(np.ascontiguousarray(sample.corners))
        boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=image.size[::-1])
        boxed = Boxed(image, boxes, torch.from_numpy(np.ascontiguousarray(sample.classes)))
        if self.hflip and _chance() < self.hflip:
            boxed = boxed._replace(image=tvf.horizontal_flip(boxed.image), boxes=tvf.horizontal_flip(boxed.boxes))
        if self.resizing is None:
            boxed = resize(self._shifted(boxed), self.shape[1:])
        elif not self.train:
            boxed = self._to(boxed, self.resizing.eval_side, self.resizing.eval_longest)
        else:
            boxed = self._resized_at_random(boxed, self.resizing)
        picture = boxed.image
        for convert in to_channels(self.shape[0]):
            picture = convert(picture)
        return tvf.pil_to_tensor(picture), self._targets(boxed)

    def _resized_at_random(self, boxed: Boxed, sizes: Resizing) -> Boxed:
        if _chance() < 0.5:
            boxed = self._to(boxed, sizes.before[_below(len(sizes.before))], None)
            boxed = crop(boxed, sizes.crop)
        return self._to(boxed, sizes.sides[_below(len(sizes.sides))], sizes.longest)

    def _to(self, boxed: Boxed, side: int, longest: int | None) -> Boxed:
        size = boxed.image.size[::-1]
        longest = side * max(size) if longest is None else longest
        patch = self.patch[-2], self.patch[-1]
        return resize(boxed, resized(size, side, longest, patch))

    def _shifted(self, boxed: Boxed) -> Boxed:
        if not self.shift:
            return boxed
        width, height = boxed.image.size
        top, left = _below(2 * self.shift + 1), _below(2 * self.shift + 1)
        image = tvf.pad(boxed.image, [self.shift], padding_mode="edge")
        boxes = tvf.pad(boxed.boxes, [self.shift])
        return cut(Boxed(image, boxes, boxed.classes), top, left, height, width)

    def _targets(self, boxed: Boxed) -> Float32[Tensor, "rows 5"]:
        width, height = boxed.image.size
        own = tvf.convert_bounding_box_format(boxed.boxes, new_format=tv_tensors.BoundingBoxFormat.CXCYWH)
        shares = own.as_subclass(Tensor).float() / torch.tensor([width, height, width, height])
        targets = torch.full((self.rows, 5), torch.nan)
        targets[: len(shares)] = torch.cat((boxed.classes[:, None].float(), shares), dim=1)
        return targets


def resize(boxed: Boxed, size: Size) -> Boxed:
    """Image and boxes at another height and width, bilinear."""
    if boxed.image.size == (size[1], size[0]):
        return boxed
    return boxed._replace(image=tvf.resize(boxed.image, list(size)), boxes=tvf.resize(boxed.boxes, list(size)))


def crop(boxed: Boxed, sides: tuple[int, int]) -> Boxed:
    """A random part, whose width and height are drawn between the least and the greatest that there can be."""
    width, height = boxed.image.size
    wide, high = (min(side, sides[0]) + _below(max(min(side, sides[1]) - sides[0], 0) + 1) for side in (width, height))
    return cut(boxed, _below(height - high + 1), _below(width - wide + 1), high, wide)


def cut(boxed: Boxed, top: int, left: int, height: int, width: int) -> Boxed:
    """A part of the image; boxes are cut along, and those of which nothing is left are left out."""
    image = tvf.crop(boxed.image, top, left, height, width)
    boxes = tvf.crop(boxed.boxes, top, left, height, width)
    # By hand, as SanitizeBoundingBoxes would leave out all that are narrower than a pixel.
    solid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return Boxed(image, tv_tensors.wrap(boxes[solid], like=boxes), boxed.classes[solid])


def _chance() -> float:
    return float(torch.rand(()))


def _below(number: int) -> int:
    return int(torch.randint(number, ()))
