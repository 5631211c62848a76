"""What is asked of a finished run after its training: verbs such as `knn`, whose numbers become columns of a sweep."""

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vitdistill.errors import UserError, near
from vitdistill.files import write_atomically
from vitdistill.runs.directory import list_in_run, plain
from vitdistill.verbs.signatures import options_of
from vitdistill.verbs.steps import parsed
from vitdistill.verbs.table import VERBS, verb

FILE = "judged.json"  # in the run directory
SUBJECT = ("model", "models", "run")  # the option that takes the run
# Take a run, or another model, and say nothing of how good a run is.
NO_JUDGES = ("resume", "export", "predict", "embed", "report", "sweep", "text-embeddings")

# What tells the members of a list apart.
_TELLING = ("k", "criterion", "epoch", "kept", "class", "name", "block", "layer")


class Question(NamedTuple):
    """A verb to ask of a run.

    Attributes:
        name: what its columns begin with.
        verb: its name.
        values: of all its options, the run among them.
    """

    name: str
    verb: str
    values: dict[str, Any]


def judges() -> list[str]:
    """The verbs that can be asked of a run."""
    plausible = [name for name, each in VERBS.items() if not each.trains and name not in NO_JUDGES]
    return [name for name in plausible if set(SUBJECT) & set(options_of(name))]


def check_judge(name: str) -> str:
    """The name of a verb that can be asked of a run.

    Raises:
        UserError: when it is none, with near names.
    """
    if name not in judges():
        raise UserError(
            "What is asked of a run must be a verb that takes one and returns numbers",
            repr(name),
            near(name, judges()) or f"Such are {', '.join(judges())}",
        )
    return name


def question(name: str, kind: str, options: Mapping[str, Any], run: Path) -> Question:
    """A verb with its options, parsed.

    Raises:
        UserError: for an option that it does not have, or for another run.
    """
    known = options_of(kind)
    subject = next(each for each in SUBJECT if each in known)
    if subject in options:
        raise UserError(f"judge {name}: a sweep gives each judge its {subject}", options[subject], "Leave it out")
    given: dict[str, Any] = {**options, subject: [str(run)] if subject == "models" else str(run)}
    if "json" in known:
        given["json"] = True
    return Question(name, kind, parsed(f"judge {name}", kind, given))


def unanswered(run: Path, questions: tuple[Question, ...]) -> list[Question]:
    """Those that the run has not been asked, or with other options."""
    known = _read(run)
    return [each for each in questions if known.get(each.name, {}).get("options") != _recorded(each)]


def answers(run: Path) -> dict[str, float]:
    """The numbers that a run's questions have been answered with, by `name/number`."""
    return {f"{name}/{key}": value for name, answer in _read(run).items() for key, value in answer["numbers"].items()}


def ask(run: Path, questions: list[Question]) -> None:
    """Ask a run, and keep the numbers in its folder."""
    for each in questions:
        with contextlib.redirect_stdout(io.StringIO()):
            result = verb(each.verb)(**each.values)
        known = {**_read(run), each.name: {"options": _recorded(each), "numbers": dict(leaves(result))}}
        text = json.dumps(known, indent=2) + "\n"
        write_atomically(run / FILE, lambda file, text=text: file.write(text.encode()))
        list_in_run(run / FILE)


def _recorded(asked: Question) -> dict[str, Any]:
    """Its options, without the run's own place."""
    return {"verb": asked.verb, **{key: plain(value) for key, value in asked.values.items() if key not in SUBJECT}}


def _read(run: Path) -> dict[str, dict[str, Any]]:
    try:
        return dict(json.loads((run / FILE).read_text()))
    except (OSError, ValueError):
        return {}


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a result, by path.

    A list of mappings is told apart by what each is of (`k`, `criterion` and `kept`, `name`), one of a single mapping
    by nothing. `scores` and what the only member of a list is called add nothing to a path.

    Example:
        >>> dict(leaves({"scores": [{"k": 10, "top1": 91.5}], "images": 360}))
        {'top1': 91.5, 'images': 360.0}
    """
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        yield prefix, float(value)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, _below(prefix, "" if key == "scores" else str(key)))
    elif isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        for number, part in enumerate(value):
            words = [str(part[key]) for key in _TELLING if part.get(key) is not None]
            own = {key: each for key, each in part.items() if key not in _TELLING}
            name = "" if len(value) == 1 else "-".join(words) or str(number)
            yield from leaves(own, _below(prefix, name))


def _below(prefix: str, name: str) -> str:
    return "/".join(part for part in (prefix, name) if part)
