"""Hugging Face data sets and parquet files: which columns, which splits, class names; offline."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from contained import CLASSES, hub_split, png
from vitdistill.data import open_source
from vitdistill.errors import UserError

datasets = pytest.importorskip("datasets")
import pyarrow  # noqa: E402
from pyarrow.parquet import write_table  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def table(folder: Path, name: str = "photos.parquet", **columns: Any) -> Path:
    write_table(pyarrow.table({"image": [png(number) for number in range(6)], **columns}), folder / name)
    return folder / name


def test_objects_of_the_library_are_data_in_python() -> None:
    train, val = hub_split("train"), hub_split("val")
    for data in ((train, val), datasets.DatasetDict(train=train, validation=val), {"train": train, "test": val}):
        source = open_source(data)
        assert (source.classes, len(source.train), len(source.val)) == (CLASSES, 6, 4)
    shuffled = train.select([3, 0, 1])
    assert open_source((shuffled, val)).train.labels == [1, 0, 1]
    assert open_source((shuffled, val)).train.load(0)[0].getpixel((0, 0)) == (30, 0, 0)


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["dog", "cat"] * 3, ["cat", "dog"], [1, 0] * 3),
        ([2, 10, 1, 2, 10, 1], ["1", "2", "10"], [1, 2, 0] * 2),
        ([True, False] * 3, ["False", "True"], [1, 0] * 3),
        ([0.0, 1.0] * 3, ["0", "1"], [0, 1] * 3),
    ],
)
def test_labels_without_names(labels: list[Any], classes: list[str], numbers: list[int], tmp_path: Path) -> None:
    path = table(tmp_path, "train.parquet", label=labels)
    table(tmp_path, "val.parquet", label=labels)
    source = open_source(f"parquet:{tmp_path}?label=label" if isinstance(labels[0], float) else str(path.parent))
    assert source.classes == classes and source.train.labels == numbers == source.val.labels


def test_structs_of_bytes_and_paths_are_images(tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(png(7))
    values = [{"bytes": png(1), "path": "a.png"}, {"bytes": None, "path": str(tmp_path / "outside.png")}]
    columns = {"img": values * 2, "class": [0, 1, 0, 1]}
    write_table(pyarrow.table(columns), tmp_path / "photos.parquet")
    source = open_source(tmp_path / "photos.parquet", labels=True)
    reds = {
        part.load(index)[0].getpixel((0, 0))[0] for part in (source.train, source.val) for index in range(len(part))
    }
    assert source.name == tmp_path.name and reds == {10, 70}


def test_a_folder_of_images_is_read_as_the_library_does(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number, name in enumerate(CLASSES):
            (tmp_path / "repository" / split / name).mkdir(parents=True)
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / "repository" / split / name / "1.png")
    source = open_source(f"hf:{tmp_path}/repository")
    assert (source.classes, source.train.labels, len(source.val)) == (CLASSES, [0, 1], 2)
    assert source.val.load(1)[0].getpixel((0, 0)) == (1, 1, 1)


def test_what_columns_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    write_table(pyarrow.table({"a": [1, 2]}), tmp_path / "none.parquet")
    several = table(tmp_path, "several.parquet", mask=[png(0)] * 6, kind=[0, 1] * 3)
    refused = {
        tmp_path / "junk.parquet": "junk.parquet must be readable; got Parquet file size is 4 bytes",
        tmp_path / "none.parquet": "must have a column of images; got a. Name it: .image=COLUMN",
        table(tmp_path, "bare.parquet"): "has no labels. Name the column that says the class: .label=; there are image",
        table(tmp_path, "null.parquet", label=["a", None, "b"] * 2): "must have a class; got 2 of 6 without, the first",
        table(tmp_path, "minus.parquet", label=[-1] * 6): "must have a class; got 6 of 6 without",
        table(tmp_path, "real.parquet", label=[0.5] * 6): "one class, a whole number or a name; got values such",
        table(tmp_path, "lists.parquet", label=[[1], [2]] * 3): "which has no labels",
        f"parquet:{several}?label=kinds": "the column that .label= names; got 'kinds'.* Did you mean 'kind'",
        f"parquet:{several}?image=picture": "the column that .image= names",
    }
    for data, message in refused.items():
        with pytest.raises(UserError, match=message):
            open_source(
                data if isinstance(data, str) else f"parquet:{data}?label=label" if "real" in str(data) else data
            )
    assert open_source(f"parquet:{several}?image=mask&label=kind").train.load(0)[0].getpixel((0, 0)) == (0, 0, 0)
    assert open_source(tmp_path / "minus.parquet", labels=False).classes == []


def test_two_columns_of_classes_need_a_name() -> None:
    coarse = hub_split("train").add_column("coarse", [0, 0, 0, 1, 1, 1]).rename_column("label", "fine")
    coarse = coarse.cast_column("coarse", datasets.ClassLabel(names=["x", "y"]))
    with pytest.raises(
        UserError, match=r"One column of .* must say the class; got fine, coarse. Name it: \?label=fine"
    ):
        open_source(coarse)
    assert open_source(coarse, labels=False).classes == []


def test_what_is_on_no_disk_is_one_line() -> None:
    with pytest.raises(
        UserError, match="must be loadable by the datasets library; got .*Load it once where there is a"
    ):
        open_source("hf:nobody/nothing")


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vitdistill.data.containers.checks.find_spec", lambda name: None)
    for data in ("hf:owner/name", str(table(tmp_path))):
        with pytest.raises(UserError, match=r"needs the datasets library. Run: pip install 'vitdistill\[hf\]'"):
            open_source(data)
