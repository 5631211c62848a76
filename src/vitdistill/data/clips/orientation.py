"""From coded pictures to what a player shows: square pixels, turned and mirrored as the file asks.

Telephones write pictures as the sensor has them, with a matrix that says how to show them; discs and broadcasts write
pixels that are wider or narrower than high.
"""

import struct
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vitdistill.data.clips.video import Picture

EXTREME = 10  # a pixel so many times as wide as high, or the reverse, is a mistake in the header


def square_pixels(width: int, height: int, pixel: Fraction) -> tuple[int, int]:
    """Width and height in square pixels; the edge with the larger pixels grows, so nothing is lost.

    Args:
        width: coded.
        height: coded.
        pixel: width of a pixel over its height; 0 where it is unknown, which means square.

    Example:
        >>> square_pixels(720, 576, Fraction(64, 45))  # PAL, 16:9
        (1024, 576)
    """
    if not Fraction(1, EXTREME) <= pixel <= EXTREME:
        return width, height
    if pixel >= 1:
        return round(width * pixel), height
    return width, round(height / pixel)


def as_shown(picture: Picture, frame: Any) -> UInt8[np.ndarray, "rows columns 3"]:
    """A picture turned and mirrored by the display matrix of its frame; angles are rounded to quarter turns.

    Args:
        picture: as coded.
        frame: of PyAV, which has the matrix where the file has one.
    """
    if (matrix := frame.side_data.get("DISPLAYMATRIX")) is None:
        return picture
    # Column vectors (x, y) of the coded picture are shown at (a x + c y, b x + d y).
    a, b, _, c, d, *_ = struct.unpack("9i", bytes(matrix))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        across, down = a, d
    else:
        picture = picture.transpose(1, 0, 2)
        across, down = c, b
    if across < 0:
        picture = picture[:, ::-1]
    return np.ascontiguousarray(picture[::-1] if down < 0 else picture)
