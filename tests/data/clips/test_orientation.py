"""Videos as players show them: turned, mirrored, with square pixels, and without cover pictures."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from generated_videos import av, numbers, picture, show_as, write_video
from vitdistill.data.clips.decode import VideoFile
from vitdistill.data.clips.orientation import square_pixels

UPRIGHT = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)]
TURNED = [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of which each quarter is different: white at the top left alone, grey at the top right."""
    path = tmp_path_factory.mktemp("plain") / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        shown = np.zeros((64, 96, 3), dtype=np.uint8)
        shown[:32, :48], shown[:32, 48:] = 255, 128
        container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("matrix", UPRIGHT + TURNED)
def test_all_eight_orientations(plain, tmp_path, matrix):
    coded = VideoFile(plain).read([0])[0]
    (tmp_path / "a.mp4").write_bytes(plain.read_bytes())
    a, b, c, d = matrix
    shown = VideoFile(show_as(tmp_path / "a.mp4", *matrix)).read([0])[0]
    # (x, y) from the middle of the coded picture is shown at (a x + c y, b x + d y) from the middle of the other.
    y, x = np.indices(coded.shape[:2]) * 2 - np.array(coded.shape[:2])[:, None, None] + 1
    height, width = (64, 96) if a else (96, 64)
    right = np.empty((height, width, 3), dtype=np.uint8)
    right[(b * x + d * y + height - 1) // 2, (a * x + c * y + width - 1) // 2] = coded
    assert np.array_equal(shown, right)
    assert VideoFile(tmp_path / "a.mp4").read([0], 32).shape == ((1, 32, 48, 3) if a else (1, 48, 32, 3))


@pytest.mark.parametrize(("aspect", "shape"), [("4/3", (64, 128)), ("2/3", (96, 96)), ("1/1", (64, 96))])
def test_pixels_become_square(tmp_path, aspect, shape):
    video = VideoFile(write_video(tmp_path / "a.mp4", 2, aspect=aspect))
    assert video.short_side == min(shape) and video.read([1]).shape == (1, *shape, 3)
    assert video.read([1], 32).shape == (1, 32, 32 * max(shape) // min(shape), 3)
    assert numbers(video.read([1], 96)) == [1]


def test_pixels_of_a_turned_video_become_square_as_well(tmp_path):
    video = VideoFile(show_as(write_video(tmp_path / "a.mp4", 2, aspect="2/1"), 0, 1, -1, 0))
    assert video.read([0]).shape == (1, 192, 64, 3) and video.short_side == 64


def test_sizes_in_square_pixels():
    assert square_pixels(720, 576, Fraction(64, 45)) == (1024, 576)
    assert square_pixels(1440, 1080, Fraction(4, 3)) == (1920, 1080)
    assert square_pixels(720, 480, Fraction(8, 9)) == (720, 540)
    assert square_pixels(64, 48, Fraction(0)) == square_pixels(64, 48, Fraction(100)) == (64, 48)


@pytest.mark.parametrize("with_video", [False, True])
def test_a_cover_picture_is_no_video(tmp_path, with_video):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=48000)
        video = container.add_stream("mpeg4", rate=25) if with_video else None
        if video is not None:
            video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(0, 32, 32), format="rgb24")))
        container.mux(cover.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 48000
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
        if video is not None:
            for number in range(5):
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture(number, 96, 64), format="rgb24")))
            container.mux(video.encode())
    if with_video:
        assert VideoFile(path).length == 5 and numbers(VideoFile(path).read(range(5))) == list(range(5))
    else:
        with pytest.raises(OSError, match="no pictures in this file, only sound or data and a cover picture"):
            _ = VideoFile(path).length
