"""Bundled scenes: several real handwritten digits on one canvas, whose places and outlines are known.

The digits are scikit-learn's scans (UCI optical digits), those of its own part of the bundled digits for each split, so
no scan to validate on was trained on. Where, how large and how many they are is drawn, so scenes are real digits in
synthetic pictures. The background is not black, but falls from one grey to another.
"""

from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

from vitdistill.data.bundled.digits import MAX_INK, split
from vitdistill.errors import UserError

CANVAS = 48  # height and width of a scene, in pixels
SIZES = (12, 16)  # smallest and largest height and width of a scan on the canvas, in pixels
MOST = 4  # digits in one scene; there are at least 2
BACKGROUND = 255  # where no digit is, in the masks
INK = 48  # of 255, from which a pixel belongs to a digit
TRAIN, VAL = 1000, 250  # scenes
CLASSES = [str(digit) for digit in range(10)]

Part = Literal["train", "val"]
PARTS: tuple[Part, Part] = ("train", "val")


class Scene(NamedTuple):
    """One picture and what is in it.

    Attributes:
        image: RGB.
        boxes: x1, y1, x2, y2 in pixels, around each digit's ink; x2 and y2 lie behind its last column and row.
        classes: the digits, one for each box.
        mask: of each pixel, the digit that it shows, or `BACKGROUND`.
    """

    image: UInt8[np.ndarray, "height width 3"]
    boxes: Float32[np.ndarray, "n 4"]
    classes: Int64[np.ndarray, "n"]
    mask: UInt8[np.ndarray, "height width"]


def draw(part: Part, number: int) -> Scene:
    """A scene, the same whenever and wherever it is drawn.

    Args:
        part: train or val, whose scans are used.
        number: of the scene.

    Raises:
        UserError: when scikit-learn, which carries the scans, is not installed.

    Example:
        >>> scene = draw("val", 0)
        >>> scene.image.shape, len(scene.boxes) == len(scene.classes)
        ((48, 48, 3), True)
    """
    scans, labels = _scans(part)
    chance = np.random.RandomState(2 * number + PARTS.index(part))  # whose streams no version of numpy changes
    rows, columns = np.mgrid[:CANVAS, :CANVAS] / (CANVAS - 1)
    angle, (dark, light) = chance.uniform(0, 2 * np.pi), np.sort(chance.uniform(0, 70, 2))
    ramp = (rows - 0.5) * np.sin(angle) + (columns - 0.5) * np.cos(angle) + 0.5
    canvas = dark + (light - dark) * ramp.clip(0, 1)
    mask = np.full((CANVAS, CANVAS), BACKGROUND, dtype=np.uint8)
    taken = np.zeros((CANVAS, CANVAS), dtype=bool)
    boxes: list[tuple[int, int, int, int]] = []
    classes: list[int] = []
    wanted = chance.randint(2, MOST + 1)
    for _ in range(8 * MOST):  # some places are taken: then a digit is drawn anew
        which, size = chance.randint(len(scans)), chance.randint(SIZES[0], SIZES[1] + 1)
        top, left = chance.randint(0, CANVAS - size + 1, 2)
        place = np.s_[top : top + size, left : left + size]
        ink = _ink(scans[which], size)
        inked = ink >= INK
        if taken[place].any() or not inked.any():
            continue
        taken[place] = True
        canvas[place] = np.maximum(canvas[place], ink)
        mask[place][inked] = labels[which]
        below, right = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
        boxes.append((left + right[0], top + below[0], left + right[-1] + 1, top + below[-1] + 1))
        classes.append(int(labels[which]))
        if len(classes) == wanted:
            break
    image = np.repeat(np.rint(canvas).astype(np.uint8)[..., None], 3, axis=-1)
    return Scene(image, np.array(boxes, dtype=np.float32), np.array(classes, dtype=np.int64), mask)


def _ink(scan: np.ndarray, size: int) -> np.ndarray:
    """A scan at another size, 0 to 255."""
    ink = Image.fromarray(np.rint(scan * (255 / MAX_INK)).astype(np.uint8))
    return np.asarray(ink.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


@cache
def _scans(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Scans (n, 8, 8) of 0..16 and their digits (n,), of one part."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("The bundled scenes need scikit-learn", remedy="Run: pip install 'vitdistill[demo]'") from error
    data = load_digits()
    numbers = split(data.target)[PARTS.index(part)]
    return data.images[numbers], data.target[numbers]
