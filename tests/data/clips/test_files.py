import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdistill.data.clips.decode import VideoFile
from vitdistill.data.clips.files import has_videos, video_files
from vitdistill.data.clips.frame_folder import FrameFolder
from vitdistill.errors import UserError

pytest.importorskip("av")


def touch(*paths: Path) -> None:
    """Files that look like videos by name: opening a source decodes nothing."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def frames(folder: Path, count: int = 3) -> None:
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(folder / f"img_{number:05d}.png")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    root = tmp_path / "ucf"
    for split, count in (("train", 3), ("val", 1)):
        touch(*(root / split / name / f"v{number}.avi" for name in ("swim", "bow") for number in range(count)))
    return root


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Two training videos, one of them in a path with spaces, and one to validate on."""
    root = tmp_path / "k400"
    touch(root / "videos/a clip 1.mp4", root / "videos/b.mp4", root / "c.mkv")
    (root / "train.csv").write_text("videos/a clip 1.mp4 0\nvideos/b.mp4,1\n\n")
    (root / "val.csv").write_text("c.mkv 1\n")
    return root


def test_class_folders(folders):
    source = video_files(folders)
    assert (source.name, source.classes) == ("ucf", ["bow", "swim"])
    assert source.train.labels == [0, 0, 0, 1, 1, 1] and source.val.labels == [0, 1]
    assert source.train.path(3) == str(folders / "train/swim/v0.avi")
    video, label = source.train.load(3)
    assert isinstance(video, VideoFile) and label == 1
    copy = pickle.loads(pickle.dumps(source.train))
    assert [copy.path(index) for index in range(6)] == [source.train.path(index) for index in range(6)]


@pytest.mark.parametrize("name", ["validation", "test"])
def test_other_names_of_the_validation_folder(folders, name):
    (folders / "val").rename(folders / name)
    assert len(video_files(folders).val) == 2


def test_class_folders_of_folders_of_frames_beside_video_files(tmp_path):
    for split in ("train", "val"):
        frames(tmp_path / split / "up" / "clip1")
        frames(tmp_path / split / "down" / "deeper" / "clip2")
        touch(tmp_path / split / "down" / "x.MP4", tmp_path / split / "up" / "._x.mp4")
    source = video_files(tmp_path)
    assert source.classes == ["down", "up"] and source.train.labels == [0, 0, 1]
    video, label = source.train.load(2)
    assert isinstance(video, FrameFolder) and (video.length, label) == (3, 1)
    assert video.read([2, 0])[:, 0, 0, 0].tolist() == [3, 1]
    assert has_videos(tmp_path)


def test_lists_of_kinetics(lists):
    source = video_files(lists)
    assert (source.name, source.classes, source.train.labels, source.val.labels) == ("k400", ["0", "1"], [0, 1], [1])
    assert source.train.path(0) == str(lists / "videos/a clip 1.mp4")
    assert video_files(lists / "train.csv").train.path(1) == source.train.path(1)
    assert has_videos(lists) and has_videos(lists / "train.csv")


@pytest.mark.parametrize("names", [("train.txt", "val.txt"), ("train_list.txt", "val_list.txt")])
def test_lists_of_something_something_with_a_root(tmp_path, names):
    for number, clip in enumerate(("1", "2 b", "3")):
        frames(tmp_path / "frames" / clip, count=number + 2)
    (tmp_path / "lists").mkdir()
    for name in names:
        (tmp_path / "lists" / name).write_text("1 2 0\n2 b 3 1\n3 4 1\n")
    source = video_files(tmp_path / "lists", root=tmp_path / "frames")
    assert source.train.labels == [0, 1, 1] and [source.train.load(n)[0].length for n in range(3)] == [2, 3, 4]


def test_absolute_paths_and_quotes(lists, tmp_path):
    (lists / "train.csv").write_text(f'{lists / "c.mkv"} 0\n"videos/a clip 1.mp4",1\n')
    assert video_files(lists).train.path(0) == str(lists / "c.mkv")


@pytest.mark.parametrize(
    "names", [("train.csv", "val.csv", "test.csv"), ("k_train_list.txt", "k_val_list.txt", "x.txt")]
)
def test_a_list_is_opened_with_its_partner(lists, names):
    (lists / "val.csv").write_text("c.mkv 1\n")
    (lists / "test.csv").write_text("c.mkv 0\nc.mkv 1\n")
    for old, new in zip(("train.csv", "val.csv", "test.csv"), names, strict=True):
        (lists / old).rename(lists / new)
    train, val, test = (lists / name for name in names)
    for place in (train, val):
        source = video_files(place)
        assert (source.train.labels, source.val.labels) == ([0, 1], [1]) and has_videos(place)
    if test.name == "test.csv":
        assert video_files(test).val.labels == [0, 1] and video_files(lists).val.labels == [1]


def test_a_list_without_a_partner_is_the_one_to_train_on(lists):
    (lists / "train.csv").rename(lists / "mine.csv")
    with pytest.raises(UserError, match="Next to .*mine.csv there must be a list to validate on"):
        video_files(lists / "mine.csv")
    (lists / "val.csv").rename(lists / "val_only.csv")
    assert len(video_files(lists / "mine.csv", labels=False).train) == 1


@pytest.mark.parametrize(
    "text",
    [
        "videos/a clip 1.mp4\t0\r\nvideos/b.mp4\t1\r\n",
        "\ufeffvideos/a clip 1.mp4 , 0\n\n  videos/b.mp4 ,1  ",
        "videos/a clip 1.mp4   +0\nvideos/b.mp4 01\n",
        "'videos/a clip 1.mp4' 16 0\n\"videos/b.mp4\" 300 1\n",
    ],
)
def test_separators_ends_of_lines_and_counts(lists, text):
    (lists / "train.csv").write_bytes(text.encode())
    source = video_files(lists)
    assert source.train.labels == [0, 1]
    assert [Path(source.train.path(n)).name for n in range(2)] == ["a clip 1.mp4", "b.mp4"]


def test_paths_are_kept_as_the_file_system_has_them(tmp_path):
    name = "k\udcf6ter 猫.mp4"  # a byte that is no UTF-8
    touch(tmp_path / name, tmp_path / "b.mp4")
    for file in ("train.txt", "val.txt"):
        (tmp_path / file).write_text(f"{name} 0\nb.mp4 1\n", encoding="utf-8", errors="surrogateescape")
    assert video_files(tmp_path).train.path(0) == str(tmp_path / name)


def test_lists_of_which_something_is_missing_still_look_like_videos(tmp_path):
    frames(tmp_path / "clips" / "b")
    (tmp_path / "train.txt").write_text("clips/a 3 0\nclips/b 3 1\n")
    assert has_videos(tmp_path) and has_videos(tmp_path / "train.txt")
    with pytest.raises(UserError, match="1 of 2 missing: 'clips/a'. Relative paths start from"):
        video_files(tmp_path, labels=False)
    (tmp_path / "train.txt").write_text("")
    assert has_videos(tmp_path / "train.txt")
    (tmp_path / "train.txt").write_text("clips/b/img_00001.png 0\n")
    assert not has_videos(tmp_path / "train.txt"), "a list of images"
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "empty" / "train.txt")
    assert has_videos(tmp_path / "empty")


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ("c.mkv 0\nvideos/b.mp4\n", None, "line 2: 'videos/b.mp4'"),
        (
            "x.mp4 0\ny.mp4 1\nc.mkv 0\nz z.mp4 1\nw.mp4 1\n",
            None,
            r"4 of 5 missing: 'x.mp4', 'y.mp4', 'z z.mp4', \.\.\.",
        ),
        ("c.mkv 0\nvideos/b.mp4 2\n", None, "without gaps; got no label 1 below 2"),
        ("c.mkv 1\nvideos/b.mp4 2\n", None, "without gaps; got no label 0 below 2"),
        ("c.mkv -1\nvideos/b.mp4 0\n", None, "without gaps; got the label -1"),
        ("c.mkv 0\nvideos/b.mp4 1000000000000\n", None, "no label 1, 2, 3 and 999999999996 more below 1000000000000"),
        ("c.mkv 0\nvideos/b.mp4 99999999999999999999\n", None, "line 2: .*with a whole number as label"),
        ("c.mkv 0\nvideos/b.mp4 1.0\n", None, "line 2: 'videos/b.mp4 1.0'. A line is 'path label'"),
        ("path,label\nc.mkv,0\n", None, r"val.csv must have a column of paths and one of class names; got .*c.mkv 1"),
        ("c.mkv 0\nvideos/b.mp4 0\n", None, "at least two classes; got only label 0"),
        (None, "c.mkv 2\n", "must be among the 0 to 1 of train.csv; got 2. Number the classes alike in both lists"),
        (None, "c.mkv -1\n", "must be among the 0 to 1 of train.csv; got -1"),
        ("\n", None, "must name at least one video; got none"),
    ],
)
def test_what_is_wrong_with_lists_is_said_in_one_line(lists, train, val, message):
    for name, text in (("train.csv", train), ("val.csv", val)):
        if text is not None:
            (lists / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        video_files(lists)
    assert "\n" not in str(error.value)


def test_a_list_to_validate_on_is_needed_with_labels_only(lists):
    (lists / "val.csv").unlink()
    with pytest.raises(UserError, match="a list to validate on"):
        video_files(lists)
    source = video_files(lists, labels=False)
    assert source.classes == [] and (len(source.train), len(source.val)) == (1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "val/bow").rename(root / "val/bows"), "'bow' only in train, 'bows' only in val"),
        (lambda root: touch(root / "train/zoo/1.jpg", root / "val/zoo/a.mp4"), "at least one video; got none in 'zoo'"),
        (
            lambda root: (root / "val").rename(root / "elsewhere"),
            "'val' or 'validation' or 'test'.* 'elsewhere', 'train'",
        ),
    ],
)
def test_what_is_wrong_with_folders_is_said(folders, change, message):
    change(folders)
    with pytest.raises(UserError, match=message):
        video_files(folders)


def test_one_class_and_a_missing_folder(tmp_path):
    touch(tmp_path / "train/a/1.mp4", tmp_path / "val/a/1.mp4")
    with pytest.raises(UserError, match="at least two classes"):
        video_files(tmp_path)
    with pytest.raises(UserError, match="existing folder or list"):
        video_files(tmp_path / "missing")


def test_without_labels_any_folder_will_do(tmp_path):
    touch(*(tmp_path / f"{number % 3}" / f"{number}.webm" for number in range(250)))
    source = video_files(tmp_path, labels=False)
    again = video_files(tmp_path, labels=False)
    train, val = ([part.path(n) for n in range(len(part))] for part in (source.train, source.val))
    assert (len(train), len(val)) == (248, 2) and len({*train, *val}) == 250
    assert val == [again.val.path(n) for n in range(2)] and source.train.labels is None
    with pytest.raises(UserError, match="'train'"):
        video_files(tmp_path)


def test_without_labels_class_folders_keep_their_classes_and_splits_are_kept_apart(folders):
    assert video_files(folders, labels=False).classes == ["bow", "swim"]
    touch(folders / "train/loose.mp4")
    source = video_files(folders, labels=False)
    assert source.classes == [] and (len(source.train), len(source.val)) == (7, 2)
    (folders / "train").rename(folders / "other")
    assert len(video_files(folders, labels=False).train) == 7


def test_without_labels_lists_may_lack_labels_or_have_those_of_pretraining(lists):
    for text in ("videos/a clip 1.mp4\nvideos/b.mp4\n", "videos/a clip 1.mp4 0 -1\nvideos/b.mp4 0 -1\n"):
        (lists / "train.csv").write_text(text)
        source = video_files(lists, labels=False)
        assert source.classes == [] and len(source.train) == 2 and len(source.val) == 1
    (lists / "train.csv").write_text("videos/b.mp4\nmissing.mp4\n")
    with pytest.raises(UserError, match="1 of 2 missing: 'missing.mp4'"):
        video_files(lists, labels=False)


def test_too_few_videos_to_hold_any_out(tmp_path):
    touch(tmp_path / "a.mp4")
    with pytest.raises(UserError, match="At least two videos are needed.*only 'a.mp4'"):
        video_files(tmp_path, labels=False)


def test_photos_do_not_look_like_videos(tmp_path):
    for split in ("train", "val"):
        for number in range(4):
            touch(tmp_path / split / "accordion" / f"image_{number:04d}.jpg", tmp_path / split / "b" / f"{number}.jpg")
    touch(tmp_path / "train/b/live.mov")  # a telephone's photos come with some
    assert not has_videos(tmp_path)
    assert not has_videos(tmp_path / "missing")
    (tmp_path / "train.txt").write_text("train/b/0.jpg 0\n")
    assert not has_videos(tmp_path)


def test_videos_look_like_videos(folders, tmp_path):
    assert has_videos(folders) and has_videos(folders / "train/bow")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert not has_videos(empty)


def test_labels_are_whole_arrays(folders):
    assert video_files(folders).train._labels.dtype == np.int64


@pytest.mark.parametrize("listed", [False, True])
def test_one_video_file_among_folders_of_frames_needs_pyav(tmp_path, monkeypatch, listed):
    for split in ("train", "val"):
        for name in ("a", "b"):
            frames(tmp_path / split / name / "clip")
    if listed:
        for split in ("train", "val"):
            (tmp_path / f"{split}.csv").write_text("train/a/clip 0\ntrain/b/clip 1\n")
    monkeypatch.setitem(sys.modules, "av", None)
    video_files(tmp_path)
    touch(tmp_path / "val" / "b" / "late.mkv")
    if listed:
        (tmp_path / "val.csv").write_text("train/a/clip 0\nval/b/late.mkv 1\n")
    with pytest.raises(UserError, match=r"Reading video files needs PyAV.*pip install 'vitdistill\[video\]'"):
        video_files(tmp_path)
