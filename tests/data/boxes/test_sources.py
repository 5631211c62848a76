"""Data with boxes as it lies on disk: layouts, class numbers, what is left out, and bad input in one line."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import box_trees
from vitdistill.data.boxes.files import BoxFiles
from vitdistill.data.boxes.samples import BoxImages
from vitdistill.data.boxes.sources import open_boxes
from vitdistill.data.boxes.voc import CLASSES
from vitdistill.data.images.augment import Augment
from vitdistill.data.open import open_source
from vitdistill.data.samples import ViewOptions
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.tasks.boxes import Boxes
from vitdistill.types import InputSpec

VAL = "annotations/instances_val2017.json"


def boxes_of(samples: Any, index: int, classes: list[str]) -> list[tuple[str, tuple[float, ...]]]:
    sample = samples.load(index)[0]
    return [
        (classes[number], tuple(corners))
        for number, corners in zip(sample.classes.tolist(), sample.corners.tolist(), strict=True)
    ]


def check_content(source: DataSource, train: int, val: int) -> None:
    """What was written is read, pixel by pixel."""
    assert isinstance(source.train, BoxImages) and (len(source.train), len(source.val)) == (train, val)
    for samples, first in ((source.train, 0), (source.val, train)):
        for index in range(len(samples)):
            number = first + index
            expected = box_trees.objects(number, box_trees.size_of(number))
            assert boxes_of(samples, index, source.classes) == expected, "images without boxes stay"
            assert samples.load(index)[0].image.size == box_trees.size_of(number)


def test_a_devkit_wherever_it_is_pointed_at(tmp_path: Path) -> None:
    box_trees.voc(tmp_path)
    for place in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2012"):
        source = open_boxes(place)
        assert source.classes == list(CLASSES) == sorted(CLASSES) and len(CLASSES) == 20
        check_content(source, 10, 6)
    assert source.val.boxes.ids[0] == "2012_000010"  # type: ignore[attr-defined]


def test_both_years_together(tmp_path: Path) -> None:
    box_trees.voc(tmp_path, {"2007": {"trainval": 3, "test": 4}, "2012": {"trainval": 5}})
    source = open_boxes(tmp_path, BoxFiles(split="07+12"))
    assert (len(source.train), len(source.val)) == (8, 4)
    number = 1  # of VOC2012, the fifth image in all
    assert boxes_of(source.train, 4, source.classes) == box_trees.objects(number, box_trees.size_of(number))
    assert "VOC2012" in source.train.path(4) and "VOC2007" in source.train.path(2)


@pytest.mark.parametrize("as_voc", [False, True], ids=["coco", "voc"])
def test_cocos_format_is_numbered_by_the_order_of_ids(tmp_path: Path, as_voc: bool) -> None:
    source = open_boxes(box_trees.coco(tmp_path, as_voc=as_voc))
    assert source.classes == ["person", "cat", "dog"]
    check_content(source, 10, 6)
    assert source.val.boxes.ids[0] == 110 and source.val.category_ids == [1, 17, 18]  # type: ignore[attr-defined]


def test_published_ids_are_class_numbers(tmp_path: Path) -> None:
    source = open_boxes(box_trees.coco(tmp_path), BoxFiles(ids="published"))
    assert len(source.classes) == 91 == len(set(source.classes)) and source.classes[17] == "cat"
    assert set(source.train.load(0)[0].classes.tolist()) <= {1, 17, 18}
    edit(tmp_path, lambda content: content["categories"].append({"id": 91, "name": "hair brush"}))
    with pytest.raises(UserError, match=r"ids .* must lie in 0..90; got 91 \(hair brush\).*number of 'no object'"):
        open_boxes(tmp_path, BoxFiles(ids="published"))


def test_files_that_are_named(tmp_path: Path) -> None:
    box_trees.coco(tmp_path / "data")
    for split in ("train", "val"):
        (tmp_path / "data" / f"annotations/instances_{split}2017.json").rename(tmp_path / f"{split}.json")
        (tmp_path / "data" / f"{split}2017").rename(tmp_path / f"photos_{split}")
    files = BoxFiles(
        train=str(tmp_path / "train.json"),
        val="../val.json",
        train_images=str(tmp_path / "photos_train"),
        val_images="../photos_val",
    )
    check_content(open_boxes(tmp_path / "data", files), 10, 6)


def test_scenes_are_bundled() -> None:
    source = open_boxes("scenes")
    assert source.image_size == 48 and source.classes == list("0123456789")
    assert (len(source.train), len(source.val)) == (1000, 250)
    sample = source.val.load(0)[0]
    assert 2 <= len(sample.classes) <= 4 and sample.image.size == (48, 48)
    with pytest.raises(UserError, match="scenes have boxes.*none for the whole picture; got scenes. Give --task boxes"):
        open_source("scenes")
    with pytest.raises(UserError, match="--boxes.split has no effect on bundled scenes"):
        open_boxes("scenes", BoxFiles(split="VOC2012"))


def test_difficult_objects_and_crowds_are_ignored_and_kept(tmp_path: Path) -> None:
    box_trees.voc(tmp_path / "voc")
    place = tmp_path / "voc/VOCdevkit/VOC2012/Annotations/2012_000000.xml"
    place.write_text(place.read_text().replace("<difficult>0", "<difficult>1"))
    edit(box_trees.coco(tmp_path / "coco"), lambda c: c["annotations"][0].update(iscrowd=1), "train")
    for name in ("voc", "coco"):
        samples = open_boxes(tmp_path / name).train
        assert isinstance(samples, BoxImages)
        assert len(samples.load(0)[0].corners) == 0, "not trained on"
        assert samples.boxes.ignored[samples.boxes.rows(0)].tolist() == [True]


def test_boxes_are_cut_to_their_image_and_empty_ones_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(content: dict[str, Any]) -> None:
        first = content["annotations"][0]
        for number, bbox in enumerate(([-5, -5, 30, 30], [70, 10, 5, 5], [3, 3, 0, 9])):
            content["annotations"].append({**first, "id": 1000 + number, "bbox": bbox})

    edit(box_trees.coco(tmp_path), change, "train")
    samples = open_boxes(tmp_path).train
    assert samples.load(0)[0].corners[1:].tolist() == [[0, 0, 25, 25]]
    assert [(kind, number) for kind, number, _ in samples.problems()] == [
        ("box cut", 0),
        ("box outside", 0),
        ("empty box", 0),
    ]
    lines = [record.getMessage() for record in caplog.records]
    assert any("outside their image, left out (1)" in line and "annotation 1001" in line for line in lines)
    assert any("empty, left out (1)" in line for line in lines)


def test_pictures_of_another_size_than_annotated_are_unreadable(tmp_path: Path) -> None:
    box_trees.voc(tmp_path)
    source = open_boxes(tmp_path)
    Image.new("RGB", (10, 12)).save(source.train.path(0))
    with pytest.raises(ValueError, match="10x12 pixels when upright, annotated as 64x48"):
        source.train.load(0)


def test_crowds_written_as_text_are_told_from_others(tmp_path: Path) -> None:
    edit(box_trees.coco(tmp_path), lambda content: content["annotations"][0].update(iscrowd="0"), "train")
    edit(tmp_path, lambda content: content["annotations"][1].update(iscrowd="1"), "train")
    assert open_boxes(tmp_path).train.boxes.ignored[:3].tolist() == [False, True, False]  # type: ignore[attr-defined]


def test_a_year_is_opened_from_within_and_its_list_may_begin_with_a_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    year = box_trees.voc(tmp_path) / "VOCdevkit/VOC2012"
    listed = year / "ImageSets/Main/val.txt"
    listed.write_text(listed.read_text(), encoding="utf-8-sig")
    monkeypatch.chdir(year)
    check_content(open_boxes("."), 10, 6)
    listed.write_bytes(b"\xff\xfe2")
    with pytest.raises(UserError, match=r"The list val of VOC2012 must be readable; got .*val.txt \(no text\)"):
        open_boxes(".")


def test_a_digest_knows_boxes(tmp_path: Path) -> None:
    before = open_boxes(box_trees.coco(tmp_path / "a")).train.digest()
    assert open_boxes(box_trees.coco(tmp_path / "b")).train.digest() == before, "wherever the data lies"
    edit(tmp_path / "b", lambda content: content["annotations"][0].update(category_id=1), "train")
    edit(tmp_path / "b", lambda content: content["annotations"][1].update(category_id=1), "train")
    assert open_boxes(tmp_path / "b").train.digest() != before


# --- bad input -----------------------------------------------------------------------------------------------------


def edit(root: Path, change: Callable[[dict[str, Any]], object], split: str | None = None) -> None:
    for name in (split,) if split else ("train", "val"):
        file = root / f"annotations/instances_{name}2017.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))


BAD_JSON: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no categories": (lambda c: c.pop("categories"), "lists of images, annotations and categories; got .* without cat"),
    "empty": (lambda c: c["categories"].clear(), "with no category"),
    "alike": (lambda c: c["categories"][0].update(name="dog"), "Ids and names of categories must be distinct"),
    "unknown": (
        lambda c: c["annotations"][0].update(category_id=3),
        r"must be that of a category; got 3 of annotation 1 in .*They are 1, 17, 18",
    ),
    "stray": (lambda c: c["annotations"][0].update(image_id=7), "must be that of an image; got 7 in"),
    "no bbox": (lambda c: c["annotations"][0].update(bbox=[1, 2, None, 4]), "must be four numbers.*of annotation 1"),
    "no size": (lambda c: c["images"][0].pop("width"), "id, file_name, width and height; got .* without width"),
    "gone": (lambda c: c["images"][0].update(file_name="x.png"), "must be in .*; got 1 of 6 missing: 'x.png'"),
    "twice": (lambda c: c["images"][0].update(id=c["images"][1]["id"]), "an id of its own"),
    "no image": (lambda c: (c["images"].clear(), c["annotations"].clear()), "must list at least one image"),
    "no box": (lambda c: c["annotations"].clear(), "at least one box to validate on; got none in 6 images"),
    "text": (lambda c: c["annotations"][0].update(bbox="1234"), "must be four numbers: .*; got 1234 of annotation 1"),
    "list": (lambda c: c["annotations"][0].update(category_id=[17]), r"that of a category; got \[17\] of annotation 1"),
    "part": (lambda c: c["categories"][0].update(id=17.5), "a number `id` and a `name`"),
    "nameless": (lambda c: c["categories"][0].update(name=None), "a number `id` and a `name`"),
    "crowd": (
        lambda c: c["annotations"][0].update(iscrowd="no"),
        "iscrowd .* must be 0 or 1; got 'no' of annot",
    ),
    "area": (
        lambda c: c["annotations"][0].update(area=math.nan),
        "area .* must be a number .* got nan of annot",
    ),
    "no image at all": (lambda c: c["images"].__setitem__(0, None), "an id of its own; got .*, 6 images"),
    "width": (lambda c: c["images"][0].update(width=math.inf), "id, file_name, width and height; got .* without num"),
    "others": (lambda c: c["categories"].append({"id": 2, "name": "cow"}), "same categories; got '2 cow' in one"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json_is_one_line(name: str, tmp_path: Path) -> None:
    change, words = BAD_JSON[name]
    edit(box_trees.coco(tmp_path), change, "val")
    with pytest.raises(UserError, match=words) as error:
        open_boxes(tmp_path)
    assert "\n" not in str(error.value)


BAD_VOC: dict[str, tuple[str, str, str]] = {
    "no size": (
        "Annotations/2012_000000.xml",
        "<annotation><folder>x</folder></annotation>",
        "must say width and height; got none in .*0",
    ),
    "size": (
        "Annotations/2012_000000.xml",
        box_trees.xml((64, 48), []).replace("64", "64.5"),
        "must say width and height; got 64.5 by 48 in",
    ),
    "object": (
        "Annotations/2012_000000.xml",
        box_trees.xml((64, 48), []).replace("</annotation>", "<object>dog</object></annotation>"),
        "must have a <name> and a <bndbox>; got 'dog' in",
    ),
    "encoding": (
        "Annotations/2012_000000.xml",
        '<?xml version="1.0" encoding="own"?>' + box_trees.xml((64, 48), []),
        "xml with an <annotation>; got .*unknown encoding",
    ),
    "no xml": ("Annotations/2012_000000.xml", "{}", "xml with an <annotation>; got .*2012_000000.xml"),
    "class": (
        "Annotations/2012_000000.xml",
        box_trees.xml((64, 48), [("dogg", (0, 0, 9, 9))]),
        "one of VOC's 20 classes; got 'dogg' in .*Did you mean 'dog'",
    ),
    "no box": (
        "Annotations/2012_000000.xml",
        box_trees.xml((64, 48), [("dog", (0, 0, 9, 9))]).replace("xmin", "left"),
        "must say xmin, ymin, xmax and ymax; got object 1, dog in",
    ),
    "empty": ("ImageSets/Main/val.txt", "", "val.txt must list at least one image"),
    "gone": ("ImageSets/Main/val.txt", "nowhere\n", "must have a file in .*JPEGImages; got 1 of 1 missing"),
}


@pytest.mark.parametrize("name", BAD_VOC)
def test_a_bad_devkit_is_one_line(name: str, tmp_path: Path) -> None:
    file, content, words = BAD_VOC[name]
    box_trees.voc(tmp_path)
    (tmp_path / "VOCdevkit/VOC2012" / file).write_text(content)
    with pytest.raises(UserError, match=words) as error:
        open_boxes(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_years_lists_and_folders(tmp_path: Path) -> None:
    box_trees.voc(tmp_path / "voc")
    with pytest.raises(UserError, match=r"must hold VOC2007; got 'VOC2012' alone. Choose another --boxes.split"):
        open_boxes(tmp_path / "voc", BoxFiles(split="07+12"))
    (tmp_path / "voc/VOCdevkit/VOC2012/ImageSets/Main/val.txt").unlink()
    with pytest.raises(UserError, match=r"The list val of VOC2012 must be readable; got .*val.txt \(No such file"):
        open_boxes(tmp_path / "voc")
    with pytest.raises(UserError, match="must be an existing folder of images with boxes, or scenes; got 'nowhere'"):
        open_boxes("nowhere")
    with pytest.raises(UserError, match="must hold images with boxes; got no annotations/instances_train2017.json nor"):
        open_boxes(tmp_path)
    with pytest.raises(UserError, match="Boxes are annotated in files; got the source digits"):
        open_boxes(open_source("digits"))
    with pytest.raises(UserError, match="--boxes.ids has no effect on a VOC devkit"):
        open_boxes(tmp_path / "voc", BoxFiles(ids="dense"))
    with pytest.raises(UserError, match="--boxes.split has no effect on files in COCO's format"):
        open_boxes(box_trees.coco(tmp_path / "coco"), BoxFiles(split="VOC2012"))
    with pytest.raises(UserError, match="--boxes.val must be an existing file; got 'x.json'"):
        open_boxes(tmp_path / "coco", BoxFiles(val="x.json"))


def test_sizes_and_weight_of_a_run_hold_on_other_data() -> None:
    recorded = {"split": "VOC2007", "resize": "voc", "class_weight": 5.0, "det_tokens": 8}
    assert BoxFiles().over(recorded, elsewhere=True) == BoxFiles(resize="voc", class_weight=5.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sides": []}, "--boxes.sides must be numbers of pixels"),
        ({"class_weight": 0.0}, "--boxes.class_weight must be a number above 0; got 0.0"),
        ({"longest": 0}, "--boxes.longest must be a number of pixels; got 0"),
    ],
    ids=["sides", "class_weight", "longest"],
)
def test_options_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        BoxFiles(**options)


def test_what_a_run_recorded_holds_where_nothing_is_said() -> None:
    recorded = {"split": "07+12", "resize": "voc", "longest": 700}
    assert BoxFiles(longest=600).over(recorded) == BoxFiles(split="07+12", resize="voc", longest=600)
    assert BoxFiles().over(recorded, elsewhere=True) == BoxFiles(resize="voc", longest=700)


def test_unknown_categories_are_noted_where_only_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(box_trees.coco(tmp_path), BAD_JSON["unknown"][0], "train")
    with caplog.at_level(logging.WARNING):
        source = open_boxes(tmp_path, lenient=True)
    assert [problem.kind for problem in source.train.problems()] == ["unknown category"]
    assert np.array(source.train.boxes.classes).max() < 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("broken", [None, "{"], ids=["missing", "unreadable"])
def test_a_test_reads_nothing_to_train_on(broken: str | None, tmp_path: Path) -> None:
    whole = open_boxes(str(box_trees.coco(tmp_path)))
    file = tmp_path / "annotations/instances_train2017.json"
    file.unlink() if broken is None else file.write_text(broken)
    found = open_boxes(str(tmp_path), tested=True)
    assert found.classes == whole.classes and found.val.digest() == whole.val.digest() and len(found.train) == 0
    assert open_boxes(str(box_trees.voc(tmp_path / "voc")), tested=True).train.problems() == []
    config = {"data": str(tmp_path), "boxes": {"resize": "coco"}}
    assert Boxes.source_of(config).classes == Boxes.open_tested(str(tmp_path))[0].classes == whole.classes
    with pytest.raises(UserError, match="instances_train2017.json"):
        open_boxes(str(tmp_path))


def test_very_many_patches_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_boxes(str(box_trees.coco(tmp_path)), BoxFiles(resize="voc"))
    options = ViewOptions(augment=Augment(recipe="none"))
    source.train.check(InputSpec((3, 800, 1344), (0.5,) * 3, (0.5,) * 3, patch=(1, 16, 16)), options)
    assert not caplog.messages
    source.train.check(InputSpec((3, 48, 48), (0.5,) * 3, (0.5,) * 3, patch=(1, 6, 6)), options)
    assert "600x798 pixels are 13300 patches of 6x6" in caplog.text
    assert "smaller --boxes.sides and --boxes.eval_side" in caplog.text
    caplog.clear()
    source.val.check(InputSpec((3, 48, 48), (0.5,) * 3, (0.5,) * 3, patch=(1, 6, 6)), options)
    assert "480x798 pixels are 10640 patches of 6x6" in caplog.text and "smaller --boxes.eval_side" in caplog.text
