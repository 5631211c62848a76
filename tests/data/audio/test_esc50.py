"""ESC-50's folder: its folds, its classes, and what may be wrong with its table."""

from pathlib import Path

import pytest

from sounds import esc50
from vitdistill.cli import main
from vitdistill.data import open_source
from vitdistill.data.open import absolute_data
from vitdistill.errors import UserError


def test_one_fold_is_validated_on_and_the_others_are_trained_on(tmp_path: Path) -> None:
    root = esc50(tmp_path / "ESC", folds=3)
    for address in (f"{root}?fold=2", f"esc50:{root}?fold=2"):
        source = open_source(address)
        assert source.classes == ["high", "low"] and len(source.train) == 8 and len(source.val) == 4
        assert all(Path(source.val.path(index)).name.startswith("2-") for index in range(4))
        assert not any(Path(source.train.path(index)).name.startswith("2-") for index in range(8))
        assert [int(Path(source.val.path(i)).stem[-1]) for i in range(4)] == source.val.labels
    digests = {open_source(f"{root}?fold={fold}").train.digest() for fold in (1, 2, 3)}
    assert len(digests) == 3


def test_a_record_names_the_folder_wherever_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    esc50(tmp_path / "ESC")
    monkeypatch.chdir(tmp_path)
    assert absolute_data("ESC?fold=1") == f"esc50:{tmp_path}/ESC?fold=1"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("{}", "ESC-50 needs the fold to validate on; got '{}'. Write '{}?fold=1', or train on each: vitdistill chain"),
        ("{}?fold=9", "The fold must be one of 1, 2; got '9'"),
        ("{}?fold=one", "The fold must be one of 1, 2; got 'one'"),
        ("{}?hold=1", "esc50: has no option 'hold'"),
        ("esc50:{}/meta?fold=1", "esc50: takes a folder with meta/esc50.csv"),
    ],
    ids=["none", "another", "no number", "no option", "no table"],
)
def test_a_missing_fold_is_one_line(
    tmp_path: Path, address: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(esc50(tmp_path / "ESC"))
    with pytest.raises(UserError) as raised:
        open_source(address.replace("{}", root))
    assert words.replace("{}", root) in str(raised.value)
    assert main(["check", address.replace("{}", root)]) == 2
    assert words.replace("{}", root) in capsys.readouterr().err


def changed(root: Path, old: str, new: str) -> None:
    table = root / "meta/esc50.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("1-100-A-0.wav", "1-0-A-0.wav", "Each clip of .* must have one row; got '1-0-A-0.wav' in several"),
        ("category", "kind", "must have the columns filename, fold, target, category; got no category"),
        ("1-0-A-0.wav", "gone.wav", "1 of 8 are missing: 'gone.wav'"),
        ("1-0-A-0.wav,1", "1-0-A-0.wav,first", "Line 2 of .* must name a file, a fold and a target by their numbers"),
        ("1-0-A-0.wav", "../elsewhere.wav", "Line 2 of .* must name a file"),
        ("1,0,high", "1,0,noise", "Every target of .* must have one category; got '.*' and '.*' for 0"),
    ],
    ids=["twice", "column", "file", "fold", "outside", "category"],
)
def test_what_is_wrong_with_the_table_is_said(tmp_path: Path, old: str, new: str, words: str) -> None:
    root = esc50(tmp_path / "ESC")
    if old == "1,0,high":
        text = (root / "meta/esc50.csv").read_text().replace(",0,high", ",0,noise", 1)
        (root / "meta/esc50.csv").write_text(text)
    else:
        changed(root, old, new)
    with pytest.raises(UserError, match=words):
        open_source(f"{root}?fold=1")


def test_a_table_in_another_encoding_is_one_line(tmp_path: Path) -> None:
    root = esc50(tmp_path / "ESC")
    table = root / "meta/esc50.csv"
    table.write_bytes(table.read_text().replace("high", "hö").encode("latin-1"))
    with pytest.raises(UserError, match="must be a readable table in UTF-8; got 'utf-8' codec"):
        open_source(f"{root}?fold=1")
