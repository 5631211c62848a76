import errno
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from vitdistill.data import Augment, ViewOptions, open_source
from vitdistill.data.clips.files import has_videos, video_files
from vitdistill.data.folders import hold_out
from vitdistill.data.images.folder import IMAGES, image_folder, list_images
from vitdistill.errors import UserError
from vitdistill.types import InputSpec


def test_classes_are_numbered_in_sorted_order_and_images_found_at_any_depth(make_folder):
    root = make_folder(train={"zebra": 2, "ant": 3}, val={"ant": 1, "zebra": 1})
    (root / "train/ant/deeper").mkdir()
    (root / "train/ant/000.jpg").rename(root / "train/ant/deeper/x.JPG")
    source = image_folder(root)
    assert source.classes == ["ant", "zebra"] and source.name == "photos" and source.image_size is None
    assert source.train.labels == [0, 0, 0, 1, 1] and source.val.labels == [0, 1]
    paths = [source.train.path(index) for index in range(5)]
    assert paths == sorted(paths) and str(root / "train/ant/deeper/x.JPG") in paths
    image, label = source.train.load(3)
    assert (image.size, image.mode, label) == ((40, 32), "RGB", 1)


def test_the_order_within_a_class_is_folder_by_folder(make_folder):
    root = make_folder(train={"a": 0, "b": 1}, val={"a": 1, "b": 1})
    for name in ("z.jpg", "m/2.jpg", "m-/1.jpg", "m/k/3.jpg"):
        (root / "train/a" / name).parent.mkdir(exist_ok=True, parents=True)
        (root / "train/a" / name).touch()
    # As torchvision's, so that runs repeat whichever of the two found the files.
    listed = [os.path.relpath(path, root / "train") for path, _ in ImageFolder(root / "train").samples]
    train = image_folder(root).train
    assert [os.path.relpath(train.path(index), root / "train") for index in range(len(train))] == listed
    assert listed == ["a/z.jpg", "a/m/2.jpg", "a/m-/1.jpg", "a/m/k/3.jpg", "b/000.jpg"]


def test_grey_and_transparent_images_become_rgb(make_folder):
    root = make_folder(train={"a": 1, "b": 1}, val={"a": 1, "b": 1})
    Image.new("L", (8, 8), 7).save(root / "train/a/000.jpg")
    Image.new("RGBA", (8, 8), (1, 2, 3, 0)).save(root / "train/b/111.png")
    source = image_folder(root)
    assert [source.train.load(index)[0].mode for index in range(len(source.train))] == ["RGB"] * 3


def test_what_other_programs_leave_behind_is_ignored(photos):
    (photos / "train/.ipynb_checkpoints").mkdir()
    (photos / "train/cat/.thumbs").mkdir()
    (photos / "train/cat/.thumbs/000.jpg").write_text("a file manager")
    (photos / "train/cat/._000.jpg").write_text("macOS")
    (photos / "train/cat/Thumbs.db").write_text("Windows")
    source = image_folder(photos)
    assert source.classes == ["cat", "dog"] and len(source.train) == 10


def test_names_that_are_not_ascii_survive_pickling(make_folder):
    root = make_folder(train={"köter": 1, "猫": 2}, val={"köter": 1, "猫": 1})
    train = pickle.loads(pickle.dumps(image_folder(root).train))
    assert [train.load(index)[1] for index in range(3)] == train.labels == [0, 1, 1]


@pytest.mark.parametrize("name", ["validation", "test"])
def test_other_names_of_the_validation_folder(make_folder, name):
    source = image_folder(make_folder(**{"train": {"a": 1, "b": 1}, name: {"a": 1, "b": 2}}))
    assert len(source.val) == 3


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "must hold a folder 'train'; got no folder in it"),
        ({"val": {"a": 1, "b": 1}}, "must hold a folder 'train'; got the folders 'val'"),
        ({"train": {"a": 1, "b": 1}}, "'val' or 'validation' or 'test'; got the folders 'train'"),
        ({"train": {}, "val": {}}, "must hold a folder 'train'"),
        ({"train": {"a": 2}, "val": {"a": 1}}, "at least two classes; got only 'a'"),
        ({"train": {"a": 1, "b": 0}, "val": {"a": 1, "b": 1}}, "at least one image; got none in 'b'"),
        ({"train": {"a": 1, "b": 1}, "val": {"a": 0, "b": 0}}, "at least one image; got none in 'a', 'b'"),
        (
            {"train": dict.fromkeys("abcde", 1), "val": {"a": 1, "z": 1}},
            "'b', 'c', 'd' and 1 more only in train, 'z' only in val",
        ),
    ],
)
def test_unusable_folders_say_what_is_wrong(make_folder, splits, message):
    root = make_folder(**splits)
    with pytest.raises(UserError) as error:
        image_folder(root)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_flat_validation_folder_is_named(photos):
    for file in (photos / "val").rglob("*.jpg"):
        file.rename(photos / "val" / f"{file.parent.name}{file.name}")
    for folder in (photos / "val").glob("*/"):
        folder.rmdir()
    with pytest.raises(UserError, match="val must hold one folder per class; got no folder"):
        image_folder(photos)


def test_open_source_takes_names_paths_and_sources(photos, monkeypatch):
    opened = open_source(str(photos))
    assert open_source(opened) is opened
    assert open_source(photos).classes == opened.classes
    assert open_source("digits").name == "digits"
    monkeypatch.chdir(photos.parent)
    assert open_source("photos").name == "photos"
    photos.rename(photos.parent / "digits")
    assert open_source("digits").image_size is not None, "a bundled name wins over a folder"
    assert open_source("./digits").image_size is None


def test_unknown_data_names_what_is_near():
    with pytest.raises(UserError, match=r"bundled source \(digits.*got 'digts'. Did you mean 'digits'"):
        open_source("digts")
    with pytest.raises(UserError, match="got '/no/such/folder'"):
        open_source("/no/such/folder")


def test_a_file_is_not_a_data_folder(photos):
    with pytest.raises(UserError, match="exist and be a folder"):
        open_source(photos / "train/cat/000.jpg")


def test_list_images(photos):
    one = photos / "train/cat/000.jpg"
    assert list_images(one) == [one]
    assert list_images(str(photos / "val")) == sorted((photos / "val").rglob("*.jpg"))
    (photos / "notes").mkdir()
    (photos / "notes/readme.txt").write_text("text")
    for wrong, message in [("notes", "none in"), ("notes/readme.txt", "none in"), ("nowhere", "must exist")]:
        with pytest.raises(UserError, match=message):
            list_images(photos / wrong)


# --- without labels ----------------------------------------------------------------------------------------------


@pytest.fixture
def touch(tmp_path):
    """`touch("a/1.jpg", ...)` makes empty files; nothing here reads them."""

    def make(*names: str) -> Path:
        root = tmp_path / "any"
        root.mkdir(exist_ok=True)
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        return root

    return make


def names(images, root: Path) -> list[str]:
    return [os.path.relpath(images.path(index), root) for index in range(len(images))]


def test_without_labels_a_labelled_folder_is_opened_as_ever(photos):
    labelled, without = image_folder(photos), image_folder(photos, labels=False)
    assert without.classes == labelled.classes == ["cat", "dog"] and without.name == labelled.name
    for split in ("train", "val"):
        one, other = getattr(labelled, split), getattr(without, split)
        assert one.labels == other.labels and names(one, photos) == names(other, photos)


@pytest.mark.parametrize(
    ("change", "train", "val"),
    [
        ("train/loose.jpg", 11, 4),  # beside the class folders: has no class
        ("val/loose.jpg", 10, 5),
        ("val/zebra/x.jpg", 10, 5),  # a class that is not in train
        ("train/bird/x.txt", 10, 4),  # a class without images
    ],
)
def test_class_folders_that_do_not_fit_are_only_folders(photos, change, train, val):
    (photos / change).parent.mkdir(exist_ok=True)
    (photos / change).touch()
    source = image_folder(photos, labels=False)
    assert source.classes == []
    assert (len(source.train), len(source.val)) == (train, val)
    assert source.train.labels is None and source.val.labels is None and source.val.load(0)[1] is None


def test_without_labels_a_flat_folder_will_do(make_folder):
    root = make_folder(train={"one": 6})
    for file in (root / "train/one").iterdir():
        file.rename(root / file.name)
    (root / "train/one").rmdir()
    (root / "train").rmdir()
    source = open_source(root, labels=False)
    assert (source.name, source.classes, source.image_size) == ("photos", [], None)
    assert len(source.train) == 5 and len(source.val) == 1
    train = pickle.loads(pickle.dumps(source.train))
    image, label = train.load(4)
    assert (image.size, image.mode, label) == ((40, 32), "RGB", None)


def test_images_at_any_depth_in_sorted_order_and_hidden_ones_left_out(touch):
    root = touch("b.jpg", "a/z/1.JPEG", "a/2.png", "ä/3.webp", ".hidden/4.jpg", "a/.thumbs/5.jpg", "a/._2.png", "c.txt")
    source = image_folder(root, labels=False)
    found = names(source.train, root) + names(source.val, root)
    assert sorted(found) == sorted(["b.jpg", "a/z/1.JPEG", "a/2.png", "ä/3.webp"])
    assert names(source.train, root) == sorted(names(source.train, root), key=os.fsencode)


def test_a_train_folder_leaves_out_what_is_beside_it(touch):
    root = touch("train/a/1.jpg", "train/2.jpg", "train/test/3.jpg", "extra/4.jpg", "5.jpg")
    source = image_folder(root, labels=False)
    found = names(source.train, root) + names(source.val, root)
    assert sorted(found) == ["train/2.jpg", "train/a/1.jpg", "train/test/3.jpg"] and len(source.val) == 1


def test_without_a_train_folder_the_other_splits_are_not_trained_on(touch):
    root = touch("a/1.jpg", "a/val/2.jpg", "val/3.jpg", "val/x/4.jpg", "test/5.jpg")
    source = image_folder(root, labels=False)
    assert names(source.train, root) == ["a/1.jpg", "a/val/2.jpg"]
    assert names(source.val, root) == ["val/3.jpg", "val/x/4.jpg"]


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_without_labels_a_validation_folder_is_used(touch, name):
    root = touch("train/1.jpg", "train/2.jpg", f"{name}/3.jpg")
    source = image_folder(root, labels=False)
    assert (len(source.train), names(source.val, root)) == (2, [f"{name}/3.jpg"])


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (199, 1), (300, 3), (499_999, 4999), (600_000, 5000)])
def test_the_held_out_share(count, held_out, tmp_path):
    names = np.array([b"%07d.jpg" % number for number in range(count)])
    train, val = hold_out(names, tmp_path, IMAGES)
    assert len(val) == held_out and np.array_equal(np.sort(np.concatenate([train, val])), names)
    assert all(np.array_equal(np.sort(part), part) for part in (train, val))
    assert np.array_equal(val, hold_out(names, tmp_path, IMAGES)[1]), "the same at every opening"


def test_the_held_out_images_come_from_everywhere_and_never_change(tmp_path):
    names = np.array([b"%04d.jpg" % number for number in range(1000)])
    held_out = [int(name[:4]) for name in hold_out(names, tmp_path, IMAGES)[1]]
    assert held_out == [27, 231, 298, 306, 553, 672, 706, 859, 971, 993]


def test_links_are_followed_and_a_circle_of_links_ends(touch, tmp_path):
    root = touch("a/1.jpg", "a/2.jpg")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/3.jpg").touch()
    (root / "a/back").symlink_to(root)
    (root / "b").symlink_to(tmp_path / "elsewhere")
    source = image_folder(root, labels=False)
    assert sorted(names(source.train, root) + names(source.val, root)) == ["a/1.jpg", "a/2.jpg", "b/3.jpg"]


def test_a_link_out_of_a_class_folder_brings_no_other_classes_into_it(make_folder):
    root = make_folder(train={"a": 1, "b": 2}, val={"a": 1, "b": 1})
    (root / "train/a/up").symlink_to(root / "train")
    (root / "train/a/top").symlink_to(root)
    assert image_folder(root).train.labels == [0, 1, 1]


def test_class_names_in_another_encoding_become_text(make_folder):
    root = make_folder(train={"a": 1, "b": 2}, val={"a": 1, "b": 1})
    for split in ("train", "val"):
        os.rename(root / split / "b", os.fsencode(root / split) + b"/caf\xe9")
    source = image_folder(root)
    assert source.classes == ["a", "caf\u00e9"] and source.train.labels == [0, 1, 1]
    assert source.train.load(2)[1] == 1


def test_class_names_that_only_look_alike_are_told_apart(make_folder):
    root = make_folder(train={"caf\u00e9": 1, "b": 1}, val={"cafe\u0301": 1, "b": 1})
    with pytest.raises(UserError, match="NFC and NFD"):
        image_folder(root)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "At least two images are needed, one to validate on; got none in"),
        (["x.txt"], "At least two images are needed, one to validate on; got none in"),
        (["a/1.jpg"], "At least two images are needed, one to validate on; got only 'a/1.jpg' in"),
        (["train/x.txt", "1.jpg", "2.jpg"], "got none in"),
        (["train/1.jpg", "train/2.jpg", "val/x.txt"], "val must hold at least one image to validate on; got none"),
        (["train/x.txt", "val/1.jpg"], "train must hold at least one image to train on; got none"),
        (["test/1.jpg", "test/2.jpg"], "must hold at least one image outside test/ to train on; got none"),
    ],
)
def test_without_labels_unusable_folders_say_what_is_wrong(touch, files, message):
    root = touch(*files)
    with pytest.raises(UserError) as error:
        image_folder(root, labels=False)
    assert message in str(error.value) and "JPEG" in str(error.value) and "\n" not in str(error.value)


def test_labels_are_needed_unless_said_otherwise(touch):
    root = touch("1.jpg", "2.jpg")
    with pytest.raises(UserError, match="must hold a folder 'train'"):
        open_source(root)
    with pytest.raises(UserError, match="exist and be a folder.*Any folder with at least two images"):
        open_source(root / "1.jpg", labels=False)
    with pytest.raises(UserError, match="existing folder or a bundled source"):
        open_source("no/such/folder", labels=False)


def test_bundled_and_open_sources_keep_their_labels(photos):
    assert open_source("digits", labels=False) is open_source("digits")
    opened = open_source(photos)
    assert open_source(opened, labels=False) is opened


# --- what is read, and what is left out ------------------------------------------------------------------------------


def labelled_names(touch, *names: str) -> Path:
    """Files in two classes of both splits."""
    return touch(*(f"{split}/{label}/{name}" for split in ("train", "val") for label in "ab" for name in names))


def test_every_format_that_pillow_reads_is_a_sample(touch):
    names = ["1.png", "2.jfif", "3.gif", "4.AVIF", "5.jp2", "6.heic", "7.JPE", "8.bmp", "9.qoi"]
    assert len(image_folder(labelled_names(touch, *names)).train) == 18


def test_what_was_left_out_is_said_in_one_line_once(touch, caplog):
    root = labelled_names(touch, "1.jpg", "notes.txt", "list.json", "film.mp4", "README", "more.TXT")
    (root / "train/loose.jpg").touch()
    with caplog.at_level(logging.WARNING):
        image_folder(root)
        image_folder(root)
    assert [record.getMessage() for record in caplog.records] == [
        f"Left out of {root}: 8 .txt, 4 .json, 4 .mp4, 4 without a suffix (not read as images); "
        "1 image in train/ outside the class folders"
    ]


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", ".thumbs", "#recycle"])
def test_folders_of_other_programs_are_neither_classes_nor_samples(touch, caplog, name):
    root = labelled_names(touch, "1.jpg", f"{name}/1.jpg", "Thumbs.db", ".DS_Store", "desktop.ini")
    (root / "train" / name).mkdir(parents=True)
    (root / "train" / name / "x.jpg").touch()
    source = image_folder(root)
    assert source.classes == ["a", "b"] and len(source.train) == 2 and not caplog.records
    assert len(list_images(root)) == 4
    assert len(image_folder(root, labels=False).train) == 2


@pytest.mark.parametrize(
    ("train", "val"),
    [("Train", "VAL"), ("training", "valid"), ("TRAIN", "Validation"), ("train", "Test"), ("Training", "Testing")],
)
def test_usual_names_of_splits_in_any_case(make_folder, train, val):
    root = make_folder(**{train: {"a": 1, "b": 1}, val: {"a": 1, "b": 2}})
    assert (len(image_folder(root).train), len(image_folder(root).val)) == (2, 3)
    unlabelled = image_folder(root, labels=False)
    assert (len(unlabelled.train), len(unlabelled.val)) == (2, 3)


def test_numeric_class_names_are_ordered_by_value_and_it_is_said(make_folder, caplog):
    numbers = {str(number): 1 for number in range(12)}
    source = image_folder(make_folder(train=numbers, val=numbers))
    assert source.classes == [str(number) for number in range(12)]
    assert os.path.basename(os.path.dirname(source.train.path(2))) == "2" and source.train.labels == list(range(12))
    assert "in the order of their numbers: 0, 1, 2, 3" in caplog.text
    caplog.clear()
    assert image_folder(make_folder("few", train={"1": 1, "2": 1}, val={"1": 1, "2": 1})).classes == ["1", "2"]
    mixed = dict.fromkeys(("10", "9", "x"), 1)
    assert image_folder(make_folder("mixed", train=mixed, val=mixed)).classes == ["10", "9", "x"]
    assert not caplog.records


@pytest.mark.parametrize("val", [{"a": 1, "c": 2}, {"a": 1, "b": 0, "c": 2}])
def test_validation_may_lack_classes_and_keeps_the_numbers_of_training(make_folder, caplog, val):
    source = image_folder(make_folder(train={"a": 1, "b": 1, "c": 1}, val=val))
    assert source.classes == ["a", "b", "c"] and source.val.labels == [0, 2, 2]
    assert "val has no image of 'b': scored on the other 2 classes" in caplog.text


def test_one_thumbnail_beside_each_video_does_not_make_a_folder_of_images(touch, caplog):
    root = labelled_names(touch, "1.mp4", "1.jpg", "2.avi", "thumb_2.png", "2_small.png")
    assert has_videos(root)
    assert f"{root} is taken for a folder of videos: 8 videos and 12 images, 12 of them stills" in caplog.text
    videos = video_files(root)
    assert len(videos.train) == 4 and "12 .png" not in caplog.text
    assert f"Left out of {root}: 8 .png, 4 .jpg (not read as videos)" in caplog.text
    assert len(video_files(root, labels=False).train) == 4, "nor a folder of frames"


def test_few_videos_among_images_are_left_out(touch, caplog):
    root = labelled_names(touch, "a.jpg", "b.jpg", "c.jpg", "film.mp4")
    assert len(open_source(root).train) == 6
    assert "is taken for a folder of images: 4 videos and 12 images" in caplog.text
    assert "4 .mp4 (not read as images)" in caplog.text


def test_telephone_pictures_with_short_videos_are_images(touch):
    assert not has_videos(labelled_names(touch, "IMG_1.HEIC", "IMG_1.MOV", "IMG_2.heic", "IMG_3.heic"))


def test_links_into_nothing_and_folders_with_names_of_images(photos):
    (photos / "val/cat/x.jpg").symlink_to("nowhere")
    (photos / "val/cat/y.jpg").mkdir()
    assert len(image_folder(photos).val) == 5


def test_dark_16_bit_images_are_pointed_out(make_folder, caplog):
    root = make_folder(train={"a": 1, "b": 1}, val={"a": 1, "b": 1})
    spec, options = InputSpec((3, 8, 8), (0.5,) * 3, (0.5,) * 3), ViewOptions(augment=Augment())
    image_folder(root).train.check(spec, options)
    assert not caplog.records
    for split in ("train", "val"):
        for label in "ab":
            Image.new("I;16", (8, 8), 4000).save(root / split / label / "dark.png")
    image_folder(root).train.check(spec, options)
    assert "nearly black: the highest number in 2 of them is 4000, and 65535 is white" in caplog.text


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES])
def test_folders_that_cannot_be_listed_are_not_taken_for_empty(photos, monkeypatch, number):
    listed = os.scandir

    def failing(path):
        if str(path).endswith("train/dog"):
            raise OSError(number, os.strerror(number), str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", failing)
    for read in (open_source, list_images):
        with pytest.raises(OSError, match=f"train/dog must be readable; got {os.strerror(number)}") as error:
            read(photos)
        assert isinstance(error.value, UserError) and error.value.errno == number
