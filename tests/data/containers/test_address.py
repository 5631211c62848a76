"""What `--data` says as text: schemes, options, patterns; refused in one line and without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdistill.data.containers.address import Address, expand_braces, parse, paths_of
from vitdistill.data.containers.splits import choose_splits, split_files, split_word
from vitdistill.data.open import absolute_data, address_of, check_there
from vitdistill.errors import UserError


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("a", ["a"]),
        ("a{0..2}", ["a0", "a1", "a2"]),
        ("a{08..11}b", ["a08b", "a09b", "a10b", "a11b"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("x-{train-{0..1},val}.tar", ["x-train-0.tar", "x-train-1.tar", "x-val.tar"]),
        ("open{1..", ["open{1.."]),
    ],
)
def test_braces_are_those_of_a_shell(pattern: str, texts: list[str]) -> None:
    assert expand_braces(pattern) == texts


@given(st.integers(0, 999), st.integers(0, 999))
def test_ranges_keep_their_zeros(first: int, last: int) -> None:
    texts = expand_braces(f"{{{first:03d}..{last:03d}}}")
    assert texts[0] == f"{first:03d}" and texts[-1] == f"{last:03d}" and len(texts) == abs(last - first) + 1
    assert {len(text) for text in texts} == {3}


def test_commas_in_braces_do_not_separate_patterns(tmp_path: Path) -> None:
    assert paths_of("a-{1,2}.tar, b.tar") == ["a-1.tar", "a-2.tar", "b.tar"]
    for name in ("b.tar", "a.tar"):
        (tmp_path / name).touch()
    assert paths_of(f"{tmp_path}/*.tar") == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]


def test_an_address_has_a_scheme_a_name_and_options() -> None:
    assert parse("torchvision:CIFAR10?root=/data&download=true") == Address(
        "torchvision", "CIFAR10", {"root": "/data", "download": "true"}
    )
    assert parse("/data/imagenet") is None and parse("C:\\data") is None and parse("digits") is None
    address = parse("hf:owner/name?val=0.1")
    assert address is not None and (address.share, address.val, str(address)) == (0.1, None, "hf:owner/name?val=0.1")


@pytest.mark.parametrize(
    ("name", "word"),
    [("train-00.tar", "train"), ("imagenet1k-validation-07", "validation"), ("Val_1", "val"), ("training", "training")]
    + [("retrained.tar", None), ("contest.tar", None), ("0001.tar", None), ("holiday.test.tar", "test")],
)
def test_words_of_splits_are_whole_words(name: str, word: str | None) -> None:
    assert split_word(name) == word


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["train", "validation", "test"], ("train", "validation")),
        (["test", "train"], ("train", "test")),
        (["train"], ("train", None)),
        (["all"], ("all", None)),
    ],
)
def test_usual_splits_are_chosen(names: list[str], chosen: tuple[str, str | None]) -> None:
    assert choose_splits(names, None, None, "it") == chosen


def test_splits_that_say_nothing_must_be_named() -> None:
    with pytest.raises(UserError, match=r"One split of it must be for training; got a, b. Name it: \?train=a"):
        choose_splits(["a", "b"], None, None, "it")
    assert choose_splits(["a", "b"], "b", "a", "it") == ("b", "a")


def test_files_belong_to_the_split_in_their_name_or_their_folder_s(tmp_path: Path) -> None:
    for name in ("train/0.tar", "test/0.tar", "val/0.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = split_files(Address("shards", str(tmp_path)), ".tar")
    assert [[Path(file).parent.name for file in part] for part in found] == [["train"], ["val"], ["test"]]
    named = split_files(Address("shards", f"{tmp_path}/train", {"val": f"{tmp_path}/test/*.tar"}), ".tar")
    assert [Path(file).parent.name for file in named.val] == ["test"]


def test_one_file_has_its_partner_beside_it(tmp_path: Path) -> None:
    for name in ("train-0.tar", "validation-0.tar", "photos.tar"):
        (tmp_path / name).touch()
    assert split_files(Address("shards", f"{tmp_path}/train-0.tar"), ".tar").val == [f"{tmp_path}/validation-0.tar"]
    assert split_files(Address("shards", f"{tmp_path}/train-0.tar", {"val": "0.5"}), ".tar").val == []
    assert split_files(Address("shards", f"{tmp_path}/photos.tar"), ".tar").val == []


REFUSED = {
    "torchvison:CIFAR10": "--data must have a scheme that there is; got 'torchvison:'. Did you mean 'torchvision'?",
    "s3://bucket/data": "got 's3:'. There are torchvision:CIFAR10, hf:owner/name",
    "torchvision:cifar10": "got 'cifar10'. Did you mean 'CIFAR10'?",
    "torchvision:FashionMINST": "got 'FashionMINST'. Did you mean 'FashionMNIST'",
    "torchvision:Kinetics": "'Kinetics', which is for another task. Videos are read from their folder",
    "hf:./nowhere": "got './nowhere', which is no folder",
    "shards:/no/x-{0..3}.tar": "All .tar files must exist; got 4 of 4 missing, the first /no/x-0.tar",
    "shards:x.tar?lable=cls": "shards: has no option 'lable'; got 'shards:x.tar?lable=cls'. Did you mean 'label'",
    "parquet:/no.parquet": "got /no.parquet, which is missing",
    "csv:/no.csv": "The csv file must exist; got '/no.csv'",
    "hf:a/b?val=1.5": "the name of a split, or a share above 0 and below 1; got 1.5",
    "": "--data must be an existing folder or a bundled source",
    "hf:a/b?val": "must be like ?name=value",
    "moving_digits:moton": "Did you mean 'moving_digits:motion'",
    "<ImageFolder>": "The run was given its data as a Python object; got <ImageFolder>. Give --data",
}


@pytest.mark.parametrize("data", REFUSED)
def test_wrong_texts_are_refused_in_one_line(data: str) -> None:
    with pytest.raises(UserError) as caught:
        check_there(data)
    assert REFUSED[data] in str(caught.value) and "\n" not in str(caught.value)


def test_texts_are_checked_without_torch(tmp_path: Path) -> None:
    script = f"""
import sys
from vitdistill.data.open import check_there
from vitdistill.errors import UserError
for data in {[*REFUSED]!r}:
    try:
        check_there(data)
    except UserError:
        pass
check_there("torchvision:CIFAR10?root=/x")
assert not [name for name in ("torch", "datasets", "pyarrow", "torchvision") if name in sys.modules]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_files_and_folders_that_are_containers_need_no_scheme(tmp_path: Path) -> None:
    for name in (
        "a/labels.csv",
        "b/x.tar",
        "c/data/train-0.parquet",
        "d/state.json",
        "e/train/cat/1.png",
        "f/x.parquet",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "e/train.tar").touch()  # what the folder was unpacked from
    schemes = [
        address_of(str(tmp_path / name)) for name in ("a/labels.csv", "b", "b/x.tar", "c", "d", "e", "f/x.parquet")
    ]
    assert [None if one is None else one.scheme for one in schemes] == [
        *("csv", "shards", "shards", "parquet", "hf", None, "parquet")
    ]
    found = address_of(f"{tmp_path}/a/labels.csv?label=breed")
    assert found is not None and found.options == {"label": "breed"}


def test_a_record_of_a_container_holds_in_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.csv").touch()
    here = os.getcwd()
    for data, recorded in {
        "shards:a-{0..1}.tar,b/*.tar?val=c.tar": f"shards:{here}/a-{{0..1}}.tar,{here}/b/*.tar?val={here}/c.tar",
        "shards:a.tar?val=0.1": f"shards:{here}/a.tar?val=0.1",
        "torchvision:CIFAR10?root=data": f"torchvision:CIFAR10?root={here}/data",
        "labels.csv?label=breed": f"csv:{here}/labels.csv?label=breed",
        "hf:owner/name?val=test": "hf:owner/name?val=test",
        f"hf:{here}": f"hf:{here}",
        "digits": "digits",
        "labels.csv": "labels.csv",
    }.items():
        assert absolute_data(data) == recorded and absolute_data(recorded) == recorded
