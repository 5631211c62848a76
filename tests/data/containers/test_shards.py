"""Tar shards: what a sample is, classes, the index and its cache, and what is refused."""

import gzip
import json
from pathlib import Path

import pytest

from contained import png, shards, write_tar
from vitdistill.data import open_source
from vitdistill.data.containers import shards as module
from vitdistill.data.containers import tar_index
from vitdistill.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


def members(count: int, kind: str = "cls", **fields: object) -> list[tuple[str, bytes]]:
    found = []
    for number in range(count):
        label = str(number % 2) if kind == "cls" else json.dumps({"label": number % 3, "breed": "ab"[number % 2]})
        found += [(f"{number:03d}.png", png(number)), (f"{number:03d}.{kind}", label.encode())]
    return found


def test_samples_are_named_after_their_shard(tmp_path: Path) -> None:
    source = shards(tmp_path)
    assert source.name == "animals-train"
    assert source.train.path(4) == f"{tmp_path}/animals-train-1.tar:0000.png".replace("0000", "0004")
    assert source.train.load(4)[0].getpixel((0, 0)) == (40, 0, 0)


def test_without_a_second_split_a_share_is_held_out(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "photos.tar", members(20))
    source = open_source(tar)
    assert (len(source.train), len(source.val), source.classes) == (19, 1, ["0", "1"])
    assert len(open_source(f"{tar}?val=0.25").val) == 5
    names = [part.path(index) for part in (source.train, source.val) for index in range(len(part))]
    assert len(set(names)) == 20
    assert open_source(tar).val.path(0) == source.val.path(0), "the same at every opening"


def test_classes_of_json_members(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", members(9, "json"))
    assert open_source(tar).classes == ["0", "1", "2"]
    assert open_source(f"shards:{tar}?label=json:breed").classes == ["a", "b"]
    with pytest.raises(UserError, match=r"Labelled data is needed; got .*a.tar, which has no labels. A class is"):
        open_source(f"shards:{tar}?label=json:colour")
    assert open_source(f"shards:{tar}?label=json:colour", labels=False).classes == []


def test_classes_of_folders_are_taken_when_asked_for(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [(f"{name}/{number}.png", png(number)) for name in "ab" for number in range(3)])
    with pytest.raises(UserError, match=r"no labels\. A class is .*\?label=folder"):
        open_source(tar)
    assert open_source(f"{tar}?label=folder").classes == ["a", "b"]


def test_class_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    contents = [(f"{number}.png", png(number)) for number in range(12)]
    contents += [(f"{number}.cls", str(number).encode()) for number in range(12)]
    source = open_source(write_tar(tmp_path / "a.tar", contents), labels=True)
    assert source.classes == [str(number) for number in range(12)]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (
            [("a.l.png", png(1)), ("a.r.png", png(2)), ("a.cls", b"0")],
            r"one image; got l.png, r.png of a in .*\?image=l.png",
        ),
        (
            [*members(3), ("x.png", png(1))],
            "Every sample in .* must say its class; got 1 of 4 that do not, the first x",
        ),
        ([("a.png", png(1)), ("a.png", png(1))], "each member once; got a.png twice"),
        ([("a.txt", b"nothing")], "must hold at least one sample"),
    ],
)
def test_what_shards_cannot_be_is_said(contents: list[tuple[str, bytes]], message: str, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", contents)
    with pytest.raises(UserError, match=message):
        open_source(tar)


def test_one_of_several_images_may_be_named(tmp_path: Path) -> None:
    contents = [(f"{n}.{side}.png", png(n + 5 * (side == "r"))) for n in range(4) for side in "lr"]
    contents += [(f"{n}.cls", str(n % 2).encode()) for n in range(4)]
    source = open_source(f"shards:{write_tar(tmp_path / 'a.tar', contents)}?image=r.png&val=0.25")
    assert all(part.path(0).endswith(".r.png") for part in (source.train, source.val))


def test_damaged_and_compressed_shards_are_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", members(6)).read_bytes()
    damaged = {
        "gzip": (gzip.compress(whole), r"must not be compressed.*\(gzip\)"),
        "short": (whole[:3000], "whole tar file; got .*unexpected end of data"),
        "header": (whole[:1024] + b"x" * 512 + whole[1536:], "no tar header at byte 1024, where more follows"),
        "two": (whole + whole, "no tar header at byte"),
        "text": (b"this is no tar file" * 100, "whole tar file"),
    }
    for name, (content, message) in damaged.items():
        file = tmp_path / f"{name}.tar"
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            open_source(file)


def test_the_index_is_kept_and_made_anew_when_the_shard_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = write_tar(tmp_path / "a.tar", members(6))
    first = open_source(tar).train
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(module, "index_of", None)  # not called
    again = open_source(tar).train
    assert (again.labels, again.digest()) == (first.labels, first.digest())
    monkeypatch.undo()
    monkeypatch.setenv("VITDISTILL_CACHE", str(cache.parent))
    write_tar(tar, members(8))
    assert len(open_source(tar).train) == 7
    for file in cache.iterdir():
        file.write_bytes(b"damaged")
    assert len(open_source(tar).train) == 7


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITDISTILL_CACHE", str(tmp_path / "file"))
    assert len(open_source(write_tar(tmp_path / "a.tar", members(6))).train) == 5


def test_few_shards_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_FILES", 2)
    tars = [write_tar(tmp_path / f"{number}.tar", members(2)) for number in range(4)]
    samples = open_source("shards:" + ",".join(map(str, tars))).train
    for _ in range(2):
        assert [samples.load(index)[1] for index in range(len(samples))] == samples.labels
    assert len(samples._open) == 2


def test_a_shard_that_became_shorter_is_unreadable_and_not_wrong(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", members(6))
    samples = open_source(tar).train
    tar.write_bytes(tar.read_bytes()[:600])
    with pytest.raises(OSError, match="the shard ends .* bytes early"):
        samples.load(len(samples) - 1)


def test_members_without_an_image_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_source(write_tar(tmp_path / "a.tar", [*members(4), ("readme.md", b""), ("LICENSE", b"")]))
    assert "2 members belong to no image and are left out" in caplog.text
    assert tar_index.cache_folder("x").name == "shards"
