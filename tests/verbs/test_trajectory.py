"""`trajectory` end to end: a run with snapshots, its rows, its files, and the section on its page."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from colours import NETWORK, options
from vitdistill.cli import main
from vitdistill.data.images.augment import Augment
from vitdistill.errors import UserError
from vitdistill.reporting.galleries.trajectory import summary
from vitdistill.reporting.pictures import galleries
from vitdistill.runs.read import read_run
from vitdistill.verbs.maskedkd import maskedkd
from vitdistill.verbs.report import report
from vitdistill.verbs.tinymim import tinymim
from vitdistill.verbs.trajectory import trajectory


@pytest.fixture(scope="module")
def run(colour_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trajectory") / "run"
    maskedkd(
        student="vit_tiny_patch16_224",
        student_args=NETWORK,
        teacher=str(colour_run),
        keep=2,
        criterion="student",
        **options(colour_run.parent / "data", out, snapshots=3),
    )
    return out


def test_a_page_shows_masks_alone_until_the_verb_was_run(run: Path) -> None:
    (section,) = [one for one in galleries([read_run(run)]) if one.heading == "Masks over training"]
    assert len(section.pictures) == 2 and not section.notes
    assert "vitdistill trajectory" in section.pictures[0].caption and "epoch 0" in section.pictures[0].caption


def test_rows_and_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = trajectory(str(run), workers=0)
    text = capsys.readouterr().out
    assert "criterion" in text and "random masks have joint 1" in text
    assert [(row["criterion"], row["epoch"], row["kept"]) for row in rows] == [
        *[("student", epoch, 2) for epoch in (0, 1, 4)],
        ("teacher", None, 2),
        ("random", None, 2),
    ]
    assert all(row["teacher"] == 100 for row in rows)  # a colour is seen in every patch
    assert rows[2]["student"] == pytest.approx(read_run(run).result, abs=1e-3) and rows[2]["overlap"] == 1
    saved = json.loads((run / "trajectory.json").read_text())
    assert saved["images"] == 12 and [row["joint"] for row in saved["rows"]] == [row["joint"] for row in rows]
    assert {"trajectory.json", "trajectory.svg"} <= set(json.loads((run / "run.json").read_text())["files"])
    page = Path(report([str(run)], out=str(tmp_path / "r.html"))["report"]).read_text()
    assert "Masks over training" in page and "for 100.0% on all patches" in page
    out = tmp_path / "rows.csv"
    words = ["trajectory", str(run), "--criterion", "student", "--keep", "0.25", "--images", "5", "--workers", "0"]
    assert main([*words, "--out", str(out)]) == 0
    with out.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 and lines[0]["kept"] == "1" and "rate_3" in lines[0] and "correlation_1" in lines[0]
    assert [row["epoch"] for row in trajectory(str(run), criterion="teacher,random", workers=0)] == [None, None]


def test_a_trained_student_is_compared_with_an_untrained_one(run: Path, colour_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more: dict[str, Any] = options(colour_run.parent / "data", out, epochs=1, snapshots=2)
    maskedkd(student=str(run), alpha=0.0, keep=2, drop_path=0.0, **more)
    rows = trajectory(str(out), workers=0)  # no teacher, which is left out of the default
    assert [(row["criterion"], row["epoch"]) for row in rows] == [
        ("student (untrained)", None),
        ("student", 0),
        ("student", 1),
        ("random", None),
    ]
    with pytest.raises(UserError, match="has no teacher that can rank patches"):
        trajectory(str(out), criterion="teacher", workers=0)


def test_a_run_without_labels_needs_none(run: Path, colour_run: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for number, file in enumerate(sorted((colour_run.parent / "data" / "train").glob("*/*.png"))):
        shutil.copy(file, data / f"{number}.png")
    more = {"augment": Augment(recipe="pretrain"), "epochs": 1, "snapshots": 2, "positions": "learned"}
    tinymim(
        student="vit_tiny_patch16_224",
        student_args=NETWORK,
        teacher=str(colour_run),
        target="features",
        **{**options(data, out), **more},
    )
    rows = trajectory(str(out), keep=2, workers=0)
    assert {row["student"] for row in rows} == {row["teacher"] for row in rows} == {None}
    assert all(0 <= row["agreement"] <= 1 for row in rows)


def test_a_teacher_that_cannot_be_masked_is_left_out(colour_run: Path, tmp_path: Path) -> None:
    data, out = colour_run.parent / "data", tmp_path / "run"
    sizes: dict[str, Any] = {"student": "vit_tiny_patch16_224", "student_args": NETWORK}
    more = options(data, out, epochs=1, snapshots=2)
    maskedkd(teacher=str(colour_run), teacher_merge=1, keep=1.0, **sizes, **more)
    rows = trajectory(str(out), workers=0)
    assert [row["criterion"] for row in rows] == ["student", "student", "random"]


def test_criteria_that_ask_no_snapshot_have_no_words() -> None:
    assert summary({"rows": [{"criterion": "random", "epoch": None}]}) == ""


def test_bad_input(run: Path, colour_run: Path) -> None:
    with pytest.raises(UserError, match="The run must have left snapshots"):
        trajectory(str(colour_run))
    with pytest.raises(UserError, match="keep must leave out patches"):
        trajectory(str(run), keep=1.0)
    with pytest.raises(UserError, match="images must be at least 1"):
        trajectory(str(run), images=0)
