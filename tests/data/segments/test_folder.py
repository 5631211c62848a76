"""Folder pairs: what is paired with what, what masks mean, and what is said of those that mean nothing."""

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from made_pairs import ade20k, pattern
from vitdistill.data.images.augment import Augment
from vitdistill.data.loader import make_loader
from vitdistill.data.order import EvalBatchSampler
from vitdistill.data.samples import ViewOptions
from vitdistill.data.segments.files import SegmentFiles, SegmentTest
from vitdistill.data.segments.folder import segment_folder
from vitdistill.data.segments.masks import MaskError, read_mask
from vitdistill.data.segments.names import read_names
from vitdistill.errors import UserError
from vitdistill.types import InputSpec
from vitdistill.verbs.check import check

SPEC, PLAIN = InputSpec((3, 16, 16), (0.5,) * 3, (0.5,) * 3), ViewOptions(augment=Augment(recipe="none"))


def test_ade20k_counts_its_classes_from_1_and_the_folder_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = segment_folder(ade20k(tmp_path))
    assert source.classes == ["wall", "building", "sky"] and len(source.train) == len(source.val) == 4
    assert "0 is ignored (--segments.reduce_zero_label true)" in caplog.text
    image, mask = source.train.load(0)[0]
    assert image.size == (30, 40) and image.mode == "RGB"
    raw = pattern((40, 30), 1)
    assert np.array_equal(mask, np.where(raw == 0, 255, raw - 1))


def test_other_folders_count_from_0_and_names_of_folders_vary(tmp_path: Path) -> None:
    (tmp_path / "ADEChallengeData2016").mkdir()
    folder = ade20k(tmp_path / "x").rename(tmp_path / "mine")
    (folder / "annotations").rename(folder / "masks")
    for kind in ("images", "masks"):
        (folder / kind / "training").rename(folder / kind / "train")
        (folder / kind / "validation").rename(folder / kind / "val")
    (folder / "objectInfo150.txt").unlink()
    with pytest.raises(UserError, match="The classes of masks must be known; got no objectInfo150.txt or classes.txt"):
        segment_folder(folder)
    source = segment_folder(folder, SegmentFiles(classes=4))
    assert source.classes == ["0", "1", "2", "3"]
    assert np.array_equal(source.val.load(1)[0].mask, pattern((30, 40), 2))
    (folder / "classes.txt").write_text("one\ntwo\nthree\nfour\n\n")
    assert segment_folder(folder).classes == ["one", "two", "three", "four"]
    assert segment_folder(folder).val.digest() != segment_folder(folder, SegmentFiles(classes=5)).val.digest()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = ade20k(tmp_path)
    (folder / "annotations" / "training" / "ADE_train_00000002.png").unlink()
    with pytest.raises(UserError, match="1 of 4 images of .*training without one: 'ADE_train_00000002.jpg'"):
        segment_folder(folder)
    (folder / "images" / "training" / "ADE_train_00000002.jpg").unlink()
    assert len(segment_folder(folder).train) == 3
    (folder / "annotations").rename(folder / "elsewhere")
    with pytest.raises(UserError, match="must have folders of images and of masks; got no annotations or masks"):
        segment_folder(folder)
    (folder / "masks").mkdir()
    with pytest.raises(UserError, match="masks must have a folder train or training; got none"):
        segment_folder(folder)
    for each in (folder / "images" / "training").iterdir():
        each.unlink()
    (folder / "masks" / "training").mkdir()
    with pytest.raises(UserError, match="training must hold at least one image; got none"):
        segment_folder(folder)
    with pytest.raises(UserError, match="must exist and be a folder"):
        segment_folder(tmp_path / "nothing")


def test_names_that_fit_twice_are_refused(tmp_path: Path) -> None:
    folder = ade20k(tmp_path)
    mask = folder / "annotations" / "training" / "ADE_train_00000002.png"
    Image.open(mask).save(mask.with_suffix(".bmp"))
    with pytest.raises(UserError, match="must differ in .*annotations.*got 'ADE_train_00000002.bmp', 'ADE_train_0000"):
        segment_folder(folder)


def test_marks_of_letters_may_be_written_in_either_way(tmp_path: Path) -> None:
    folder = ade20k(tmp_path)
    for kind, ending, form in (("images", ".jpg", "NFC"), ("annotations", ".png", "NFD")):
        place = folder / kind / "training" / f"ADE_train_00000002{ending}"
        place.rename(place.with_name(unicodedata.normalize(form, f"ä{ending}")))
    assert len(segment_folder(folder).train) == 4


def test_masks_are_turned_upright_as_their_images_are(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3  # upside down
    Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).save(tmp_path / "mask.png", exif=exif)
    assert read_mask(str(tmp_path / "mask.png"), 3, reduce_zero_label=False).tolist() == [[2, 1, 0]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("size", "15x20 pixels, where its image has 30x40"),
        ("beyond", r"the label 7, where the 3 classes are 1 to 3, 0 for none \(and 255 is ignored\)"),
        ("colours", r"a picture in colours \(RGB\) where class numbers are wanted"),
        ("empty", "the file is empty"),
    ],
)
def test_a_mask_that_means_nothing_is_left_out_and_named(name: str, words: str, tmp_path: Path) -> None:
    folder = ade20k(tmp_path)
    place = folder / "annotations" / "training" / "ADE_train_00000001.png"
    mask = Image.open(place).copy()
    if name == "size":
        mask.resize((15, 20)).save(place)
    elif name == "beyond":
        Image.fromarray(np.full((40, 30), 7, dtype=np.uint8)).save(place)
    elif name == "colours":
        mask.convert("RGB").save(place)
    else:
        place.write_bytes(b"")
    samples = segment_folder(folder).train
    samples.check(SPEC, PLAIN)  # one of four
    (batch,) = make_loader(samples, samples.transform(SPEC, PLAIN, train=False), EvalBatchSampler(4, 9), seed=0)
    assert batch.index.tolist() == [1, 2, 3] and len(batch.skipped) == 1
    assert batch.skipped[0].path == samples.path(0)
    assert re.search(f"mask {place}: {words}", batch.skipped[0].reason)
    result = check(str(folder), workers=0)
    unreadable = [one["path"] for one in result["findings"] if one["kind"] == "unreadable"]
    assert not result["ok"] and unreadable == [samples.path(0)]


def test_masks_that_nearly_all_mean_nothing_stop_at_once(tmp_path: Path) -> None:
    source = segment_folder(ade20k(tmp_path), SegmentFiles(classes=2))
    with pytest.raises(UserError, match=r"must hold the number of a class in each pixel; got mask .*the label 3"):
        source.train.check(SPEC, PLAIN)


def test_masks_are_read_by_their_numbers(tmp_path: Path) -> None:
    numbers = np.array([[0, 1, 255]], dtype=np.uint8)
    indexed = Image.fromarray(numbers)
    indexed.putpalette(bytes(range(256)) * 3)
    for kind, picture in {
        "grey": Image.fromarray(numbers),
        "palette": indexed,
        "16 bits": Image.fromarray(numbers.astype(np.uint16)),
    }.items():
        picture.save(tmp_path / f"{kind}.png")
        assert read_mask(str(tmp_path / f"{kind}.png"), 2, reduce_zero_label=False).tolist() == [[0, 1, 255]]
        assert read_mask(str(tmp_path / f"{kind}.png"), 1, reduce_zero_label=True).tolist() == [[255, 0, 255]]
    Image.fromarray(np.array([[0, 300]], dtype=np.uint16)).save(tmp_path / "large.png")
    with pytest.raises(MaskError, match="the label 300, where the 2 classes are 0 to 1"):
        read_mask(str(tmp_path / "large.png"), 2, reduce_zero_label=False)


def test_names_are_refused_that_tell_no_classes_apart(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    for text, words in (("a\na\n", "'a' twice"), ("a\n", "must name 2 to 254 classes; got 1")):
        file.write_text(text)
        with pytest.raises(UserError, match=words):
            read_names(file)
    with pytest.raises(UserError, match="A file of class names must be readable text"):
        read_names(tmp_path)
    file.write_text("Idx,Ratio,Name\n1,0.5,bed;cot\n2,0.5,bed;bunk\n")
    assert read_names(file) == ["bed;cot", "bed;bunk"], "the first synonyms alone would be one"


def test_options_out_of_range_are_refused() -> None:
    for options, words in (
        ({"ratio": (2.0, 0.5)}, "two factors between 0.1 and 10, the smaller first; got 2, 0.5"),
        ({"stride": 0}, "stride must be at least 1 pixel; got 0"),
        ({"classes": 255}, "classes must be 2 to 254, or a file of names; got 255"),
    ):
        with pytest.raises(UserError, match=words):
            SegmentFiles(**options)
    assert SegmentTest(stride=5).over({"ratio": [0.5, 1.0], "stride": 7}) == SegmentTest(stride=5, ratio=(0.5, 1.0))


def test_masks_without_any_class_stop_at_once(tmp_path: Path) -> None:
    folder = ade20k(tmp_path)
    for mask in (folder / "annotations" / "training").iterdir():
        Image.new("L", Image.open(mask).size, 255).save(mask)
    with pytest.raises(UserError, match="must have pixels of some class; got .*all of which is ignored"):
        segment_folder(folder).train.check(SPEC, PLAIN)
