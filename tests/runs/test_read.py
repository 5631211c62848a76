"""Reading run directories: whole, partial and damaged ones; settings that differ; seeds."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vitdistill.errors import UserError
from vitdistill.runs.compare import MISSING, Spread, differing_settings, group_by_seed, spread
from vitdistill.runs.read import read_run, read_runs

Make = Callable[..., Path]


def test_a_whole_run(make_run: Make) -> None:
    run = read_run(make_run("half"))
    assert (run.name, run.status, run.problems) == ("half", "finished", ())
    assert run.number("cost.teacher_gmacs_per_image") == 2.5
    assert run.text("teacher.name") == "teacher-net"
    assert run.setting("lr") == 0.001
    assert run.metrics["val/top1"] == [40.5, 70.25, 91.5]


def test_empty_and_infinite_cells_are_none(make_run: Make) -> None:
    metrics = read_run(make_run("half")).metrics
    assert metrics["ema/top1"] == [None, 69.5, 90.0]
    assert metrics["train/loss"] == [2.1, 1.2, None]


def test_an_interrupted_run_says_what_is_missing(interrupted_run: Path) -> None:
    run = read_run(interrupted_run)
    assert run.status == "interrupted"
    assert run.number("accuracy.top1") is None and run.teacher_gmacs is None
    assert any("config.yaml" in problem for problem in run.problems)


@pytest.mark.parametrize("text", ["{ not json", "[1, 2]", ""])
def test_a_damaged_run_json_is_a_problem_and_no_failure(make_run: Make, text: str) -> None:
    path = make_run("half")
    (path / "run.json").write_text(text)
    run = read_run(path)
    assert run.info == {} and run.config["keep"] == 0.5
    assert any("run.json" in problem for problem in run.problems)


def test_no_teacher_costs_nothing_but_an_unknown_teacher_is_unknown(make_run: Make, interrupted_run: Path) -> None:
    alone = make_run("alone", info={"teacher": None, "cost": {}})
    assert read_run(alone).teacher_gmacs == 0.0
    assert read_run(interrupted_run).teacher_gmacs is None


def test_what_is_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json or config\.yaml.*nothing there"):
        read_run(tmp_path / "missing")
    with pytest.raises(UserError, match="a directory without them"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="at least one run"):
        read_runs([])


def test_runs_of_one_name_are_told_apart(make_run: Make) -> None:
    runs = read_runs([make_run("a/tiny"), make_run("b/tiny")])
    assert [run.name for run in runs] == ["a/tiny", "b/tiny"]


def test_only_differing_settings(make_run: Make) -> None:
    paths = [
        make_run("a"),
        make_run("b", config={"keep": 0.25, "tau": 2.0, "optim": {"lr": 0.1, "betas": [0.9, 0.999]}}),
    ]
    rows = {row.key: row.values for row in differing_settings(read_runs(paths))}
    assert rows == {"keep": [0.5, 0.25], "optim.lr": [0.001, 0.1], "tau": [MISSING, 2.0]}  # not `out`


def test_groups_differ_by_seed_only(make_run: Make) -> None:
    paths = [make_run(f"half-s{seed}", config={"seed": seed}) for seed in (0, 1)]
    groups = group_by_seed(read_runs([*paths, make_run("quarter", config={"keep": 0.25})]))
    assert [(group.name, group.members) for group in groups] == [("half", [0, 1]), ("quarter", [2])]


def test_runs_without_configuration_stand_alone(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    assert [g.members for g in group_by_seed(read_runs([tmp_path / "a", tmp_path / "b"]))] == [[0], [1]]


def test_spread_is_mean_and_sample_deviation() -> None:
    assert spread([90.0, 92.0, None]) == Spread(91.0, 2**0.5, 2)
    assert spread([90.0, None]) is None
