"""Tiny generated videos whose frames tell their numbers: what decoding is tested on."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")
BITS = 8


def picture(number: int, width: int, height: int) -> np.ndarray:
    """A frame that tells its number: eight vertical bars, black or white, as its bits."""
    bits = [(number >> bit) & 1 for bit in range(BITS)]
    bars = np.repeat(np.array(bits, dtype=np.uint8) * 255, width // BITS)
    return np.broadcast_to(np.pad(bars, (0, width - len(bars)))[None, :, None], (height, width, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames tell."""
    width = frames.shape[2]
    centres = ((np.arange(BITS) + 0.5) * (width // BITS)).astype(int)
    bits = frames[:, frames.shape[1] // 2, centres, 0] > 127
    return (bits * 2 ** np.arange(BITS)).sum(1).tolist()


def write_video(
    path, count=60, *, codec="mpeg4", size=(96, 64), rate=25, gop=12, pts=None, format=None, **options
) -> Path:
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", gop
        if pts:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            if pts:
                frame.pts, frame.time_base = pts[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """A file without pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), dtype=np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return path


def turn(path: Path, degrees: int = 90) -> Path:
    """Ask players of an mp4 file to rotate it clockwise, as telephones do."""
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[degrees // 90 % 4]
    return show_as(path, cosine, sine, -sine, cosine)


def show_as(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Ask players of an mp4 file to show (x, y) at (a x + c y, b x + d y): the display matrix of its header."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44  # version 0 of the box: 40 bytes of other fields before the matrix
    values: Sequence[int] = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    path.write_bytes(content)
    return path
