"""Image files of every kind that people have: brightness, orientation, transparency, colour, and reasons."""

import io
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from vitdistill.data.images import decode
from vitdistill.data.images.decode import as_rgb, image_suffixes, read_image
from vitdistill.errors import UserError

GREY = np.array([[40, 80, 120], [160, 200, 255]], dtype=np.uint8)
WIDE = GREY.astype(np.uint16) * 257  # the same in 16 bits


def file(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


def tiff(values: np.ndarray, *, photometric: int = 1, bits: int, sample: int = 1) -> io.BytesIO:
    """A grey TIFF file with tags that Pillow does not write."""
    data, (height, width) = values.tobytes(), values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 339: sample}
    long_tags = {273: 8, 278: height, 279: len(data)}
    entries = [struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items()]
    entries += [struct.pack("<HHII", tag, 4, 1, value) for tag, value in long_tags.items()]
    entries.sort(key=lambda entry: entry[:2][::-1])
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return io.BytesIO(head + data + struct.pack("<H", len(entries)) + b"".join(entries) + b"\0\0\0\0")


def png(values: np.ndarray, colour: int) -> io.BytesIO:
    """A PNG file of 16 bits per channel, (height, width, channels)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def grey_of(source: io.BytesIO | Image.Image) -> np.ndarray:
    image = as_rgb(source) if isinstance(source, Image.Image) else read_image(source)
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


# --- numbers of more than 8 bits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        file(Image.fromarray(WIDE), "PNG"),
        file(Image.fromarray(WIDE), "TIFF"),
        file(Image.fromarray(WIDE), "PPM"),
        file(Image.fromarray(WIDE), "JPEG2000", irreversible=False),
        file(Image.frombytes("I;16B", (3, 2), WIDE.astype(">u2").tobytes()), "TIFF"),
        file(Image.fromarray(WIDE.astype(np.int32)), "TIFF"),
        file(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"),
        Image.fromarray(WIDE.astype(np.int32)),
        tiff((WIDE.astype(np.int32) - 32768).astype("<i2"), bits=16, sample=2),
        tiff((65535 - WIDE).astype("<u2"), photometric=0, bits=16),
        tiff((1 - GREY / 255).astype("<f4"), photometric=0, bits=32, sample=3),
        png(np.stack([WIDE] * 3, axis=-1), 2),
        png(np.stack([WIDE] * 3 + [np.full_like(WIDE, 65535)], axis=-1), 6),
        png(np.stack([WIDE, np.full_like(WIDE, 65535)], axis=-1), 4),
    ],
    ids=[
        "16-bit PNG",
        "16-bit TIFF",
        "16-bit PGM",
        "16-bit JPEG 2000",
        "big-endian TIFF",
        "32-bit TIFF",
        "float TIFF",
        "32-bit in memory",
        "signed 16-bit TIFF",
        "16-bit TIFF, white is zero",
        "float TIFF, white is zero",
        "16-bit RGB PNG",
        "16-bit RGBA PNG",
        "16-bit grey PNG with alpha",
    ],
)
def test_brightness_is_that_of_8_bits(source):
    assert np.array_equal(grey_of(source), GREY)


def test_12_bits_are_scaled_by_their_own_range():
    packed = bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x00])  # rows of two numbers: 0, 2048; 4095, 0
    values = np.frombuffer(packed, dtype=np.uint8)
    source = tiff(values.reshape(2, 3), bits=12).getvalue()
    source = source.replace(struct.pack("<HHIHH", 256, 3, 1, 3, 0), struct.pack("<HHIHH", 256, 3, 1, 2, 0))
    assert grey_of(io.BytesIO(source)).tolist() == [[0, 128], [255, 0]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 65535), st.integers(0, 65535))
def test_a_number_gives_the_same_grey_in_every_file(number, neighbour):
    """Nothing is stretched to a file's own range, so files of one set stay comparable."""
    grey = grey_of(Image.fromarray(np.array([[number, neighbour]], dtype=np.uint16)))[0, 0]
    assert abs(int(grey) - number / 257) <= 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (GREY.astype(np.float32), r"must lie in 0..1, not 40..255"),
        (np.array([[0.5, np.nan]], dtype=np.float32), "must lie in 0..1, not nan"),
        (np.array([[0.5, -1.0]], dtype=np.float32), "must lie in 0..1, not -1..0.5"),
        (GREY.astype(np.int32), "taken for 16-bit numbers, and 40..255"),
        (WIDE.astype(np.int32) * 1000, "taken for 16-bit numbers"),
    ],
)
def test_numbers_of_an_unknown_scale_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        read_image(file(Image.fromarray(values), "TIFF"))


def test_floats_a_little_outside_are_cut():
    assert grey_of(Image.fromarray(np.array([[-0.005, 1.005]], dtype=np.float32))).tolist() == [[0, 255]]


# --- orientation -----------------------------------------------------------------------------------------------------

# What the stored picture must look like for each orientation, so that all of them show the same.
UPRIGHT = np.zeros((24, 40, 3), dtype=np.uint8)
UPRIGHT[:12, :20], UPRIGHT[12:, :20], UPRIGHT[:12, 20:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_every_orientation_is_brought_upright(orientation, kind):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif")
        image_suffixes()  # registers it
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    shown = np.asarray(read_image(file(stored, kind, exif=exif.tobytes())), dtype=int)
    assert shown.shape == UPRIGHT.shape
    corners = [(2, 2), (2, -3), (-3, 2), (-3, -3)]
    assert all(abs(shown[at] - UPRIGHT[at].astype(int)).max() < 40 for at in corners)


def test_what_is_upright_is_not_turned_once_more():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_image(file(Image.fromarray(GREY), "PNG", exif=exif))
    assert image.size == (2, 3) and image.getexif().get(0x0112) is None
    assert np.array_equal(grey_of(image), np.rot90(GREY, -1))


def test_damaged_exif_data_says_nothing_and_does_no_harm():
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_image(file(Image.fromarray(UPRIGHT), "JPEG", exif=exif)).size == (40, 24)


# --- transparency and colour -----------------------------------------------------------------------------------------


def palette(transparent: int | bytes | None) -> Image.Image:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGBA", (2, 2), (255, 0, 0, 0)),
        Image.new("LA", (2, 2), (7, 0)),
        Image.new("La", (2, 2)),
        Image.new("RGBa", (2, 2)),
        Image.new("PA", (2, 2)),
        palette(1),
        palette(b"\xff\x00"),
    ],
    ids=lambda image: image.mode,
)
def test_transparent_pixels_are_white_and_do_not_show_their_hidden_colour(image):
    assert as_rgb(image).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "value"), [("L", 40), ("I;16", 4000), ("RGB", (1, 2, 3))])
def test_a_transparent_colour_is_white(mode, value):
    image = Image.new(mode, (2, 1), value)
    image.putpixel((1, 0), 0 if mode != "RGB" else (0, 0, 0))
    shown = read_image(file(image, "PNG", transparency=value))
    assert shown.getpixel((0, 0)) == (255, 255, 255) and shown.getpixel((1, 0)) == (0, 0, 0)


def test_half_transparent_pixels_are_mixed_with_white():
    assert as_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).getpixel((0, 0)) == (255, 127, 127)


@pytest.mark.parametrize(
    ("source", "colour"),
    [
        (file(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"), (0, 255, 255)),  # as Adobe writes it: inverted
        (file(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "TIFF"), (0, 255, 255)),
        (file(Image.new("RGB", (8, 8), (200, 30, 60)).convert("YCbCr"), "JPEG", quality=95), (200, 30, 60)),
        (file(Image.new("LAB", (4, 4), (200, 128, 128)), "TIFF"), (194, 194, 194)),
        (file(Image.new("1", (4, 4), 1), "PNG"), (255, 255, 255)),
        (file(palette(None), "PNG"), (255, 0, 0)),
    ],
    ids=["CMYK JPEG", "CMYK TIFF", "YCbCr", "LAB", "1 bit", "palette"],
)
def test_colours(source, colour):
    shown = read_image(source).getpixel((1, 1))
    assert max(abs(a - b) for a, b in zip(shown, colour, strict=True)) <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_several_frames_or_pages_the_first_is_read(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    red, green, _ = read_image(file(frames[0], kind, save_all=True, append_images=frames[1:])).getpixel((1, 1))
    assert red > 240 and green < 10


# --- what is read, and why not ---------------------------------------------------------------------------------------


def test_suffixes_are_pillows_and_heics():
    usual = ".jpg .jpeg .jfif .png .apng .gif .avif .webp .jp2 .tif .tiff .bmp .ppm .pgm .heic .heif"
    assert set(usual.split()) <= image_suffixes()
    assert not {".mpg", ".mpeg", ".pdf", ".eps", ".h5", ".mp4"} & image_suffixes()


def test_large_pictures_and_large_comments_are_read(tmp_path):
    Image.new("1", (14000, 13000)).save(tmp_path / "large.png")
    with decode.open_image(tmp_path / "large.png") as image:
        assert image.size == (14000, 13000)
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Comment", "x" * 2_000_000, zip=True)
    Image.fromarray(UPRIGHT).save(tmp_path / "comment.png", pnginfo=comment)
    assert np.array_equal(np.asarray(read_image(tmp_path / "comment.png")), UPRIGHT)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_more_pixels_than_any_picture_has_are_refused():
    data = bytearray(file(Image.new("1", (8, 8)), "PNG").getvalue())
    for size in (25_000, 60_000):
        data[16:24] = struct.pack(">II", size, size)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        source = io.BytesIO(bytes(data))
        with pytest.raises(OSError, match=f"more than the {2**29}"):
            read_image(source)


def test_reasons(tmp_path):
    Image.fromarray(UPRIGHT).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("nowhere")
    reasons = {
        "cut.png": "runcated",
        "text.jpg": "cannot identify",
        "empty.jpg": "empty",
        "folder.jpg": "directory",
        "link.jpg": "No such file",
    }
    for name, reason in reasons.items():
        with pytest.raises((OSError, SyntaxError), match=reason):
            read_image(tmp_path / name)


def test_reasons_of_known_formats_in_files_and_in_memory(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(whole, "TIFF")
    data = bytearray(whole.getvalue())
    at = data.index(struct.pack("<HHIH", 258, 3, 1, 32)) + 8  # bits per sample: 64-bit floats, which Pillow has not
    data[at : at + 2] = struct.pack("<H", 64)
    for content, reason in (
        (bytes(data), "a TIFF file .*pixel mode"),
        (b"\xff\xd8\xff\xe0\0", "a JPEG file"),
        (b"", "empty"),
    ):
        (tmp_path / "a.tif").write_bytes(content)
        for source in (tmp_path / "a.tif", io.BytesIO(content)):
            with pytest.raises(OSError, match=reason):
                read_image(source)


def test_heic_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    from vitdistill.data.images.folder import list_images

    (tmp_path / "IMG_1.HEIC").touch()
    with pytest.raises(UserError, match=r"HEIC pictures, which need pillow-heif.*vitdistill\[heif\]"):
        list_images(tmp_path)
    (tmp_path / "named.jpg").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)
    reason = decode._why_unidentified(tmp_path / "named.jpg")
    assert "HEIC" in reason and "vitdistill[heif]" in reason


def test_files_are_closed(tmp_path):
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    pictures = [read_image(tmp_path / "a.png") for _ in range(20)]
    after = len(os.listdir("/proc/self/fd")) if before else 0
    assert after <= before and len(pictures) == 20
