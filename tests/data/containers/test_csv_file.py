"""A csv of paths and labels: which columns are which, splits, and what is refused."""

from pathlib import Path

import pytest

from contained import png
from generated_videos import write_video
from vitdistill.data import open_source
from vitdistill.errors import UserError

BREED = ["dog", "cat"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    return tmp_path


def written(folder: Path, *lines: str, name: str = "labels.csv") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


@pytest.mark.parametrize(
    "lines",
    [
        [f"{n}.png,{BREED[n % 2]}" for n in range(8)],
        ["file,label", *(f"{n}.png,{BREED[n % 2]}" for n in range(8))],
        ["what;where", *(f"{BREED[n % 2]};{n}.png" for n in range(8))],
        ["name\tid\tbreed", *(f"Rex {n}\t{n}.png\t{BREED[n % 2]}" for n in range(8))],
        ['"file", "label"', "", *(f'"{n}.png", "{BREED[n % 2]}"' for n in range(8))],
    ],
)
def test_columns_are_found(lines: list[str], folder: Path) -> None:
    source = open_source(written(folder, *lines))
    assert (source.classes, len(source.train), len(source.val)) == (["cat", "dog"], 7, 1)
    for part in (source.train, source.val):
        for index in range(len(part)):
            image, label = part.load(index)
            number = image.getpixel((0, 0))[0] // 10
            assert source.classes[label] == BREED[number % 2] and part.path(index) == f"{folder}/{number}.png"


def test_columns_may_be_named(folder: Path) -> None:
    file = written(folder, "file,a,b", *(f"{n}.png,{n % 2},{n % 4}" for n in range(8)))
    with pytest.raises(UserError, match=r"which has no labels. Name the column that says the class: \?label="):
        open_source(file)
    assert open_source(f"{file}?label=b").classes == ["0", "1", "2", "3"]
    with pytest.raises(UserError, match="the column that .label= names; got 'bb' of file, a, b. Did you mean 'b'"):
        open_source(f"csv:{file}?label=bb")


def test_a_column_says_the_split(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = ["train"] * 4 + ["valid", "valid", "test", "test"]
    lines = [f"{n}.png,{splits[n]},{BREED[n % 2]}" for n in range(8)]
    for head in (["image,split,label"], []):
        source = open_source(written(folder, *head, *lines))
        assert (len(source.train), len(source.val), source.classes) == (4, 2, ["cat", "dog"])
    assert "Neither trained nor validated on: 2 lines" in caplog.text
    file = written(folder, "image,split,label", *lines)
    assert open_source(f"{file}?val=test").val.path(0).endswith("6.png")


def test_a_list_to_train_on_has_one_to_validate_on_beside_it(folder: Path) -> None:
    train = written(folder, *(f"{n}.png,{n % 2}" for n in range(6)), name="my_train.csv")
    val = written(folder, *(f"{n}.png,{n % 2}" for n in (6, 7)), name="my_val.csv")
    for file in (train, val):
        source = open_source(file)
        assert (len(source.train), len(source.val), source.classes) == (6, 2, ["0", "1"])


def test_without_labels_paths_are_enough(folder: Path) -> None:
    file = written(folder, *(f"{n}.png" for n in range(8)))
    assert open_source(file, labels=False).classes == []
    with pytest.raises(UserError, match="Labelled data is needed"):
        open_source(file)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([f"{n}.png,{n % 2}" for n in range(12)], "4 of 12 missing in .*, such as 8.png, 9.png, 10.png. Paths start"),
        (["0.png,a", "1.png,b,c"], "must have the same columns; got 3 in line 2, 2 in the first"),
        ([""], "one sample a line; got .*, which is empty"),
        (["file,label"], "which has a header only"),
        (["0.png,a", "1.png,a"], "at least two classes; got only 'a'"),
        (["0.png,a", "1.png,", "2.png,b"], "must have a class; got 1 of 3 without, the first number 1"),
    ],
)
def test_what_is_wrong_is_said(lines: list[str], message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_source(written(folder, *lines))


def test_classes_of_validation_must_be_known(folder: Path) -> None:
    written(folder, *(f"{n}.png,{BREED[n % 2]}" for n in range(6)), name="train.csv")
    written(folder, "6.png,bird", name="val.csv")
    with pytest.raises(UserError, match="among the 2 of the training samples; got 'bird'. Those are 'cat', 'dog'"):
        open_source(folder / "train.csv")


def test_videos_have_labels_in_a_csv_as_well(tmp_path: Path) -> None:
    pytest.importorskip("av")
    for name in "abcd":
        write_video(tmp_path / f"{name}.mp4", 4)
    names = written(tmp_path, "video,label", *(f"{name}.mp4,{BREED[n % 2]}" for n, name in enumerate("abcd")))
    source = open_source(names)
    assert (source.train.word, source.classes, len(source.train)) == ("video", ["cat", "dog"], 3)
    listed = written(tmp_path, *(f"{name}.mp4 {n % 2}" for n, name in enumerate("abcd")), name="train.csv")
    written(tmp_path, "a.mp4 0", name="val.csv")
    source = open_source(listed)
    assert (source.train.word, len(source.train), len(source.val)) == ("video", 4, 1), "a list as Kinetics has them"
