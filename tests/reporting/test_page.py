"""The page over runs: complete, self-contained, and tolerant of unfinished runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vitdistill.errors import UserError
from vitdistill.reporting.page import rows_of, write_report
from vitdistill.runs.compare import differing_settings, group_by_seed
from vitdistill.runs.read import read_run, read_runs
from vitdistill.verbs.report import report

INFO: dict[str, Any] = {
    "verb": "maskedkd",
    "status": "finished",
    "command": "vitdistill maskedkd --keep 98",
    "student": {"name": "deit_tiny_patch16_224"},
    "teacher": {"name": "deit_small_patch16_224"},
    "accuracy": {"top1": 75.25, "top5": 92.5},
    "tokens": {"kept": 98, "of": 196},
    "cost": {"teacher_gmacs_per_image": 2.25, "teacher_gmacs_total": 866e6, "saved_fraction": 0.51},
    "speed": {"images_per_s": 1234.0, "step_ms": 60.0, "data_ms": 1.5, "student_ms": 38.5, "teacher_ms": 20.0},
    "peak_memory_gib": 9.6,
    "seconds": 4321,
    "seed": 0,
}


def make_run(folder: Path, config: dict[str, Any], info: dict[str, Any] | None = None, epochs: int = 3) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps(INFO if info is None else info))
    lines = ["epoch,step,lr,keep,train/loss,teacher/top1,val/top1"]
    lines += [f"{e},{10 * e},0.1,98,{2 - 0.5 * e},{40 + e},{50 + 5 * e}" for e in range(epochs)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n" if epochs else "")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path / "half", {"student": "a<b>", "keep": 98, "optim": {"lr": 0.1}, "seed": 0}),
        make_run(tmp_path / "full", {"student": "a<b>", "keep": 1.0, "optim": {"lr": 0.1}, "seed": 0}),
        make_run(tmp_path / "dead", {}, {"verb": "maskedkd", "status": "interrupted"}, epochs=0),
    ]


def test_the_page_says_what_the_runs_say(runs: list[Path], tmp_path: Path) -> None:
    page = write_report(runs, tmp_path / "page.html", masks=False).read_text()
    for text in ("half", "full", "dead", "75.25", "98 of 196", "51%", "1.5 / 38.5 / 20.0", "1,234", "interrupted"):
        assert text in page, text
    assert "vitdistill maskedkd --keep 98" in page
    assert page.count("<svg") >= 3


def test_the_page_is_self_contained_and_escaped(runs: list[Path], tmp_path: Path) -> None:
    page = write_report(runs, tmp_path / "page.html", masks=False).read_text()
    assert "http://" not in page and "https://" not in page
    assert "<script" not in page and 'src="/' not in page and "<link" not in page
    assert "a<b>" not in page and "a&lt;b&gt;" in page


def test_only_settings_that_differ_are_listed(runs: list[Path]) -> None:
    keys = [row.key for row in differing_settings(read_runs(runs[:2]))]
    assert keys == ["keep"]


def test_runs_that_differ_by_seed_are_one_group(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / f"tiny-s{seed}", {"keep": 0.5, "seed": seed}, {**INFO, "accuracy": {"top1": 70.0 + seed}})
        for seed in range(3)
    ]
    groups = group_by_seed(read_runs(paths))
    assert [group.members for group in groups] == [[0, 1, 2]]
    page = write_report(paths, tmp_path / "page.html", masks=False).read_text()
    assert "71.00 ± 1.00" in page


def test_masks_that_cannot_be_drawn_do_not_cost_the_page(runs: list[Path], tmp_path: Path) -> None:
    (runs[0] / "config.yaml").write_text("data: /nowhere\nkeep: 0.5\ncriterion: student\n")
    (runs[0] / "student.safetensors").write_bytes(b"broken")
    page = write_report([runs[0]], tmp_path / "page.html").read_text()
    assert "The masks could not be drawn." in page and "75.25" in page


def test_what_a_run_did_not_record_is_none(runs: list[Path]) -> None:
    row = rows_of([read_run(runs[2])])[0]
    assert row["status"] == "interrupted"
    assert "top1" not in row, "a run that measured nothing names no metric"
    assert all(row[key] is None for key in ("score", "patches", "split", "seconds", "images_per_s"))


def test_the_verb_says_where_it_wrote(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    result = report([str(path) for path in runs], masks=False, json=True)
    assert json.loads(capsys.readouterr().out) == result
    assert Path(result["report"]) == runs[0].parent / "report.html"
    assert Path(result["report"]).is_file()


def test_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        report([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="at least one run"):
        report([])
