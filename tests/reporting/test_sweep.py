"""The pages of a sweep, of made-up numbers."""

from typing import Any

import pytest

from vitdistill.reporting.sweep import cells, difference, figure, how, markdown, meaning


def column(mean: float, sd: float | None = None) -> dict[str, Any]:
    return {"mean": mean, "sd": sd, "n": 3}


def finding(claim: str, verdict: str, corrected: str) -> dict[str, Any]:
    pair = {"better": "half", "worse": "whole", "kind": "gain", "margin": None, "column": "val/top1"}
    return {
        "claim": claim,
        **pair,
        "gain": 1.5,
        "half_width": 0.25,
        "seeds": 3,
        "verdict": verdict,
        "corrected": corrected,
    }


@pytest.fixture
def content() -> dict[str, Any]:
    settings = {
        "whole": {"seeds": 3, "columns": {"val/top1": column(90, 1.25), "teacher_gmacs": column(17.6), "x": None}},
        "half|of": {
            "seeds": 3,
            "columns": {"val/top1": column(91.5, 0.5), "teacher_gmacs": column(8.8), "x": column(2)},
        },
    }
    return {
        "title": "Half",
        "about": "All about it.",
        "command": "vitdistill sweep half.yaml",
        "score": "val/top1",
        "shown": ["val/top1", "teacher_gmacs", "x"],
        "headings": {"val/top1": "top-1 %", "teacher_gmacs": "teacher MACs / input", "x": "x"},
        "plot": {"x": "teacher_gmacs", "y": "val/top1", "lines": {"kept": ["whole", "half|of"]}},
        "hardware": {"cpu": "AMD EPYC", "cpu_cores": 2, "gpu": None},
        "versions": {"torch": "2.9"},
        "data": "digits",
        "samples": [1437, 360],
        "seconds": 600,
        "missing": ["quarter"],
        "settings": settings,
        "findings": [finding("A", "holds", "holds"), finding("B", "holds", "not resolved")],
        "runs": [
            {"setting": "whole", "seed": 0, "val/top1": 90.0},
            {"setting": "half|of", "seed": 0, "val/top1": 91.5},
        ],
        "failed": {},
    }


def test_the_summary_says_what_was_run_and_what_it_is_worth(content: dict[str, Any]) -> None:
    text = markdown(content, figure="half.svg")
    assert "| whole | 3 | 90.00 ± 1.25 | 17.6\u00a0G | - |" in text
    assert "| half\\|of | 3 | 91.50 ± 0.50 | 8.8\u00a0G | 2 |" in text
    assert "Not run: quarter." in text and "![Half](half.svg)" in text
    assert "| A | +1.50 ± 0.25 (half - whole) | 3 | holds |" in text
    assert how(content) == (
        "on AMD EPYC (2 cores), torch 2.9, one thread a run; 10 minutes of training in all. 3 seeds; data: digits, "
        "1,437 samples to train on and 360 to validate."
    )
    words = " ".join(meaning(content))
    assert "Of 2 claims: 2 hold, 0 do not hold, 0 not resolved" in words
    assert "widened for 2 claims (Bonferroni) there stay: A." in words


def test_what_one_seed_says(content: dict[str, Any]) -> None:
    one = {**finding("A", "not resolved", "not resolved"), "half_width": None, "seeds": 1}
    headings = content["headings"]
    assert difference(one, headings) == "+1.50 ± ?"
    assert difference({**one, "gain": None}, headings) == "-"
    assert cells(content, {"seeds": 1, "columns": {"val/top1": column(90)}}) == ["90.00", "-", "-"]


def test_scores_of_any_task_are_percentages(content: dict[str, Any]) -> None:
    """By what the task calls them, whatever their names."""
    found = {**finding("A", "holds", "holds"), "column": "val/miou", "gain": 0.123456, "half_width": 0.04321}
    assert difference(found, {"val/miou": "mIoU %"}) == "+0.12 ± 0.04"
    assert difference(found, {"val/miou": "loss"}) == "+0.123 ± 0.0432"
    own = {**content, "shown": ["val/miou"], "headings": {"val/miou": "mIoU %"}}
    assert cells(own, {"seeds": 1, "columns": {"val/miou": column(41.23456, 0.1)}}) == ["41.23 ± 0.10"]


def test_figures_are_files_of_their_own_or_parts_of_a_page(content: dict[str, Any]) -> None:
    drawn = figure(content)
    assert drawn.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and "kept" in drawn
    part = figure({**content, "plot": None}, for_page=True)
    assert "xmlns" not in part and "half|of" in part
    assert "half|of" in figure({**content, "plot": {"x": "nothing", "y": "val/top1", "lines": {}}})
