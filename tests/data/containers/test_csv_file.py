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
    assert (source.classes, len(source.train), len(source.val)) == (["cat", "dog"], 6, 2)
    for part in (source.train, source.val):
        for index in range(len(part)):
            image, label = part.load(index)
            number = image.getpixel((0, 0))[0] // 10
            assert source.classes[label] == BREED[number % 2] and part.path(index) == f"{folder}/{number}.png"


def test_columns_may_be_named(folder: Path) -> None:
    file = written(folder, "file,a,b", *(f"{n}.png,{n % 2},{n % 4}" for n in range(8)))
    with pytest.raises(UserError, match=r"one of class names; got the columns 'file', 'a', 'b'. .*\?path=...&label="):
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
    assert "Neither trained nor validated on: 2 rows" in caplog.text
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
    with pytest.raises(UserError, match="one of class names; got the row"):
        open_source(file)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [f"{n}.png,{n % 2}" for n in range(12)],
            "4 of 12 missing: '8.png', '9.png', '10.png' and 1 more. Paths start",
        ),
        (["0.png,a", "1.png,b,c"], "must have the same columns; got 3 in line 2, 2 in the first"),
        ([""], "at least one row; got none"),
        (["file,label"], "got only a header"),
        (["0.png,a", "1.png,a"], "at least two classes; got only 'a'"),
        (["0.png,a", "1.png,", "2.png,b"], "must name a file and its class; got line 2"),
    ],
)
def test_what_is_wrong_is_said(lines: list[str], message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_source(written(folder, *lines))


def test_classes_of_validation_must_be_known(folder: Path) -> None:
    written(folder, *(f"{n}.png,{BREED[n % 2]}" for n in range(6)), name="train.csv")
    written(folder, "6.png,bird", name="val.csv")
    with pytest.raises(UserError, match="among those to train on in .*; got 'bird'. Those are 'cat', 'dog'"):
        open_source(folder / "train.csv")


def test_videos_have_labels_in_a_csv_as_well(tmp_path: Path) -> None:
    pytest.importorskip("av")
    for name in "abcd":
        write_video(tmp_path / f"{name}.mp4", 4)
    names = written(tmp_path, "video,label", *(f"{name}.mp4,{BREED[n % 2]}" for n, name in enumerate("abcd")))
    source = open_source(names)
    assert (source.train.word, source.classes, len(source.train)) == ("video", ["cat", "dog"], 2)
    listed = written(tmp_path, *(f"{name}.mp4 {n % 2}" for n, name in enumerate("abcd")), name="train.csv")
    written(tmp_path, "a.mp4 0", name="val.csv")
    source = open_source(listed)
    assert (source.train.word, len(source.train), len(source.val)) == ("video", 4, 1), "a list as Kinetics has them"


@pytest.mark.parametrize("beside", [False, True], ids=["named", "in its folder"])
@pytest.mark.parametrize(
    ("table", "classes", "counts"),
    [
        ("path,label,is_valid\n" + "".join(f"{n}.png,{n % 2},{n > 5}\n" for n in range(8)), ["0", "1"], (6, 2)),
        ("".join(f"{n}|{10 * (n % 2) + 2}\n" for n in range(8)), ["2", "12"], (6, 2)),  # no suffix, no header
        ("Datei;Art;split\n" + "".join(f"{n}.png;{'ab'[n % 2]};{'tv'[n > 5]}\n" for n in range(8)), None, None),
        ("file,label\n" + "".join(f"{n}.png,{'ab'[n % 2]},\n" for n in range(8)), ["a", "b"], (6, 2)),
        ("file,label,set\n" + "".join(f"{n}.png,7,train\n{n}.png,07,train\n" for n in range(8)), None, None),
    ],
)
def test_a_table_means_the_same_named_and_in_its_folder(
    table: str, classes: list[str] | None, counts: tuple[int, int] | None, beside: bool, folder: Path
) -> None:
    (folder / "labels.csv").write_text(table, "utf-16" if "|" in table else "utf-8-sig")
    data = folder if beside else folder / "labels.csv"
    if classes is None:
        with pytest.raises(UserError, match="training samples; got 't', 'v'|at least two classes; got only '7'"):
            open_source(data)
        return
    source = open_source(data)
    assert (source.classes, (len(source.train), len(source.val))) == (classes, counts)


@pytest.mark.parametrize("name", ["test.csv", "valid.csv"])
def test_a_test_without_labels_is_no_validation(name: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = written(folder, "id,breed", *(f"{n},{BREED[n % 2]}" for n in range(6)), name="train.csv")
    written(folder, "id", "6", "7", name=name)
    if name == "valid.csv":
        with pytest.raises(UserError, match="one of class names"):
            open_source(train)
        return
    assert (len(open_source(train).train), len(open_source(train).val)) == (4, 2)
    assert "Not validated on: " in caplog.text


def test_a_share_is_held_out_of_each_class(folder: Path) -> None:
    file = written(folder, *(f"{n}.png,{'ab'[n > 5]}" for n in range(8)))
    source = open_source(f"csv:{file}?val=0.5")
    assert sorted(source.val.labels or ()) == [0, 0, 0, 1] and len(source.train) == 4


def test_what_a_table_may_not_say_is_refused_by_name_too(folder: Path) -> None:
    for lines, message in (
        (["0.png,a", "0.png,b", "1.png,a"], "must have one label"),
        (["0.png,a,train", "1.png,b,train", "0.png,a,val"], "must be in one split"),
        (["0.png,-1", "1.png,1", "2.png,2"], "must have a class; got 1 of 3 with a number below 0"),
        (["image,label,is_valid", "0.png,a,perhaps"], "must say true or false; got 'perhaps' in line 2"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(written(folder, *lines))
        if "is_valid" not in lines[0]:
            assert not open_source(folder / "labels.csv", labels=False).classes


def test_videos_with_a_table_beside_them(tmp_path: Path) -> None:
    pytest.importorskip("av")
    for name in "abcd":
        write_video(tmp_path / f"{name}.mp4", 4)
    lines = [f"{name}.mp4,{BREED[n % 2]}" for n, name in enumerate("abcd")]
    for name in ("labels.csv", "train.csv"):
        file = written(tmp_path, "clip,action", *lines, name=name)
        source = open_source(tmp_path)
        assert (source.train.word, source.classes, len(source.train)) == ("video", ["cat", "dog"], 2)
        assert len(open_source(file, labels=False).train) == 2
        file.unlink()
