"""From an image file to RGB: the only place where images are decoded. docs/data.md has its rules as a table.

Pillow opens and decodes; what its `convert("RGB")` would get wrong is done here: numbers of more than 8 bits, which it
clips to white, transparent pixels, whose hidden colour it shows, and orientation, which it leaves to the caller.
"""

import os
import struct
import zlib
from contextlib import ExitStack
from functools import cache
from io import BufferedIOBase
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, PngImagePlugin, TiffTags

from vitdistill.errors import error_words

# Pillow's own limit of 179 million pixels is for servers that take files from strangers. Photographs that are stitched
# together and scanned slides are larger; 2**29 pixels are 2 GiB in memory.
MAX_PIXELS = 2**29
# Pillow refuses PNG files with a comment of more than 1 MiB, or 64 MiB in all.
MAX_TEXT, MAX_TEXTS = 2**28, 2**29

BACKGROUND = (255, 255, 255)  # what shows behind transparent pixels

HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
HEIF_EXTRA = "pip install 'vitdistill[heif]'"
# What Pillow has a suffix for and recognises, but cannot decode without other programs; documents; film.
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}

# EXIF orientation -> what brings the picture upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TIFF_TAGS = {tag.name: number for number, tag in TiffTags.TAGS_V2.items()}
FLOAT_MARGIN = 0.01  # resampling leaves values a little outside 0..1


@cache
def image_suffixes() -> frozenset[str]:
    """Endings of the files that are read, in lower case: those for which Pillow has a decoder, and HEIC's."""
    _prepare()
    decoded = set(Image.OPEN) - NOT_DECODED
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in decoded) | HEIF_SUFFIXES


def read_image(file: str | os.PathLike[str] | BufferedIOBase) -> Image.Image:
    """Decode an image file to upright RGB.

    Args:
        file: path, or an open binary file.

    Raises:
        OSError, SyntaxError, ValueError: when it cannot be decoded, with the reason in words; `samples.UNREADABLE` has
            the full list.

    Example:
        >>> read_image("IMG_0001.HEIC").mode
        'RGB'
    """
    with open_image(file) as image:
        return as_rgb(image)


def open_image(file: str | os.PathLike[str] | BufferedIOBase) -> Image.Image:
    """Read the header of an image file.

    Raises:
        OSError: when it is no image, or has more than 2**29 pixels.
    """
    _prepare()
    try:
        image = Image.open(file)  # type: ignore[arg-type]  # typing knows files as IO[bytes], which they are not
    except Image.UnidentifiedImageError as error:
        raise OSError(_why_unidentified(file)) from error
    except Image.DecompressionBombError as error:
        raise OSError(f"more than the {MAX_PIXELS} pixels that are read: {error_words(error)}") from error
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width}x{image.height}"
        image.close()
        raise OSError(f"{size} pixels are more than the {MAX_PIXELS} that are read")
    return image


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as upright RGB.

    Args:
        image: opened by Pillow, decoded or not. Of an animation, or of several pages, the one that it stands at.

    Raises:
        OSError, SyntaxError, ValueError: when it cannot be decoded, or the scale of its numbers is not known.
    """
    image.load()  # first: PNG may have its EXIF data behind the pixels, and TIFF turns itself
    turn = turn_of(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        rgb = Image.fromarray(_grey(image)).convert("RGB")
    elif image.has_transparency_data:
        rgb = _on_background(image)
    else:
        rgb = image.convert("RGB")
    upright = rgb if turn is None else rgb.transpose(turn)
    upright.info = {}  # else whoever asks its EXIF data would turn it once more
    return upright


def highest_of_16_bit(path: str) -> int | None:
    """The highest number in a file of 16-bit grey, of which 65535 is white; None for all other images.

    Raises:
        OSError, SyntaxError, ValueError: as `read_image`.
    """
    with open_image(path) as image:
        is_16_bit = image.mode.startswith("I;16") and _integer_range(image)[1] == 65535
        return int(np.asarray(image).max()) if is_16_bit else None


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What makes a decoded picture upright, by its EXIF data; None where nothing need be done."""
    try:
        return UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, EOFError, struct.error, zlib.error):
        return None  # damaged EXIF data says nothing, and the pixels may be whole


def _on_background(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # Pillow knows the way from there by one step only
        image = image.convert("LA")
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        image = image.copy()  # of 16 bits per channel Pillow keeps the upper 8, but not of the transparent colour
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), rgba).convert("RGB")


def _grey(image: Image.Image) -> UInt8[np.ndarray, "height width"]:
    """Numbers of 16 or 32 bits as 0..255. The same for every file: nothing is stretched to a file's own range."""
    values = np.asarray(image)
    low, high = (0.0, 1.0) if image.mode == "F" else _integer_range(image)
    _check_range(image, values, low, high)
    share = (values.astype(np.float32) - low) / (high - low)
    grey = np.rint(255 * share.clip(0, 1)).astype(np.uint8)
    if _tiff_tag(image, "PhotometricInterpretation") == 0:  # white is zero; Pillow minds it up to 8 bits only
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = BACKGROUND[0]
    return grey


def _integer_range(image: Image.Image) -> tuple[float, float]:
    """What stands for black and for white. 32-bit integers are taken for 16-bit numbers."""
    bits, signed = _tiff_tag(image, "BitsPerSample"), _tiff_tag(image, "SampleFormat") == 2
    if isinstance(bits, int) and bits < 16:
        return 0.0, float(2**bits - 1)  # 12 bits
    return (-32768.0, 32767.0) if signed and bits == 16 else (0.0, 65535.0)


def _check_range(image: Image.Image, values: np.ndarray, low: float, high: float) -> None:
    """Refuse numbers whose scale can only be guessed: a guess per file would brighten one and darken the next."""
    least, most = values.min(), values.max()
    if image.mode == "F":
        if not (least >= low - FLOAT_MARGIN and most <= high + FLOAT_MARGIN):  # also NaN
            raise ValueError(f"floating-point pixels must lie in 0..1, not {least:g}..{most:g}; save it as 8 or 16 bit")
        return
    declared = image.mode != "I" or image.format in ("PNG", "PPM") or _tiff_tag(image, "BitsPerSample") == 16
    if not declared and (least < low or most > high or 0 < most <= 255):
        raise ValueError(
            f"32-bit pixels are taken for 16-bit numbers, and {least}..{most} do not look so; save it as 8 or 16 bit"
        )


def _tiff_tag(image: Image.Image, name: str) -> object:
    """A tag of a TIFF file, its first value where there are several; None elsewhere."""
    value = getattr(image, "tag_v2", {}).get(TIFF_TAGS[name])
    return value[0] if isinstance(value, tuple) and value else value


def _why_unidentified(file: str | os.PathLike[str] | BufferedIOBase) -> str:
    with ExitStack() as stack:
        opened: Any = stack.enter_context(open(file, "rb")) if isinstance(file, str | os.PathLike) else file
        opened.seek(0)
        head = opened.read(16)
        if not head:
            return "the file is empty"
        if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS and not has_heif():
            return f"a HEIC picture; to read these, {HEIF_EXTRA}"
        for kind, (factory, accepts) in Image.OPEN.items():  # Pillow keeps to itself what it stumbled over
            known = False
            try:
                known = accepts is not None and accepts(head) is True
                if known:
                    opened.seek(0)
                    factory(opened, "")
            except Exception as error:  # on what is no image, it may be anything
                if known:
                    return f"a {kind} file of a kind that is not read, or damaged: {error_words(error)}"
    return "cannot identify image file: its content is in no format that is read"


def has_heif() -> bool:
    """Whether HEIC files can be read."""
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def _prepare() -> None:
    """Let Pillow, in this whole process, know all its formats and HEIC, and read large pictures and comments."""
    Image.init()  # in advance: out of file descriptors, Pillow would silently go without the formats not yet loaded
    if has_heif():
        from pillow_heif import register_heif_opener

        register_heif_opener()
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)
    PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, MAX_TEXT)
    PngImagePlugin.MAX_TEXT_MEMORY = max(PngImagePlugin.MAX_TEXT_MEMORY, MAX_TEXTS)
