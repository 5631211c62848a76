"""Runs that are described in a file and build on each other: what `chain` and `sweep` share.

A step is a training verb with its options, in which `{name}` stands for the run directory of another step. Its
options are parsed before anything runs, and compared with what an earlier call has run already.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from vitdistill.errors import UserError, near
from vitdistill.files import check_path, is_run
from vitdistill.runs.data import changes, describe_data
from vitdistill.runs.directory import changed_options, plain
from vitdistill.runs.read import Run, find_run
from vitdistill.tasks import TASKS
from vitdistill.verbs.parser import check_yaml, parse_config
from vitdistill.verbs.table import TRAINING, verb

State = Literal["new", "again", "resume", "finished"]

FOLDER = re.compile(r"[\w-][\w.-]*")  # what may be a step's name: `..` would be a folder of somebody else's
FOLDER_WORDS = "of letters, digits, '.', '_' and '-', and begins with no '.'"

_REFERENCE = re.compile(r"\{([^{}]*)\}")


def folder_of_runs(out: str) -> Path:
    """The folder in which runs get folders of their own.

    Raises:
        UserError: when there can be none, or it is itself a run, whose report would be replaced.
    """
    check_path(out)
    folder = Path(out).expanduser()
    if is_run(folder):
        raise UserError("--out is a folder for several runs, and may not be a run itself", out, "Choose another --out")
    check_place("--out", folder / "any")
    return folder


def check_place(option: str, path: Path) -> None:
    """Refuse, before anything is computed, a file that could not be written then.

    Raises:
        UserError: naming the option.
    """
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        why = "to which nothing may be written" if parent.is_dir() else "a file and no folder"
        raise UserError(f"{option} must be a place to which files can be written", f"{parent}, {why}")


def check_verb(where: str, kind: Any) -> str:
    """The name of a training verb.

    Args:
        where: what names it, for the message.
        kind: the name.

    Raises:
        UserError: when it is none.
    """
    if kind not in TRAINING:
        raise UserError(f"{where} must name a verb: {', '.join(TRAINING)}", repr(kind), near(str(kind), TRAINING))
    return str(kind)


def with_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those of the file `config` under them.

    Raises:
        UserError: when the file cannot be read.
    """
    own = {key: value for key, value in options.items() if key != "config"}
    if "config" not in options:
        return own
    if not isinstance(options["config"], str):
        raise UserError("`config` is the path of a YAML file", repr(options["config"]))
    return deep(check_yaml(options["config"]), own)


def deep(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top, group by group.

    Example:
        >>> deep({"optim": {"lr": 1, "warmup_epochs": 2}}, {"optim": {"lr": 3}})
        {'optim': {'lr': 3, 'warmup_epochs': 2}}
    """
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = deep(result[key], value) if both else value
    return result


def references(value: Any) -> list[str]:
    """The names in `{name}`, wherever they stand."""
    if isinstance(value, dict):
        return [found for part in value.values() for found in references(part)]
    if isinstance(value, list):
        return [found for part in value for found in references(part)]
    return _REFERENCE.findall(value) if isinstance(value, str) else []


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as groups.

    Example:
        >>> nested({"optim.lr": 1, "optim": {"warmup_epochs": 2}})
        {'optim': {'lr': 1, 'warmup_epochs': 2}}
    """
    result: dict[str, Any] = {}
    for key, value in options.items():
        value = nested(value) if isinstance(value, Mapping) else value
        *groups, last = str(key).split(".")
        part: dict[str, Any] = {last: value}
        for group in reversed(groups):
            part = {group: part}
        result = deep(result, part)
    return result


def check_references(where: str, value: Any, earlier: Collection[str], what: str = "an earlier step") -> None:
    """Refuse references to what is not run before.

    Raises:
        UserError: with near names.
    """
    for reference in references(value):
        if reference not in earlier:
            remedy = near(reference, earlier)
            raise UserError(f"{where} can only build on {what}", f"{{{reference}}}", remedy)


def resolved(value: Any, place_of: Callable[[str], str | Path]) -> Any:
    """Options with the run directories in place of the references to them."""
    if isinstance(value, dict):
        return {key: resolved(part, place_of) for key, part in value.items()}
    if isinstance(value, list):
        return [resolved(part, place_of) for part in value]
    return _REFERENCE.sub(lambda match: str(place_of(match[1])), value) if isinstance(value, str) else value


def parsed(where: str, kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all options of a verb, checked by its own parser.

    Raises:
        UserError: naming where the bad option stands.
    """
    try:
        return parse_config(kind, options)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def state_of(folder: Path, kind: str, options: dict[str, Any], now: "DataNow | None" = None) -> State:
    """What an earlier call has left of a run: new, again (from the beginning), resume or finished.

    Args:
        folder: the run directory.
        kind: its verb.
        options: the values of all options.
        now: descriptions of data that were made before, for many runs on the same data.

    Raises:
        UserError: when a run that is not begun anew was run with other options, or is finished on other data.
    """
    run = find_run(folder)
    if run is None or not run.info:
        return "new"
    finished = run.status == "finished"
    if not finished and not run.last_checkpoint.is_file():
        return "again"  # there is nothing to lose, and the recipe may have been mended since
    filled = {**options, **verb(kind).resolve(options)}  # type: ignore[attr-defined]
    recorded = {key: value for key, value in plain(filled).items() if key not in ("resume", "overwrite")}
    changed = [key for key, _, _ in changed_options(run.config, recorded)]
    if run.verb != kind or changed:
        raise UserError(
            f"{folder} is {'finished' if finished else 'begun'}, but with other options than the recipe has now",
            f"changed {', '.join(changed) or 'verb'}",
            "Run every step anew with --overwrite, or choose another --out",
        )
    if finished and (found := (now or DataNow()).changes(run, kind, filled)):
        raise UserError(
            f"{folder} is finished, but on other data than there is now",
            "; ".join(found),
            "Run every step anew with --overwrite, or choose another --out",
        )
    return "finished" if finished else "resume"


class DataNow:
    """The data as it is now, described once however many finished runs were made on it."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[dict[str, Any], str] | None] = {}

    def changes(self, run: Run, kind: str, options: dict[str, Any]) -> list[str]:
        """What changed of a finished run's data, in words; nothing where the data is not there any more."""
        groups = (entry.files for entry in TASKS.values() if entry.files is not None)
        deciding = {name: options.get(name) for name in ("data", "task", *groups)}
        key = f"{kind} {plain(deciding)}"
        if key not in self._known:
            self._known[key] = self._described(kind, options)
        known = self._known[key]
        return [] if known is None else changes(run.info.get("data") or {}, *known)

    def _described(self, kind: str, options: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
        try:
            source = verb(kind).open_data(options)  # type: ignore[attr-defined]
        except UserError:
            return None
        return describe_data(source), source.train.word


def run_step(kind: str, options: Mapping[str, Any], *, resume: bool, overwrite: bool) -> dict[str, Any]:
    """Run or resume a step; returns the content of its run.json."""
    return verb(kind)(**{**options, "resume": resume, "overwrite": overwrite})
