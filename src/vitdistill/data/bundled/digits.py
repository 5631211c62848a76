"""Bundled handwritten digits: scikit-learn's 1797 real 8x8 scans (UCI optical digits), drawn on a black canvas.

The margin makes at least a third of the patches plain background, so there is something for a mask to leave out.
With patch 2 the scan covers 4x4 of the 6x6 patches: at least 20 of 36 are background in every image.
"""

from functools import cache

import numpy as np
from PIL import Image

from vitdistill.data.images.samples import ImageSamples
from vitdistill.data.samples import digest_of
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError

CANVAS = 12  # height and width of an image, in pixels
DIGIT = 8  # height and width, in pixels, of the scan on the canvas: its own, so no pixel is resampled

VAL_EVERY = 5  # one image in five is for validation: 360 of 1797
MAX_INK = 16  # the scans' darkest ink; they hold 0..16


class DigitImages(ImageSamples):
    """Some of the scans, rendered once and kept in memory."""

    in_memory = True

    def __init__(self, scans: np.ndarray, labels: np.ndarray, numbers: np.ndarray) -> None:
        """
        Args:
            scans: all scans (1797, 8, 8), values 0..16.
            labels: their digits (1797,).
            numbers: which of them belong to this set.
        """
        self._numbers = numbers
        self._labels = labels[numbers].astype(np.int64)
        self._images = np.stack([render(scan) for scan in scans[numbers]])

    def __len__(self) -> int:
        return len(self._labels)

    def load(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._images[index]), int(self._labels[index])

    def path(self, index: int) -> str:
        return f"digits/{self._numbers[index]}"

    @property
    def labels(self) -> list[int]:
        return self._labels.tolist()

    def digest(self) -> str:
        return digest_of(self._images.tobytes(), self._labels.tobytes())


def render(scan: np.ndarray) -> np.ndarray:
    """Draw one scan, white ink on black.

    Args:
        scan: (8, 8), values 0..16.

    Returns:
        RGB image (CANVAS, CANVAS, 3) of uint8.
    """
    ink = Image.fromarray(np.rint(scan * (255 / MAX_INK)).astype(np.uint8))
    canvas = Image.new("L", (CANVAS, CANVAS))
    margin = (CANVAS - DIGIT) // 2
    canvas.paste(ink.resize((DIGIT, DIGIT), Image.Resampling.BILINEAR), (margin, margin))
    return np.asarray(canvas.convert("RGB"))


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fixed, stratified split: shuffle once, sort by class, take every fifth for validation.

    Both parts contain scans of the same writers, so validation is easier than on writers never seen.

    Returns:
        Numbers of the training images (1437) and of the validation images (360).
    """
    # RandomState's streams are frozen, so the split is the same under every version of numpy.
    shuffled = np.random.RandomState(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    is_val = np.arange(len(labels)) % VAL_EVERY == 0
    return np.sort(by_class[~is_val]), np.sort(by_class[is_val])


@cache
def digits() -> DataSource:
    """Open the digits: 1437 images to train on, 360 to validate on, ten classes.

    Raises:
        UserError: when scikit-learn, which carries the scans, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("The bundled digits need scikit-learn", remedy="Run: pip install 'vitdistill[demo]'") from error
    data = load_digits()
    train, val = split(data.target)
    return DataSource(
        name="digits",
        train=DigitImages(data.images, data.target, train),
        val=DigitImages(data.images, data.target, val),
        classes=[str(digit) for digit in range(10)],
        image_size=CANVAS,
    )
