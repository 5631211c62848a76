import pickle

import pytest
from PIL import Image

from vitdistill.data import open_source
from vitdistill.data.image_folder import image_folder, list_images
from vitdistill.errors import UserError


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


def test_grey_and_transparent_images_become_rgb(make_folder):
    root = make_folder(train={"a": 1, "b": 1}, val={"a": 1, "b": 1})
    Image.new("L", (8, 8), 7).save(root / "train/a/000.jpg")
    Image.new("RGBA", (8, 8), (1, 2, 3, 0)).save(root / "train/b/111.png")
    source = image_folder(root)
    assert [source.train.load(index)[0].mode for index in range(len(source.train))] == ["RGB"] * 3


def test_what_other_programs_leave_behind_is_ignored(photos):
    (photos / "train/.ipynb_checkpoints").mkdir()
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
    with pytest.raises(UserError, match=r"bundled source \(digits.*got 'digts'. Did you mean 'digits'\?"):
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
