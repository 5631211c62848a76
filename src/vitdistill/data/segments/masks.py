"""From the file of a mask to class numbers: the only place where masks are decoded."""

from functools import cache

import numpy as np
from jaxtyping import UInt8

from vitdistill.data.images.decode import open_image, turn_of

IGNORED = 255  # of pixels that have no class
PADDING = 254  # of pixels beyond a mask, where it is filled up to the size of a batch
GREY = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes with one number for each pixel


class MaskError(ValueError):
    """A mask that can be decoded, and means nothing here."""


def read_mask(path: str, classes: int, *, reduce_zero_label: bool) -> UInt8[np.ndarray, "height width"]:
    """Class numbers from 0, and `IGNORED` where there is none. Of pictures with a palette, the numbers in it count.

    Args:
        path: file with one channel.
        classes: how many there are.
        reduce_zero_label: whether the file counts them from 1, and 0 is no class.

    Raises:
        MaskError: for a picture in colours, and for numbers that are no class, naming the first.
        OSError, SyntaxError, ValueError: when it cannot be decoded.
    """
    with open_image(path) as image:
        if image.mode not in GREY:
            raise MaskError(
                f"mask {path}: a picture in colours ({image.mode}) where class numbers are wanted, in one channel"
            )
        image.load()
        turn = turn_of(image)  # as its image is turned
        values = np.asarray(image if turn is None else image.transpose(turn))
    numbers = values.astype(np.int64) if values.dtype != np.bool_ else values.astype(np.uint8)
    highest = int(numbers.max(initial=0))
    if highest > IGNORED or int(numbers.min(initial=0)) < 0:
        raise _beyond(path, highest if highest > IGNORED else int(numbers.min()), classes, reduce_zero_label)
    made = _table(classes, reduce_zero_label)[numbers]
    if (made == PADDING).any():  # of the table, what is no class
        raise _beyond(path, int(numbers[made == PADDING][0]), classes, reduce_zero_label)
    return made


def _beyond(path: str, value: int, classes: int, reduced: bool) -> MaskError:
    known = f"1 to {classes}, 0 for none" if reduced else f"0 to {classes - 1}"
    return MaskError(f"mask {path}: the label {value}, where the {classes} classes are {known} (and 255 is ignored)")


@cache
def _table(classes: int, reduced: bool) -> UInt8[np.ndarray, "256"]:
    """What each number in a file means; `PADDING` for those that mean nothing."""
    table = np.full(256, PADDING, dtype=np.uint8)
    first = 1 if reduced else 0
    table[first : first + classes] = np.arange(classes, dtype=np.uint8)
    table[IGNORED] = IGNORED
    if reduced:
        table[0] = IGNORED
    return table
