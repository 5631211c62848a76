"""`vitdistill chain`: several runs, each building on earlier ones, with one command that can be interrupted."""

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
    recipe: str, *, out: str, data: str | None = None, overwrite: bool = False, json: bool = False
) -> dict[str, Any]:
    """Run the steps of a recipe one after the other: teachers, students of students, fine-tuning.

    Calling it again skips what is finished and resumes what is not, exactly.

    Args:
        recipe: YAML file with `steps`, each a training verb with its options; `{name}` in an option stands for the run
            directory of an earlier step.
        out: folder for the run directories, one per step.
        data: data of every step that names none.
        overwrite: run every step anew.
        json: print one JSON object in place of the table.

    Returns:
        Per step, the content of its run's run.json.

    Raises:
        UserError: before anything is run, when a step names an unknown verb, option or step, or when a step that is
            finished or to be resumed was run with other options or on other data than now.
    """
    folder = folder_of_runs(out)
    steps = {name: _parsed(name, step, folder, data) for name, step in read_chain(recipe).items()}
    todo = {name: state_of(folder / name, *step) if not overwrite else "new" for name, step in steps.items()}
    results = {}
    for name, (kind, options) in steps.items():
        if todo[name] == "finished":
            _say(f"{name}: finished before", json)
            results[name] = read_run(folder / name).info
            continue
        _say(f"{name}: {kind}{', resumed' if todo[name] == 'resume' else ''}", json)
        anew = overwrite or todo[name] == "again"
        results[name] = run_step(kind, options, resume=todo[name] == "resume", overwrite=anew)
    _show(results, json)
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
