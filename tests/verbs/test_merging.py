"""Token merging as an option: of a teacher, of an evaluation, and beside masks of equal cost."""

import re
from pathlib import Path
from typing import Any

import pytest

from run_reports import reports
from trained_runs import TINY
from vitdistill.cli import main
from vitdistill.data.images.augment import Augment
from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.models.merged import Merged
from vitdistill.runs.read import read_run
from vitdistill.training.settings import Optim
from vitdistill.verbs.cost import cost
from vitdistill.verbs.evaluate import evaluate
from vitdistill.verbs.maskedkd import maskedkd
from vitdistill.verbs.merging import equal_costs, equal_keep, masked_costs

SMALL, BASE = "deit_small_patch16_224", "deit_base_patch16_224"
# Merged by each block -> tokens left, share of the whole cost in percent, and kept patches that cost as much.
TABLES: dict[str, dict[int, tuple[int, float, int]]] = {
    SMALL: {
        **{1: (185, 96.9, 190), 2: (173, 93.6, 184), 4: (149, 87.1, 172), 6: (125, 80.7, 160), 8: (101, 74.4, 148)},
        **{9: (89, 71.2, 142), 10: (77, 68.1, 136), 12: (53, 61.9, 124), 13: (41, 58.8, 118), 14: (29, 55.8, 112)},
        **{16: (11, 49.9, 100), 18: (6, 44.8, 90), 20: (4, 40.7, 81), 24: (2, 34.4, 69)},
    },
    BASE: {
        **{1: (185, 96.8, 190), 2: (173, 93.6, 184), 4: (149, 87.3, 172), 6: (125, 80.9, 159), 8: (101, 74.6, 147)},
        **{9: (89, 71.5, 141), 10: (77, 68.4, 135), 12: (53, 62.1, 123), 13: (41, 59.0, 117), 14: (29, 56.0, 111)},
        **{16: (11, 50.0, 99), 18: (6, 44.8, 89), 20: (4, 40.6, 80), 24: (2, 34.2, 67)},
    },
}


SMALL, BASE = TABLES


@pytest.mark.parametrize("teacher", [SMALL, pytest.param(BASE, marks=pytest.mark.slow)])
def test_equal_costs_of_merging_and_masks(teacher: str) -> None:
    whole = build(teacher, meta=True)
    masked = masked_costs(whole)
    assert masked[97] == whole.macs(98).total and masked[-1] == whole.macs().total
    for merge, row in TABLES[teacher].items():
        merged = Merged.over(whole, merge)
        macs = merged.macs().total
        share = round(100 * macs / whole.macs().total, 1)
        assert (merged.tokens_left()[-1], share, equal_keep(masked, macs)) == row


def test_a_table_of_equal_costs() -> None:
    whole = build("digits_vit_base", meta=True)
    rows = equal_costs(whole, "5:-1")
    assert [row["merge"] for row in rows] == [*(str(merge) for merge in range(1, 19)), "5:-1"]
    assert rows[3]["merge"] == "4" and rows[3]["tokens"] == 21 and rows[3]["keep"] < 36
    assert all(row["gmacs"] < rows[0]["gmacs"] for row in rows[1:])
    assert [row["merge"] for row in equal_costs(whole, "20")][-2:] == ["18", "20"]


def test_cost_counts_a_merging_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    result = cost(teacher="digits_vit_base", student="digits_vit_small", teacher_merge=4)
    printed = capsys.readouterr().out
    assert "merging to 21 tokens" in printed and "masks that cost as much" in printed and "matching" in printed
    own = next(row for row in result["merging"] if row["merge"] == "4")
    assert result["teacher_gmacs_per_image"]["kept"]["total"] == own["gmacs"] and result["tokens_left"] == 21
    assert result["saved_fraction"] == pytest.approx(1 - own["share"])
    plain = cost(teacher="digits_vit_base", keep=1.0, json=True)
    assert plain["teacher_full_pflops"] == result["teacher_full_pflops"] and "merging" not in plain


def test_cost_says_why_the_papers_cells_of_convvit_differ() -> None:
    note = cost(teacher="convvit_base_patch16_224", keep=98, json=True)["note"]
    assert "8543 and 5540" in note and "1231167/1281167" in note
    assert "note" not in cost(teacher="convvit_base_patch16_224", image_size=256, keep=98, json=True)


@pytest.fixture(scope="module")
def merged_run(teacher_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "run"
    with reports():
        maskedkd(
            student="digits_vit_small",
            student_args=dict(TINY),
            teacher=str(teacher_run),
            teacher_merge="6,3",
            keep=1.0,
            data="digits",
            out=str(out),
            epochs=1,
            batch_size=512,
            augment=Augment(recipe="none"),
            optim=Optim(warmup_epochs=0),
        )
    return out


def test_a_run_records_what_its_teacher_merges(merged_run: Path, teacher_run: Path) -> None:
    run, whole = read_run(merged_run), build(str(teacher_run))
    merged = Merged.over(whole, "6,3")
    assert run.config["teacher_merge"] == "6,3" and run.info["teacher"]["name"].endswith("(merging tokens)")
    spent = run.info["cost"]
    assert spent["teacher_gmacs_per_image"] == merged.macs().total / 1e9
    assert spent["teacher_gmacs_full_per_image"] == whole.macs().total / 1e9
    assert spent["saved_fraction"] == pytest.approx(1 - merged.macs().total / whole.macs().total, abs=1e-5)
    teacher = run.method().teachers[0].network
    assert isinstance(teacher, Merged) and teacher.merges == (6, 3)
    assert "Traceback" not in (merged_run / "report.html").read_text()


def test_evaluating_a_run_that_merges(merged_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any trained network can, without training."""
    untouched = evaluate(str(merged_run), workers=0)
    capsys.readouterr()
    nothing, some = (evaluate(str(merged_run), merge=merge, workers=0) for merge in (0, "9:-1"))
    assert {name: nothing[name] for name in untouched} == untouched and nothing["merged"]["share"] == 1
    assert (
        some["merged"] == {**some["merged"], "merge": "18,0", "tokens": 19, "of": 37}
        and some["loss"] != nothing["loss"]
    )
    assert "merging 18,0 tokens, block by block: 19 of 37 are left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--teacher_merge=8"], "two ways to save the teacher's work, .*; got --keep 0.5. Add --keep 1.0"),
        (["--teacher_merge=8", "--keep=agree:0.9"], "got --keep agree:0.9"),
        (["--teacher_merge=8", "--keep=36"], "got --keep 36"),
        (["--teacher_merge=8", "--keep=1.0", "--distill=logits+manifold"], "class scores alone.*logits.manifold"),
        (["--teacher_merge=-1", "--keep=1.0"], "must not be negative"),
        (["--teacher_merge=8", "--keep=1.0", "--alpha=0"], "teacher_merge has no effect unless --alpha is above 0"),
    ],
)
def test_bad_options_of_a_run(given: list[str], message: str, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Before the data is opened, and with it torch imported."""
    monkeypatch.setattr("vitdistill.verbs.job._train", lambda *a, **k: pytest.fail("it was not refused in time"))
    words = ["maskedkd", "--student=digits_vit_small", "--teacher=digits-teacher", "--data=digits"]
    assert main([*words, f"--out={tmp_path / 'run'}", *given]) != 0
    assert re.search(message, capsys.readouterr().err)


SWIN: dict[str, Any] = {
    **{"student": "digits_vit_small", "teacher": "swin_tiny_patch4_window7_224", "teacher_merge": 2, "keep": 1.0},
    **{"data": "digits", "out": "run"},
}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cost(teacher=SMALL, teacher_merge=8, keep=98, json=True), "got --keep 98"),
        (lambda: cost(teacher="swin_tiny_patch4_window7_224", teacher_merge=8, json=True), "got swin_tiny"),
        (lambda: cost(teacher=SMALL, teacher_merge="1,2,3,4,5,6,7,8,9,10,11,12,13", json=True), "at most 12 blocks"),
        (lambda: maskedkd(**SWIN), "Tokens can be merged in ViT, .*; got swin_tiny"),
        (lambda: evaluate("digits-teacher", merge=4, keep=0.5), "--merge and --keep below 1.0 exclude each other"),
        (lambda: evaluate("digits-teacher", merge="few"), "whole numbers; got 'few'"),
    ],
)
def test_bad_options_elsewhere(call: Any, message: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_half_of_the_patches_is_refused_where_it_is_asked_for() -> None:
    """It is what `cost` takes where nothing is said, but not where tokens are merged."""
    with pytest.raises(UserError, match="two ways to save the teacher's work.*--keep 0.5"):
        cost(teacher="deit_small_patch16_224", teacher_merge="8", keep=0.5)
