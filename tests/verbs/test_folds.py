"""Scores over folds: at the epoch that is best on the mean over them, and at the last."""

import json
from pathlib import Path

import pytest

from vitdistill.errors import UserError
from vitdistill.verbs.folds import fold_data, markdown, over_folds
from written_runs import finished


def write(folder: Path, fold: int, scores: list[str]) -> None:

    place = folder / f"fold-{fold}" / "student"
    place.mkdir(parents=True)
    info = {**finished("student"), "score": "top1", "metrics": {"top1": "top-1 %"}}
    (place / "run.json").write_text(json.dumps(info))
    rows = "".join(f"{epoch},{score}\n" for epoch, score in enumerate(scores))
    (place / "metrics.csv").write_text(f"epoch,val/top1\n{rows}")


def test_one_epoch_is_chosen_for_all_folds(tmp_path: Path) -> None:
    # Each fold is best at another epoch, and on the mean the second is.
    write(tmp_path, 1, ["90", "80", "50"])
    write(tmp_path, 2, ["20", "70", "80"])
    found = over_folds(tmp_path, ["student"], [1, 2])
    step = found["steps"]["student"]
    assert step["best"] == {"epoch": 1, "mean": 75.0, "sd": pytest.approx(7.0711, abs=1e-4), "folds": [80.0, 70.0]}
    assert step["last"]["epoch"] == 2 and step["last"]["mean"] == 65.0 and step["last"]["folds"] == [50.0, 80.0]
    text = markdown(found)
    assert "| student | top-1 % | 65.00 ± 21.21 (epoch 3) | 75.00 ± 7.07 (epoch 2) | 50.00, 80.00 |" in text
    assert "chosen on the very folds that are tested on" in text


def test_a_fold_without_its_scores_is_named(tmp_path: Path) -> None:
    write(tmp_path, 1, ["90", "80"])
    write(tmp_path, 2, ["20", ""])
    with pytest.raises(UserError, match="Every epoch of a fold must have its score in metrics.csv; got .*fold-2"):
        over_folds(tmp_path, ["student"], [1, 2])


def test_every_fold_has_its_address(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/esc50.csv").write_text("")
    assert fold_data(str(tmp_path), 3, {}) == {fold: f"esc50:{tmp_path}?fold={fold}" for fold in (1, 2, 3)}
    with pytest.raises(UserError, match="all steps take the data of --data; got data of its own in step big"):
        fold_data(str(tmp_path), 3, {"big": {"data": "digits"}})
