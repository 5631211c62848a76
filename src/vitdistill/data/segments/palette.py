"""Colours of classes, and masks as pictures."""

from functools import cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image

STRENGTH = 0.6  # of the colours over the picture


@cache
def palette() -> UInt8[np.ndarray, "256 3"]:
    """PASCAL VOC's colours, which are far apart for small class numbers: class 0 is black, 255 (none) pale."""
    numbers = np.arange(256)[:, None]
    colours = np.zeros((256, 3), dtype=np.int64)
    for bit in range(8):  # the bits of a number go round red, green and blue, the lowest to the brightest
        colours |= ((numbers >> (3 * bit + np.arange(3))) & 1) << (7 - bit)
    return colours.astype(np.uint8)


def as_picture(mask: UInt8[np.ndarray, "height width"]) -> Image.Image:
    """A mask as a picture whose pixels are class numbers, and whose palette has their colours."""
    picture = Image.fromarray(mask)
    picture.putpalette(palette().tobytes())
    return picture


def overlay(image: Image.Image, mask: UInt8[np.ndarray, "height width"]) -> Image.Image:
    """The colours of a mask over its image."""
    return Image.blend(image, Image.fromarray(palette()[mask]), STRENGTH)
