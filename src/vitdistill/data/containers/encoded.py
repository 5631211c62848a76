"""The one place where containers turn encoded bytes into pictures."""

import io
from typing import Any

from PIL import Image


def decode(source: Any) -> Image.Image:
    """The picture in an encoded image, as RGB.

    Args:
        source: bytes, a path, or a file open for reading.

    Raises:
        OSError, SyntaxError, ValueError: when it cannot be read.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source) as image:
        return rgb(image)


def rgb(image: Image.Image) -> Image.Image:
    """A picture as RGB."""
    return image.convert("RGB")  # converting reads the whole file, so a truncated one fails here
