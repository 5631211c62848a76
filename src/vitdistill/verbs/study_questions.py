"""What is asked of the runs of a study: judges, a plot, claims, and which columns there can be."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import inf
from typing import Any

from vitdistill.errors import UserError, near
from vitdistill.runs.claims import Claim
from vitdistill.runs.columns import FIGURES, METRICS
from vitdistill.verbs.judges import check_judge
from vitdistill.verbs.steps import check_references, nested
from vitdistill.verbs.task_metrics import metrics_of_tasks, scores_of_tasks

OTHERS = ("loss", "agreement")  # that metrics.csv has besides the metrics of the tasks
TYPO = 0.85  # how alike an unknown name must be to a known one to be taken for a typing error


@dataclass(frozen=True)
class Judge:
    """A verb that is asked of every run.

    Attributes:
        name: what its columns begin with.
        verb: its name.
        of: the step that is asked; "" is the last.
        options: as they are written.
    """

    name: str
    verb: str
    of: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Plot:
    """A picture of one column against another.

    Attributes:
        x, y: columns.
        lines: settings that are joined by a line, by what the line is called.
    """

    x: str
    y: str
    lines: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Columns:
    """Says which names of columns can be ones; the rest shows when the first run is done."""

    def __init__(self, steps: Mapping[str, str], judges: Iterable[Judge]) -> None:
        self.steps, self.judges = tuple(steps), [judge.name for judge in judges]
        metrics = [f"{prefix}/{name}" for prefix in METRICS for name in (*metrics_of_tasks(), *OTHERS)]
        self.known = [*FIGURES, "keep", "lr", *metrics]

    def __call__(self, where: str, name: Any) -> None:
        """Refuse what is no column.

        Raises:
            UserError: with near names.
        """
        word = str(name)
        first, separator, rest = word.partition("/")
        if not isinstance(name, str) or (separator and first not in (*METRICS, *self.judges, *self.steps)):
            scores = [f"{each}/{score}" for each in (*self.judges, *self.steps) for score in scores_of_tasks()]
            known = (*self.known, *scores)
            what = "metrics.csv has, or a judge's name, / and its number" if separator else "the runs have"
            raise UserError(f"{where} must be a column that {what}", repr(name), near(word, known))
        if separator and first in self.steps and rest not in self.known:
            word = rest
        elif separator and first in self.judges:
            return
        if word in self.known or (separator and first in self.steps):
            return
        if close := get_close_matches(word, self.known, n=1, cutoff=TYPO):
            raise UserError(f"{where} must be a column of the runs", repr(name), f"Did you mean {close[0]!r}?")


def judges_of(written: Mapping[str, Any], steps: Mapping[str, str], before: Collection[str]) -> tuple[Judge, ...]:
    made = []
    for name, each in written.items():
        if each is not None and not isinstance(each, dict):
            raise UserError(f"judge {name} is a mapping from options to values", repr(each))
        options = nested(each or {})
        kind = check_judge(str(options.pop("verb", name)))
        of = str(options.pop("of", ""))
        if of and of not in steps:
            raise UserError(f"judge {name} is of a step", repr(of), near(of, steps))
        if str(name) in (*METRICS, *steps):
            raise UserError(f"judge {name} needs a name that no other column begins with", repr(name))
        check_references(f"judge {name}", options, before, "a run of `before`")
        made.append(Judge(str(name), kind, of, options))
    return tuple(made)


def plot_of(written: Any, names: Collection[str], check: Columns) -> Plot | None:
    if written is None:
        return None
    if not isinstance(written, dict) or not {"x", "y"} <= set(written):
        raise UserError("`plot` names two columns, x and y", repr(written))
    check_keys("plot", written, ("x", "y", "lines"))
    for axis in ("x", "y"):
        check(f"plot.{axis}", written[axis])
    lines = written.get("lines") or {}
    if not isinstance(lines, dict) or not all(isinstance(each, list) for each in lines.values()):
        raise UserError("`plot.lines` is a mapping from names to lists of settings", repr(lines))
    for each in lines.values():
        for name in each:
            _check_setting("plot.lines", name, names)
    return Plot(written["x"], written["y"], {str(name): tuple(map(str, each)) for name, each in lines.items()})


def claims_of(written: Any, names: Collection[str], check: Columns) -> tuple[Claim, ...]:
    if not isinstance(written, list):
        raise UserError("`claims` is a list of mappings with claim, better, worse and kind", repr(written))
    made = []
    for each in written:
        if not isinstance(each, dict) or not {"claim", "better", "worse"} <= set(each):
            raise UserError("A claim is a mapping with claim, better and worse", repr(each))
        where = f"claim {str(each['claim'])!r}"
        check_keys(where, each, ("claim", "better", "worse", "kind", "margin", "score", "lower"))
        for side in ("better", "worse"):
            _check_setting(where, each[side], names)
        if str(each["better"]) == str(each["worse"]):
            raise UserError(f"{where} compares two settings", f"{each['better']!r} twice")
        kind = each.get("kind", "gain")
        if kind not in ("gain", "no_loss"):
            raise UserError(f"{where}: kind must be gain or no_loss", repr(kind), near(str(kind), ("gain", "no_loss")))
        margin, lower = each.get("margin"), each.get("lower")
        if margin is not None and (
            isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin < inf
        ):
            raise UserError(f"{where}: margin must be a number from 0", repr(margin))
        if lower is not None and not isinstance(lower, bool):
            raise UserError(f"{where}: lower is true or false", repr(lower))
        if (score := each.get("score")) is not None:
            check(where, score)
        sides = (str(each["better"]), str(each["worse"]))
        made.append(Claim(" ".join(str(each["claim"]).split()), *sides, kind, margin, score, lower))
    return tuple(made)


def _check_setting(where: str, name: Any, names: Collection[str]) -> None:
    if str(name) not in names:
        raise UserError(f"{where} must name a setting", repr(name), near(str(name), names))


def mapping_of(content: Mapping[str, Any], key: str, where: str = "A study") -> dict[str, Any]:
    value = content.get(key)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{where}: `{key}` is a mapping", repr(value))
    return {str(name): each for name, each in (value or {}).items()}


def check_keys(where: str, content: Mapping[str, Any], keys: Collection[str]) -> None:
    for key in content:
        if key not in keys:
            remedy = near(str(key), keys) or f"There are {', '.join(keys)}"
            raise UserError(f"{where} has no {key!r}", remedy=remedy)
