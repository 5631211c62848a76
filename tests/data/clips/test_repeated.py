"""Videos that are there twice, and videos that are shorter than a clip: one line each."""

import logging
import shutil

import pytest

from generated_videos import write_video
from vitdistill.data.clips.files import video_files
from vitdistill.data.clips.repeated import _warn
from vitdistill.data.clips.samples import _warn_of_short
from vitdistill.data.images.recipes import Augment
from vitdistill.data.media import is_video
from vitdistill.data.samples import ViewOptions
from vitdistill.types import InputSpec

SPEC = InputSpec((3, 8, 32, 32), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(autouse=True)
def anew():
    _warn.cache_clear()
    _warn_of_short.cache_clear()


@pytest.fixture
def folder(tmp_path):
    """Two classes with two videos each in both splits, all different."""
    for number, place in enumerate(
        f"{split}/{name}/{n}.mp4" for split in ("train", "val") for name in "ab" for n in "12"
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / place, 5 + number)
    return tmp_path


def lines(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_different_videos_of_the_same_name_are_no_matter(folder, caplog):
    video_files(folder)
    assert not lines(caplog)


def test_copies_and_links_are_named_in_one_line(folder, caplog):
    shutil.copy(folder / "train/a/1.mp4", folder / "val/a/1.mp4")
    (folder / "train/b/2.mp4").unlink()
    (folder / "train/b/2.mp4").symlink_to(folder / "train/a/2.mp4")
    video_files(folder)
    video_files(folder)
    (line,) = lines(caplog)
    assert f"1 in training and validation at once: '{folder}/train/a/1.mp4'" in line
    assert f"1 under two labels: '{folder}/train/a/2.mp4'" in line


def test_lists_that_name_a_video_twice(folder, caplog):
    (folder / "train.csv").write_text("train/a/1.mp4 0\ntrain/b/1.mp4 1\ntrain/a/../a/1.mp4 1\nval/a/1.mp4 0\n")
    (folder / "val.csv").write_text("val/a/1.mp4 0\nval/b/1.mp4 1\n")
    video_files(folder)
    (line,) = lines(caplog)
    assert "1 in training and validation at once" in line and "val/a/1.mp4" in line
    assert "1 under two labels" in line and "train/a/1.mp4" in line


def test_one_line_says_how_many_videos_are_shorter_than_a_clip(folder, caplog):
    train = video_files(folder).train  # of 5, 6, 7 and 8 frames
    train.check(SPEC, ViewOptions(augment=Augment(), stride=1))
    (line,) = lines(caplog)
    assert (
        "3 of the 4 videos looked at are shorter than a clip (8 frames with stride 1 span 8 frames; the short" in line
    )
    assert "has 5), so frames are repeated. Choose fewer frames" in line
    caplog.clear()
    train.check(SPEC, ViewOptions(augment=Augment(), sampling="uniform"))
    assert lines(caplog)[0].endswith("a clip (8 frames; the shortest has 5), so frames are repeated")


def test_videos_that_are_long_enough_are_no_matter(folder, caplog):
    with caplog.at_level(logging.WARNING):
        video_files(folder).val.check(SPEC, ViewOptions(augment=Augment(), stride=1))
    assert not lines(caplog)


@pytest.mark.parametrize(
    "suffix", ["mp4", "M4V", "mpg", "mpeg", "wmv", "3gp", "ts", "mts", "m2ts", "flv", "ogv", "mov", "mkv", "vob", "asf"]
)
def test_suffixes_of_videos(suffix):
    assert is_video(f"a/b.{suffix}") and not is_video(f"a/.b.{suffix}")


@pytest.mark.parametrize("name", ["a.gif", "a.jpg", "a.mp3", "a.txt", "a.ogg", "mp4", "a.srt"])
def test_suffixes_of_other_files(name):
    assert not is_video(name)
