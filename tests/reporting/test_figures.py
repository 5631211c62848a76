"""Figures over runs: what is drawn, what is not, and that names are text."""

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from vitdistill.reporting.figures import curve, curves_of, score_against_cost, scores_of, step_times, styles
from vitdistill.runs.read import read_runs

Make = Callable[..., Path]


def texts(svg: str) -> list[str]:
    """The texts in a figure; fails unless it is well-formed."""
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))  # within HTML no namespace is declared
    return ["".join(node.itertext()).strip() for node in root.iter() if node.tag == "text"]


def test_accuracy_figure_names_runs_and_axes(make_run: Make) -> None:
    runs = read_runs([make_run("half"), make_run("quarter $x$ <i>", config={"keep": 0.25})])
    found = texts(score_against_cost(runs, "top1", "top-1") or "")
    assert "half" in found and "quarter $x$ <i>" in found
    assert "top-1 (%)" in found and any("per image" in text for text in found)


def test_seeds_share_a_label_and_a_style(make_run: Make) -> None:
    runs = read_runs([make_run(f"half-s{seed}", config={"seed": seed}) for seed in (0, 1)])
    assert "half (mean of 2)" in texts(score_against_cost(runs, "top1", "top-1") or "")
    assert len(set(styles(runs))) == 1


def test_different_settings_look_different(make_run: Make) -> None:
    runs = read_runs([make_run(f"r{i}", config={"keep": i + 1}) for i in range(14)])
    assert len(set(styles(runs))) == 14


def test_every_curve_is_drawn_and_holes_are_left_out(make_run: Make) -> None:
    runs = read_runs([make_run("half")])
    wanted = [what for what in curves_of(runs) if not what.label_free]
    known = [
        "val/top1",
        "train/loss",
        "teacher/top1",
        "teacher/agreement",
        "teacher/entropy",
        "teacher/kl_uniform",
        "keep",
    ]
    assert [what.column for what in wanted] == known
    for what in wanted:
        drawn = curve(runs, what)
        assert (drawn is None) == (what.column in ("teacher/entropy", "teacher/kl_uniform"))  # those of DINO
        assert drawn is None or what.title in texts(drawn)


def test_step_times_show_the_unexplained_rest(make_run: Make) -> None:
    found = texts(step_times(read_runs([make_run("half")])) or "")
    assert {"data", "student", "teacher", "other", "half", "43"} <= set(found)


def test_nothing_to_draw_is_none(interrupted_run: Path) -> None:
    runs = read_runs([interrupted_run])
    assert score_against_cost(runs, "top1", "top-1") is None and step_times(runs) is None
    assert all(curve(runs, what) is None for what in curves_of(runs))


def test_a_metric_is_called_what_the_run_says(make_run: Make) -> None:
    """Frame mAP is no share of samples, so it has no binomial error."""
    named = {"metrics": {"map": "frame mAP %"}, "score": "map", "score_per_sample": False}
    info = {"accuracy": {"map": 33.5}, "cost": {"teacher_gmacs_per_image": 1.0}, "data": {"val_images": 100}, **named}
    run, other = read_runs([make_run("ava", info=info), make_run("half")])
    assert (run.score, run.result, run.per_sample) == ("map", 33.5, False)
    assert scores_of([run, other]) == {"map": "frame mAP", "top1": "top-1"}
    assert "frame mAP (%)" in texts(score_against_cost([run, other], "map", "frame mAP") or "")
    assert curves_of([run])[0].column == "val/map"
