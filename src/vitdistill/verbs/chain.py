"""`vitdistill chain`: several runs, each building on earlier ones, with one command that can be interrupted."""

from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any

from vitdistill.errors import UserError
from vitdistill.files import is_first_process
from vitdistill.runs.read import read_run
from vitdistill.verbs.parser import check_yaml
from vitdistill.verbs.signatures import options_of
from vitdistill.verbs.steps import (
    FOLDER,
    FOLDER_WORDS,
    State,
    check_references,
    check_verb,
    folder_of_runs,
    parsed,
    resolved,
    run_step,
    state_of,
    with_config,
)


def chain(
    recipe: str,
    *,
    out: str,
    data: str | None = None,
    folds: int | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> dict[str, Any]:
    """Run the steps of a recipe one after the other: teachers, students of students, fine-tuning.

    Calling it again skips what is finished and resumes what is not, exactly.

    Args:
        recipe: YAML file with `steps`, each a training verb with its options; `{name}` in an option stands for the run
            directory of an earlier step.
        out: folder for the run directories, one per step.
        data: data of every step that names none.
        folds: run all steps so many times, each time with another fold of the data (ESC-50) to validate on, and say
            the mean scores; teachers that are steps never see the fold that is tested on.
        overwrite: run every step anew.
        json: print one JSON object in place of the table.

    Returns:
        Per step, the content of its run's run.json; with folds, under `steps` each step's scores over the folds, at the
        epoch that is best on the mean and at the last.

    Raises:
        UserError: before anything is run, when a step names an unknown verb, option or step, or when a step that is
            finished or to be resumed was run with other options or on other data than now.
    """
    folder = folder_of_runs(out)
    written = read_chain(recipe)
    if folds is None:
        (results,) = _run_all([_planned(written, folder, data, overwrite)], overwrite, json)
        _show(results, json)
        return results
    from vitdistill.verbs.folds import fold_data, over_folds, show, write

    of_folds = fold_data(data, folds, written)
    plans = [
        _planned(written, folder / f"fold-{fold}", own, overwrite, f"fold {fold}, ") for fold, own in of_folds.items()
    ]
    _run_all(plans, overwrite, json)
    found = over_folds(folder, written, of_folds)
    if is_first_process():
        write(folder, found)
        if json:
            print(dumps(found))
        else:
            show(found, folder)
    return found


@dataclass(frozen=True)
class _Planned:
    """One step in one folder: its verb, the values of all options, and what an earlier call has left of it."""

    label: str
    folder: Path
    kind: str
    options: dict[str, Any]
    state: State


def _planned(
    written: dict[str, dict[str, Any]], folder: Path, data: str | None, overwrite: bool, before: str = ""
) -> dict[str, _Planned]:
    """The steps of a recipe in a folder, all checked before any is run; `before` goes before their names."""
    steps = {name: _parsed(name, step, folder, data) for name, step in written.items()}
    return {
        name: _Planned(f"{before}{name}", folder / name, *step, "new" if overwrite else state_of(folder / name, *step))
        for name, step in steps.items()
    }


def _run_all(plans: list[dict[str, _Planned]], overwrite: bool, quiet: bool) -> list[dict[str, dict[str, Any]]]:
    """Run what is not finished; the content of every run's run.json, by step."""
    results: list[dict[str, dict[str, Any]]] = []
    for plan in plans:
        results.append({})
        for name, step in plan.items():
            if step.state == "finished":
                _say(f"{step.label}: finished before", quiet)
                results[-1][name] = read_run(step.folder).info
                continue
            resumed = step.state == "resume"
            _say(f"{step.label}: {step.kind}{', resumed' if resumed else ''}", quiet)
            anew = overwrite or step.state == "again"
            results[-1][name] = run_step(step.kind, step.options, resume=resumed, overwrite=anew)
    return results


def read_chain(path: str | Path) -> dict[str, dict[str, Any]]:
    """Steps by name, each with its verb and options; `config` files are merged in under the step's own options.

    Raises:
        UserError: when the file is no recipe, a name or verb is unusable, or a reference is to no earlier step.
    """
    content = check_yaml(path)
    steps = content.get("steps")
    if not isinstance(steps, dict) or not steps or set(content) != {"steps"}:
        raise UserError("A chain is a mapping `steps` from names to verbs with their options", path)
    merged: dict[str, dict[str, Any]] = {}
    for name, step in steps.items():
        merged[str(name)] = _merged(str(name), step, list(merged))
    return merged


def _merged(name: str, step: Any, earlier: list[str]) -> dict[str, Any]:
    if not FOLDER.fullmatch(name):
        raise UserError(f"A step's name becomes a folder, {FOLDER_WORDS}", repr(name))
    check_verb(f"Step {name}", step.get("verb") if isinstance(step, dict) else None)
    merged = with_config(step)
    check_references(f"Step {name}", merged, earlier)
    if "out" in merged:
        raise UserError(f"Step {name} is written to a folder of its own", "out", "Leave it out")
    return merged


def _parsed(name: str, step: dict[str, Any], folder: Path, data: str | None) -> tuple[str, dict[str, Any]]:
    """A step's verb and its arguments, checked by the verb's own parser."""
    kind = step["verb"]
    options = resolved({key: value for key, value in step.items() if key != "verb"}, lambda earlier: folder / earlier)
    takes_data = data is not None and "data" not in options and "data" in options_of(kind)
    options |= {"out": str(folder / name)} | ({"data": data} if takes_data else {})
    return kind, parsed(f"Step {name}", kind, options)


def _say(text: str, quiet: bool) -> None:
    if not quiet and is_first_process():
        print(f"\n{text}", flush=True)


def _show(results: dict[str, dict[str, Any]], as_json: bool) -> None:
    import json

    if not is_first_process():
        return
    if as_json:
        print(json.dumps(results))
        return
    from rich.console import Console
    from rich.table import Table

    from vitdistill.runs.earlier import columns_of, score_of

    scores = {score: columns_of(info)[score] for info in results.values() if (score := score_of(info)) is not None}
    table = Table("step", "verb", *scores.values(), "validation loss", "minutes")
    for name, info in results.items():
        accuracy = info.get("accuracy") or {}
        table.add_row(
            name,
            str(info.get("verb", "")),
            *(f"{accuracy[score]:.2f}" if score in accuracy else "-" for score in scores),
            f"{accuracy['loss']:.4f}" if "loss" in accuracy else "-",
            f"{info.get('seconds', 0) / 60:.1f}",
        )
    Console().print(table)
