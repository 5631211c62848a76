"""`vitdistill chain`: several runs, each building on earlier ones, with one command that can be interrupted."""

import re
from pathlib import Path
from typing import Any

from vitdistill.errors import UserError, near
from vitdistill.files import is_first_process
from vitdistill.runs.data import changes, describe_data
from vitdistill.runs.directory import changed_options, plain
from vitdistill.runs.read import Run, find_run, read_run
from vitdistill.verbs.parser import check_yaml, parse_config
from vitdistill.verbs.signatures import options_of
from vitdistill.verbs.table import TRAINING, verb

_REFERENCE = re.compile(r"\{([^{}]*)\}")


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
    folder = Path(out)
    steps = {name: _parsed(name, step, folder, data) for name, step in read_chain(recipe).items()}
    todo = {name: _state(folder / name, *step) if not overwrite else "new" for name, step in steps.items()}
    results = {}
    for name, (kind, options) in steps.items():
        if todo[name] == "finished":
            _say(f"{name}: finished before", json)
            results[name] = read_run(folder / name).info
            continue
        _say(f"{name}: {kind}{', resumed' if todo[name] == 'resume' else ''}", json)
        anew = overwrite or todo[name] == "again"
        results[name] = _run(kind, options, resume=todo[name] == "resume", overwrite=anew)
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
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError("A step's name becomes a folder, so it may hold letters, digits, '.', '_' and '-'", repr(name))
    kind = step.get("verb") if isinstance(step, dict) else None
    if kind not in TRAINING:
        raise UserError(f"Step {name} must name a verb: {', '.join(TRAINING)}", repr(kind), near(str(kind), TRAINING))
    options = check_yaml(step["config"]) if "config" in step else {}
    merged = _deep(options, {key: value for key, value in step.items() if key != "config"})
    for reference in _references(merged):
        if reference not in earlier:
            remedy = near(reference, earlier)
            raise UserError(f"Step {name} can only build on an earlier step", f"{{{reference}}}", remedy)
    if "out" in merged:
        raise UserError(f"Step {name} is written to a folder of its own", "out", "Leave it out")
    return merged


def _references(value: Any) -> list[str]:
    """The names in `{name}`, wherever they stand."""
    if isinstance(value, dict):
        return [found for part in value.values() for found in _references(part)]
    if isinstance(value, list):
        return [found for part in value for found in _references(part)]
    return _REFERENCE.findall(value) if isinstance(value, str) else []


def _deep(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top, group by group."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _deep(result[key], value) if both else value
    return result


def _parsed(name: str, step: dict[str, Any], folder: Path, data: str | None) -> tuple[str, dict[str, Any]]:
    """A step's verb and its arguments, checked by the verb's own parser."""
    options = {key: _resolved(value, folder) for key, value in step.items() if key != "verb"}
    takes_data = data is not None and "data" not in options and "data" in options_of(step["verb"])
    options |= {"out": str(folder / name)} | ({"data": data} if takes_data else {})
    try:
        return step["verb"], parse_config(step["verb"], options)
    except UserError as error:
        raise UserError(f"Step {name}: {error}") from error


def _resolved(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(part, folder) for key, part in value.items()}
    if isinstance(value, list):
        return [_resolved(part, folder) for part in value]
    return _REFERENCE.sub(lambda match: str(folder / match[1]), value) if isinstance(value, str) else value


def _state(folder: Path, kind: str, options: dict[str, Any]) -> str:
    """new, again (from the beginning), resume or finished.

    Raises:
        UserError: when a step that is not begun anew was run with other options.
    """
    run = find_run(folder)
    if run is None or not run.info:
        return "new"
    finished = run.status == "finished"
    if not finished and not run.last_checkpoint.is_file():
        return "again"  # there is nothing to lose, and the recipe may have been mended since
    filled = {**options, **verb(kind).resolve(options)}  # type: ignore[attr-defined]
    now = {key: value for key, value in plain(filled).items() if key not in ("resume", "overwrite")}
    changed = [key for key, _, _ in changed_options(run.config, now)]
    if run.verb != kind or changed:
        raise UserError(
            f"{folder} is {'finished' if finished else 'begun'}, but with other options than the recipe has now",
            f"changed {', '.join(changed) or 'verb'}",
            "Run every step anew with --overwrite, or choose another --out",
        )
    if finished and (found := _data_changes(run, kind, filled)):
        raise UserError(
            f"{folder} is finished, but on other data than there is now",
            "; ".join(found),
            "Run every step anew with --overwrite, or choose another --out",
        )
    return "finished" if finished else "resume"


def _data_changes(run: Run, kind: str, options: dict[str, Any]) -> list[str]:
    """What changed of a finished run's data, in words; nothing where the data is not there any more."""
    try:
        source = verb(kind).open_data(options)  # type: ignore[attr-defined]
    except UserError:
        return []
    return changes(run.info.get("data") or {}, describe_data(source), source.train.word)


def _run(verb_name: str, options: dict[str, Any], *, resume: bool, overwrite: bool) -> dict[str, Any]:
    return verb(verb_name)(**{**options, "resume": resume, "overwrite": overwrite})


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
