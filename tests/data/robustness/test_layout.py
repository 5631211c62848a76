"""Test sets as folders: names, what is missing, what is something else."""

from pathlib import Path
from typing import Any

import pytest

from robustness_sets import FOUR, classes_with, corrupted, linked, validation
from vitdistill.data.robustness.images import open_part
from vitdistill.data.robustness.layout import image_numbers, layouts
from vitdistill.data.robustness.published import CORRUPTIONS
from vitdistill.data.robustness.sets import corruptions_of, sets_of, severities_of
from vitdistill.errors import UserError

pytestmark = pytest.mark.usefixtures("four_classes")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Images of all four classes."""
    return classes_with(tmp_path / "tree", dict.fromkeys(FOUR, 2))


def names(root: Path, **options: Any) -> list[str]:
    return [part.words for part in layouts({"imagenet-c": str(root)}, **options)[0].parts]


# --- words -----------------------


def test_sets_are_named_with_their_folders() -> None:
    assert sets_of("imagenet-a:/a, v2:/b,c/d:e") == {"imagenet-a": "/a", "v2": "/b,c/d:e"}
    assert sets_of(["sketch:~/s"]) == {"sketch": "~/s"}
    assert corruptions_of("snow,gaussian_noise,saturate") == ("gaussian_noise", "snow", "saturate")
    assert severities_of("5,1") == (1, 5) and severities_of(3) == (3,) and severities_of([2, 2]) == (2,)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("imagenet-b:/x", "must name sets as name:folder.*got 'imagenet-b:/x'. Did you mean 'imagenet-"),
        ("/data/imagenet-a", "must name sets as name:folder"),
        ("imagenet-a", "imagenet-a must be given with its folder"),
        ("v2:", "v2 must be given with its folder"),
        ("v2:/a,v2:/b", "Each set may be given once; got v2 twice: /a and /b"),
        ([], "at least one set"),
    ],
)
def test_words_that_name_no_sets(sets: str | list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sets_of(sets)


def test_words_that_are_no_corruptions_or_severities() -> None:
    with pytest.raises(UserError, match="got 'gausian_noise'. Did you mean 'gaussian_noise'"):
        corruptions_of("gausian_noise")
    for wrong in ("6", "0,1", "", [7], "mild"):
        with pytest.raises(UserError, match="--severities must be some of 1, 2, 3, 4, 5"):
            severities_of(wrong)


# --- classes ---------------------


def test_classes_go_by_name(tree: Path, tmp_path: Path) -> None:
    part = layouts({"sketch": str(tree)})[0].parts[0]
    assert part.folders == tuple(FOUR) and not part.missing
    assert open_part(part)[0].labels == [0, 0, 1, 1, 2, 2, 3, 3]
    # Not by their running number: the second class is missing.
    three = linked(tmp_path / "three", {name: tree / name for name in FOUR if name != FOUR[1]})
    with pytest.raises(UserError, match=rf"sketch must be complete; got .* without 1 of 4 classes \({FOUR[1]}\)"):
        layouts({"sketch": str(three)})
    part = layouts({"sketch": str(three)}, allow_partial=True)[0].parts[0]
    assert open_part(part)[0].labels == [0, 0, 2, 2, 3, 3] and part.missing == (f"1 of 4 classes ({FOUR[1]})",)


def test_numbered_classes_go_by_number(tree: Path, tmp_path: Path) -> None:
    root = linked(tmp_path / "v2", {str(number): tree / name for number, name in enumerate(FOUR)})
    assert layouts({"v2": str(root)})[0].parts[0].folders == ("0", "1", "2", "3")
    with pytest.raises(UserError, match=r"class folders of v2 must be the class numbers 0 to 3; got n01440764"):
        layouts({"v2": str(tree)})


def test_validation_images_may_be_in_val(tree: Path, tmp_path: Path) -> None:
    root = linked(tmp_path / "imagenet", {"val": tree, "train": tree})
    assert layouts({"clean": str(root)})[0].parts[0].root == root / "val"
    (root / "val").unlink()
    validation(root / "val", range(4))
    assert layouts({"real": str(root)})[0].parts[0].root == root / "val"


def test_images_with_real_labels(tmp_path: Path, caplog) -> None:
    """Of the first six images, the third and the last have none; folders do not matter."""
    root = validation(tmp_path / "val", (0, 1, 2, 3, 0, 1))
    (root / FOUR[3] / "ILSVRC2012_val_00000004.JPEG").rename(root / FOUR[3] / "ILSVRC2012_val_00000004_n01491361.JPEG")
    layout = layouts({"real": str(root)})[0]
    assert not layout.parts[0].missing and layout.parts[0].unlabelled == 0
    samples, part = open_part(layout.parts[0])
    assert sorted(samples.labels or ()) == [0, 1, 3, 4] and part.unlabelled == 2 and not part.missing
    assert f"Left out of {root}: 2 images without a real label" in caplog.text
    samples, part = open_part(layout.parts[0], images=3)
    assert samples.labels == [0, 1, 3] and part.missing == ("all but the first 3 images",)
    assert not open_part(layout.parts[0], images=4)[1].missing  # of those with a label


def test_images_whose_names_tell_no_labels(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("dog.jpg", "ILSVRC2012_val_00000000.JPEG", "ILSVRC2012_val_00050001.JPEG", "ILSVRC2012_val_1.JPEG"):
        with pytest.raises(
            UserError, match=f"images of real must have their names, ILSVRC2012_val_.*got .*{name}. The"
        ):
            image_numbers(tmp_path, [name])
    with pytest.raises(UserError, match="must have their names, .*got .*n01440764/ILSVRC2012_val_00000000.JPEG"):
        layouts({"real": str(tree)})  # before anything is computed
    root = validation(tmp_path / "val", range(4))
    (root / FOUR[1] / "ILSVRC2012_val_00000001.png").write_bytes(b"")
    with pytest.raises(UserError, match="Each image of real must be there once; got .*01.JPEG and .*01.png in"):
        open_part(layouts({"real": str(root)})[0].parts[0])
    bare = validation(tmp_path / "bare", range(4))
    for number, name in enumerate(FOUR):
        (bare / name / f"ILSVRC2012_val_{number + 1:08d}.JPEG").rename(bare / name / "ILSVRC2012_val_00000003.JPEG")
    (tmp_path / "one").mkdir()
    part = layouts({"real": str(linked(tmp_path / "one" / "val", {FOUR[0]: bare / FOUR[0]}))}, allow_partial=True)
    with pytest.raises(UserError, match="At least one image of real must have a label; got none of 1 in"):
        open_part(part[0].parts[0])


def test_the_first_images_are_those_of_all_classes(tree: Path) -> None:
    samples, part = open_part(layouts({"sketch": str(tree)})[0].parts[0], images=4)
    assert samples.labels == [0, 1, 2, 3] and part.missing == ("all but the first 4 images",)
    whole, part = open_part(layouts({"sketch": str(tree)})[0].parts[0], images=8)
    assert len(whole) == 8 and not part.missing


def test_folders_that_are_something_else(tree: Path, tmp_path: Path) -> None:
    for sets, message in (
        ({"v2": str(tmp_path / "nowhere")}, "folder of v2 must exist"),
        ({"imagenet-a": str(tmp_path / "empty")}, "must hold the class folders of imagenet-a; got no folder"),
        ({"imagenet-a": str(tree)}, f"class folders of imagenet-a must be the 3 WordNet numbers.*got {FOUR[3]} in"),
        ({"sketch": str(tree.parent)}, "class folders of sketch must be.*Give the folder that holds n01440764"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message):
            layouts(sets, allow_partial=True)
    (tmp_path / "hollow" / FOUR[0]).mkdir(parents=True)
    hollow = linked(tmp_path / "h", {FOUR[0]: tmp_path / "hollow" / FOUR[0], **{n: tree / n for n in FOUR[1:]}})
    with pytest.raises(
        UserError, match=f"Every class folder in .* must hold at least one image; got none in '{FOUR[0]}'"
    ):
        open_part(layouts({"sketch": str(hollow)})[0].parts[0])


# --- corruptions -----------------


def test_both_layouts_of_corruptions(tree: Path, tmp_path: Path) -> None:
    trees = dict.fromkeys((1, 2, 3, 4, 5), tree)
    flat = corrupted(tmp_path / "flat", trees)
    expected = [f"imagenet-c {name} {severity}" for name in CORRUPTIONS for severity in trees]
    assert names(flat) == expected
    grouped = tmp_path / "grouped"
    corrupted(grouped / "noise", trees, CORRUPTIONS[:3])
    corrupted(grouped / "blur", trees, CORRUPTIONS[3:7])
    corrupted(grouped / "weather", trees, CORRUPTIONS[7:11])
    corrupted(grouped / "digital", trees, CORRUPTIONS[11:])
    assert names(grouped) == expected
    corrupted(grouped / "extra", trees, ["spatter"])
    assert len(names(grouped)) == 80
    assert names(grouped, corruptions=("fog", "spatter"), severities=(2,)) == [
        "imagenet-c fog 2",
        "imagenet-c spatter 2",
    ]
    corrupted(grouped / "digital", trees, ["spatter"])
    with pytest.raises(UserError, match="corruption of imagenet-c must be there once; got spatter in"):
        names(grouped)


def test_corruptions_and_severities_that_are_missing(tree: Path, tmp_path: Path) -> None:
    root = corrupted(tmp_path / "c", dict.fromkeys((1, 2, 3, 4, 5), tree), CORRUPTIONS[2:])
    (root / "fog" / "3").unlink()
    with pytest.raises(
        UserError, match="without the corruptions gaussian_noise, shot_noise; severity 3 of fog. --allow"
    ):
        names(root)
    assert len(names(root, allow_partial=True)) == 13 * 5 - 1
    assert names(root, corruptions=("fog",), severities=(1, 2)) == ["imagenet-c fog 1", "imagenet-c fog 2"]


def test_corruptions_that_are_none(tree: Path, tmp_path: Path) -> None:
    without = linked(tmp_path / "c", {"fog": tree})  # its class folders, and no severities
    with pytest.raises(UserError, match="must hold those of its severities, 1 to 5; got n01440764, .* in .*fog"):
        names(without, allow_partial=True)
    (tmp_path / "d" / "fog").mkdir(parents=True)
    with pytest.raises(UserError, match="at least one severity, 1 to 5; got none in .*fog"):
        names(tmp_path / "d", allow_partial=True)
    unknown = corrupted(tmp_path / "e", {1: tree}, ["frog"])
    with pytest.raises(UserError, match="must be its corruptions; got 'frog' in .*Did you mean"):
        names(unknown, allow_partial=True)
    (tmp_path / "f").mkdir()
    with pytest.raises(UserError, match="must hold the corruptions of imagenet-c"):
        names(tmp_path / "f")
