"""Cross-validation for `vitdistill chain --folds`: the address of each fold's data, and the scores over all folds."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from vitdistill.data.containers.address import Address
from vitdistill.data.open import SCHEMES, address_of
from vitdistill.errors import UserError
from vitdistill.files import write_atomically
from vitdistill.runs.read import Run, read_run

CHOSEN = (
    "The best epoch is chosen on the very folds that are tested on, as published for ESC-50; the last epoch is not."
)


def fold_data(data: str | None, folds: int, steps: Mapping[str, Mapping[str, Any]]) -> dict[int, str]:
    """The data of each fold, from 1 on.

    Args:
        data: what `--data` names, without a fold.
        folds: how many to run.
        steps: of the recipe.

    Raises:
        UserError: when there are fewer than two, the data has none, or something else says which data or fold.
    """
    if folds < 2:
        raise UserError("--folds must be at least 2", folds)
    own = [name for name, step in steps.items() if "data" in step]
    if data is None or own:
        got = "no --data" if data is None else f"data of its own in step {own[0]}"
        raise UserError("With --folds, all steps take the data of --data", got, "Name the data there alone")
    address = address_of(data)
    options = None if address is None else SCHEMES[address.scheme].options
    if address is None or "fold" not in (options or ()):
        raise UserError("--folds needs data that is divided into folds", f"'{data}'", "For example ESC-50's folder")
    if "fold" in address.options:
        raise UserError("--folds runs every fold, and --data names one", f"'{data}'", "Leave its fold out")
    return {
        fold: str(Address(address.scheme, address.name, {**address.options, "fold": str(fold)}))
        for fold in range(1, folds + 1)
    }


def over_folds(folder: Path, steps: Iterable[str], folds: Iterable[int]) -> dict[str, Any]:
    """The mean score of every labelled step over the folds: at the one epoch where it is best, and at the last.

    Args:
        folder: that holds `fold-K/STEP`.
        steps: names.
        folds: numbers of the folds; all their runs are finished.

    Returns:
        Under `steps`, by name: verb, score, heading, and under `best` and `last` the epoch (from 0), the mean, the
        deviation over the folds, and the score of every fold.

    Raises:
        UserError: when metrics of a run are missing.
    """
    found: dict[str, Any] = {}
    folds = list(folds)
    for name in steps:
        runs = [read_run(folder / f"fold-{fold}" / name) for fold in folds]
        if (score := runs[0].score) is None:
            continue
        curves = [_curve(run, f"val/{score}") for run in runs]
        means = [mean(values) for values in zip(*curves, strict=True)]
        best = max(range(len(means)), key=means.__getitem__)
        found[name] = {
            "verb": runs[0].verb,
            "score": score,
            "heading": runs[0].columns.get(score, score),
            "best": _at(best, curves),
            "last": _at(len(means) - 1, curves),
        }
    return {"folds": folds, "note": CHOSEN, "steps": found}


def _curve(run: Run, column: str) -> list[float]:
    values = run.metrics.get(column, [])
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        raise UserError("Every epoch of a fold must have its score in metrics.csv", f"{run.path}, {column}")
    return known


def _at(epoch: int, curves: list[list[float]]) -> dict[str, Any]:
    values = [curve[epoch] for curve in curves]
    return {"epoch": epoch, "mean": mean(values), "sd": stdev(values), "folds": values}


def markdown(found: Mapping[str, Any]) -> str:
    """A table of what `over_folds` found."""
    lines = [
        f"Mean and standard deviation over {len(found['folds'])} folds. {found['note']}",
        "",
        "| step | score | last epoch | best epoch on the mean | fold by fold, last epoch |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, step in found["steps"].items():
        last, best = step["last"], step["best"]
        each = ", ".join(f"{value:.2f}" for value in last["folds"])
        lines.append(f"| {name} | {step['heading']} | {_words(last)} | {_words(best)} | {each} |")
    return "\n".join(lines) + "\n"


def _words(at: Mapping[str, Any]) -> str:
    return f"{at['mean']:.2f} ± {at['sd']:.2f} (epoch {at['epoch'] + 1})"


def write(folder: Path, found: dict[str, Any]) -> None:
    """Write folds.json, folds.md and a report over the runs of the last step."""
    from vitdistill.reporting.page import write_report

    write_atomically(folder / "folds.json", lambda file: file.write((json.dumps(found, indent=1) + "\n").encode()))
    write_atomically(folder / "folds.md", lambda file: file.write(markdown(found).encode()))
    if found["steps"]:
        last = list(found["steps"])[-1]
        write_report([folder / f"fold-{fold}" / last for fold in found["folds"]], folder / "report.html")


def show(found: Mapping[str, Any], folder: Path) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "score", "last epoch", "best epoch on the mean")
    for name, step in found["steps"].items():
        table.add_row(name, step["heading"], _words(step["last"]), _words(step["best"]))
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    console.print(f"Mean ± deviation over {len(found['folds'])} folds. {found['note']}", highlight=False)
    print(f"wrote {folder / 'folds.md'}, folds.json and report.html")
