"""A table of labels in place of class folders."""

import logging
from pathlib import Path

import pytest

from vitdistill.data import open_source
from vitdistill.data.images.folder import IMAGES
from vitdistill.data.labels_csv import by_table, find_table
from vitdistill.data.tables import Row, Table
from vitdistill.errors import UserError


@pytest.fixture
def flat(tmp_path):
    """`flat("a.jpg", ..., table="...", name="labels.csv")` makes empty files and a table; nothing here reads images."""

    def make(*files: str, table: str, name: str = "labels.csv") -> Path:
        root = tmp_path / "flat"
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
        (root / name).write_text(table)
        return root

    return make


def named(samples, root: Path) -> dict[str, int]:
    return {str(Path(samples.path(index)).relative_to(root)): samples.labels[index] for index in range(len(samples))}


FOUR = ("1.jpg", "2.jpg", "3.jpg", "4.jpg")


@pytest.mark.parametrize(
    "table",
    [
        "1.jpg,cat,train\n2.jpg,dog,train\n3.jpg,cat,val\n4.jpg,dog,val\n",
        "path,label,split\n1.jpg,cat,train\n2.jpg,dog,TRAIN\n3.jpg,cat,valid\n4.jpg,dog,Valid\n",
        "Species;Set;File\ncat;training;1.jpg\ndog;train;2.jpg\ncat;validation;3.jpg\ndog;val;4.jpg\n",
        "\ufeffid\tbreed\tsubset\n1\tcat\ttrain\n2\tdog\ttrain\n\n3\tcat\tval\n4\tdog\tval\n",
        "filename,label,is_valid\n1.jpg,cat,False\n2.jpg,dog,False\n3.jpg,cat,True\n4.jpg,dog,True\n",
        'foto,sorte,split\n"1.jpg","cat",train\n2.jpg,dog,train\n3.jpg,cat,val\n4.jpg,dog,val\n',
    ],
)
def test_columns_are_found_with_and_without_a_header(flat, table):
    root = flat(*FOUR, table=table)
    source = open_source(root)
    assert source.classes == ["cat", "dog"]
    assert named(source.train, root) == {"1.jpg": 0, "2.jpg": 1} and named(source.val, root) == {"3.jpg": 0, "4.jpg": 1}


def test_without_a_split_a_tenth_of_each_class_is_held_out_and_always_the_same(flat):
    files = [f"{number:02d}.png" for number in range(41)]
    rows = [f"{file},{'rare' if number == 40 else 'ab'[number % 2]}\n" for number, file in enumerate(files)]
    root = flat(*files, table="".join(rows))
    source, again = open_source(root), open_source(root)
    assert (len(source.train), len(source.val)) == (37, 4)
    assert sorted(source.val.labels) == [0, 0, 1, 1] and source.train.labels.count(2) == 1
    assert named(source.val, root) == named(again.val, root)


def test_names_without_suffix_are_searched_below_the_folder(flat):
    table = "id,breed\na1,x\nb2,y\nc3,y\n"
    root = flat("train/a1.JPG", "train/b2.jpeg", "train/c3.webp", "test/a1.JPG", table=table, name="train.csv")
    source = open_source(root)
    assert named(source.train, root) | named(source.val, root) == {
        "train/a1.JPG": 0,
        "train/b2.jpeg": 1,
        "train/c3.webp": 1,
    }


def test_paths_of_windows_are_found(flat):
    table = "path,label,split\ni\\1.jpg,cat,train\ni\\2.jpg,dog,train\ni\\3.jpg,cat,val\ni\\4.jpg,dog,val\n"
    root = flat(*(f"i/{name}" for name in FOUR), table=table)
    source = open_source(root / "labels.csv")
    assert named(source.train, root) == {"i/1.jpg": 0, "i/2.jpg": 1} and len(source.val) == 2


def test_a_second_table_is_for_validation(flat):
    root = flat(*FOUR, table="1.jpg,10\n2.jpg,9\n", name="train.csv")
    (root / "val.csv").write_text("3.jpg,9\n4.jpg,9\n")
    source = by_table(root / "train.csv", IMAGES)
    assert source.classes == ["9", "10"], "whole numbers are ordered by value"
    assert named(source.train, root) == {"1.jpg": 1, "2.jpg": 0} and source.val.labels == [0, 0]


def test_what_the_table_does_not_name_is_counted(flat, caplog):
    root = flat(*FOUR, "5.jpg", "6.gif", "notes.txt", table="1.jpg,a,train\n2.jpg,b,train\n3.jpg,a,val\n4.jpg,b,val\n")
    with caplog.at_level(logging.WARNING):
        open_source(root)
    assert f"Left out of {root}: 1 .txt (not read as images); 2 images not in labels.csv" in caplog.text


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("1.jpg,cat\n9.jpg,dog\n8.jpg,dog\n", "must exist; got 2 of 3 missing: '9.jpg', '8.jpg'"),
        ("1.jpg,cat\n1.jpg,dog\n", "one label .*; got 1.jpg: cat and dog"),
        ("1.jpg,cat,train\n1.jpg,cat,val\n2.jpg,dog,train\n", "in one split .*got 1.jpg in train and val"),
        ("1.jpg,cat\n2.jpg,cat\n", "at least two classes; got only 'cat'"),
        ("path,label\n1.jpg,\n", r"name a file and its class; got line 2"),
        ("path,label\n1.jpg\n", r"name a file and its class; got line 2"),
        ("path,label\n", "at least one row; got only a header"),
        ("", "at least one row; got none"),
        (
            "path,label,split\n1.jpg,cat,never\n",
            "column split of .* training samples; got 'never'. Name them: .train=",
        ),
        ("file,weight,height\n1.jpg,3,4\n", "a column of paths and one of class names; got the columns 'file', 'weigh"),
        ("1.jpg,a,train\n2.jpg,b,train\n3.jpg,c,val\n", "must be among those to train on .*; got 'c'"),
    ],
)
def test_tables_that_cannot_be_used_say_what_is_wrong(flat, table, message):
    root = flat(*FOUR, table=table)
    with pytest.raises(UserError, match=message) as error:
        open_source(root)
    assert "\n" not in str(error.value)


def test_which_table(tmp_path):
    assert find_table(tmp_path) is None
    (tmp_path / "sizes.csv").touch()
    assert find_table(tmp_path) == tmp_path / "sizes.csv"
    (tmp_path / "Labels.csv").touch()
    assert find_table(tmp_path) == tmp_path / "Labels.csv"


def test_class_folders_win_over_tables(photos):
    (photos / "labels.csv").write_text("nothing")
    assert open_source(photos).classes == ["cat", "dog"]


def test_tables_of_spreadsheets_in_utf_16(flat):
    root = flat(*FOUR, table="")
    (root / "labels.csv").write_text("Datei\tArt\n1.jpg\tTäubling\n2.jpg\tb\n3.jpg\tTäubling\n4.jpg\tb\n", "utf-16")
    assert open_source(root).classes == ["Täubling", "b"]


def test_rows(flat):
    root = flat("a.jpg", table="path,label\na.jpg,x y\n")
    assert Table(root / "labels.csv", IMAGES.is_sample).rows() == [Row("a.jpg", "x y", None)]
