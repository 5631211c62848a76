"""A study in one YAML file: settings of training verbs, seeds, what is asked of the runs and what is claimed."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from vitdistill.errors import UserError, near
from vitdistill.runs.claims import Claim
from vitdistill.verbs.parser import check_yaml
from vitdistill.verbs.signatures import options_of
from vitdistill.verbs.steps import (
    FOLDER,
    FOLDER_WORDS,
    check_references,
    check_verb,
    deep,
    nested,
    references,
    with_config,
)
from vitdistill.verbs.study_questions import Columns, Judge, Plot, check_keys, claims_of, judges_of, mapping_of, plot_of
from vitdistill.verbs.table import TRAINING

KEYS = (
    *("title", "about", "verb", "base", "steps", "settings", "grid", "before", "judge", "score", "columns", "seeds"),
    *("plot", "claims"),
)
OURS = ("out", "seed", "resume", "overwrite")  # what a sweep gives each run itself
SEEDS = 3
LONGEST = 150  # letters of a folder's name
RESERVED = ("before", "logs")  # folders beside those of the settings


@dataclass(frozen=True)
class Step:
    """One training run of a setting: a verb and its options as they are written; `{name}` is another run's folder."""

    name: str
    verb: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What is run with every seed; the last step is the one that is judged.

    Attributes:
        name: as it is written.
        folder: its name as a folder.
        steps: one for a setting that is a single run, whose name is then "".
    """

    name: str
    folder: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Before:
    """A run that settings build on, made for every seed, or once."""

    step: Step
    once: bool


@dataclass(frozen=True)
class Study:
    """What a file says, checked but for the options, which are parsed when it is known where runs are written."""

    title: str
    about: str
    settings: tuple[Setting, ...]
    before: dict[str, Before]
    judges: tuple[Judge, ...]
    score: str | None
    columns: tuple[str, ...]
    seeds: int
    plot: Plot | None
    claims: tuple[Claim, ...]

    def setting(self, name: str) -> Setting:
        """A setting by its name."""
        return next(each for each in self.settings if each.name == name)


def read_study(path: str | Path, override: Mapping[str, Any] | None = None) -> Study:
    """Read a study.

    Args:
        path: YAML file.
        override: options over those of the file, for every run whose verb has them.

    Raises:
        UserError: for an unknown key, verb, setting, judge or column, or a reference to what is not run before.
    """
    content = check_yaml(path)
    check_keys("A study", content, KEYS)
    base = with_config(nested(mapping_of(content, "base")))
    over = nested(override or {})
    before = _before(mapping_of(content, "before"), over)
    settings = _settings(content, base, over, before)
    names = [setting.name for setting in settings]
    steps = {step.name: step.verb for setting in settings for step in setting.steps if step.name}
    judges = judges_of(mapping_of(content, "judge"), steps, before)
    check = Columns(steps, judges)
    if (score := content.get("score")) is not None:
        check("score", score)
    columns = content.get("columns", [])
    if not isinstance(columns, list):
        raise UserError("`columns` is a list of columns", repr(columns))
    for column in columns:
        check("columns", column)
    seeds = content.get("seeds", SEEDS)
    check_seeds("seeds", seeds)
    return Study(
        title=str(content.get("title") or Path(path).stem),
        about=" ".join(str(content.get("about") or "").split()),
        settings=settings,
        before=before,
        judges=judges,
        score=score,
        columns=tuple(columns),
        seeds=seeds,
        plot=plot_of(content.get("plot"), names, check),
        claims=claims_of(content.get("claims") or [], names, check),
    )


def check_seeds(where: str, seeds: Any) -> None:
    """Refuse a number of seeds that is none.

    Raises:
        UserError: naming it.
    """
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise UserError(f"{where} must be a whole number from 1", repr(seeds))


def folder_name(name: str) -> str:
    """The name of a setting as a folder.

    Example:
        >>> folder_name("features: Q/K/V"), folder_name("keep=0.5,criterion=random")
        ('features_Q_K_V', 'keep=0.5,criterion=random')
    """
    return re.sub(r"[^\w.,=+%@-]+", "_", name).strip("._") or "_"


# --- settings ----------------------------------------------------------------------------------------------------


def _settings(
    content: Mapping[str, Any], base: dict[str, Any], over: Mapping[str, Any], before: Mapping[str, Before]
) -> tuple[Setting, ...]:
    if ("settings" in content) == ("grid" in content):
        raise UserError("A study has either `settings` or a `grid`", "both" if "grid" in content else "neither")
    grid = mapping_of(content, "grid")
    written = _combinations(grid) if grid else mapping_of(content, "settings")
    if not written:
        raise UserError("A study needs at least one setting")
    common = {key: content[key] for key in ("verb", "steps") if key in content}
    settings = [_one(name, own, common, base, over, before) for name, own in written.items()]
    kinds = sorted({step.verb for setting in settings for step in setting.steps})
    known = {option for kind in kinds for option in options_of(kind)}
    for where, options in (("base", base), ("--override", over)):
        for option in options:
            if option not in known:
                raise UserError(
                    f"{where}: There is no option {option} of {', '.join(kinds)}", None, near(option, known)
                )
    _check_folders(settings)
    return tuple(settings)


def _one(
    name: str,
    own: Any,
    common: Mapping[str, Any],
    base: dict[str, Any],
    over: Mapping[str, Any],
    before: Mapping[str, Before],
) -> Setting:
    """A setting out of what is common and its own."""
    where = f"Setting {name}"
    if own is not None and not isinstance(own, dict):
        raise UserError(f"{where} is a mapping from options to values", repr(own))
    written = nested(own or {})
    if "steps" in written or ("steps" in common and "verb" not in written):
        check_keys(f"{where}, a setting of steps,", written, ("steps",))
        shared, changed = mapping_of(common, "steps"), mapping_of(written, "steps", where)
        # A setting's further steps come first, for those of the study to build on.
        labels = [*(label for label in changed if label not in shared), *shared]
        steps = {label: (nested(shared.get(label) or {}), changed.get(label, {})) for label in labels}
    else:
        steps = {"": ({"verb": common.get("verb")}, written)}
    made: list[Step] = []
    for label, (inherited, step) in steps.items():
        if step is None:
            continue  # one that the other settings have
        at = f"{where}, step {label}" if label else where
        _check_step(at, label, step, before)
        kind = check_verb(at, step.get("verb", inherited.get("verb")))
        options = _merged(at, kind, {"verb": common.get("verb"), **base}, inherited, step)
        options = _overridden(kind, options, over)
        _refuse_ours(at, options)
        earlier = [*before, *(each.name for each in made)]
        check_references(at, options, earlier, "a run of `before`" + (" or an earlier step" if label else ""))
        made.append(Step(label, kind, options))
    if not made:
        raise UserError(f"{where} needs a step that is not null")
    return Setting(name, folder_name(name), tuple(made))


def _check_step(where: str, label: str, step: Any, before: Mapping[str, Before]) -> None:
    if label and not re.fullmatch(r"[\w-]+", label):
        raise UserError(f"{where}: the name becomes a folder, of letters, digits, '_' and '-'", repr(label))
    if label in before:
        raise UserError(f"{where} needs a name that no run of `before` has", repr(label))
    if not isinstance(step, dict):
        raise UserError(f"{where} is a mapping from options to values", repr(step))


def _merged(
    where: str, kind: str, base: Mapping[str, Any], inherited: Mapping[str, Any], own: Mapping[str, Any]
) -> dict[str, Any]:
    """A run's options: its own over those of the study's step, over those of `base`.

    Where a setting names another verb than the study, it inherits the options that its verb has. What `without` lists
    is not inherited.
    """
    options: dict[str, Any] = {}
    for each in (base, inherited):
        given = with_config({key: value for key, value in each.items() if key != "verb"})
        same = kind == each.get("verb")
        if each is inherited:  # those of `base` are checked when all verbs of the study are known
            known = {option for verb in TRAINING for option in options_of(verb)}
            for option in given.keys() - known:
                raise UserError(f"{where}: There is no option {option} of any verb", None, near(option, known))
        options = deep(options, {key: value for key, value in given.items() if same or key in options_of(kind)})
    without = own.get("without", [])
    if not isinstance(without, list):
        raise UserError(f"{where}: `without` is a list of options", repr(without))
    for option in without:
        options = _without(where, options, str(option))
    return deep(options, with_config({key: value for key, value in own.items() if key not in ("verb", "without")}))


def _without(where: str, options: dict[str, Any], option: str) -> dict[str, Any]:
    first, separator, rest = option.partition(".")
    if first not in options or (separator and not isinstance(options[first], dict)):
        raise UserError(f"{where}: `without` names options that the study gives", repr(option), near(first, options))
    if not separator:
        return {key: value for key, value in options.items() if key != first}
    return {**options, first: _without(where, options[first], rest)}


def _overridden(kind: str, options: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a verb, with those on top that it has."""
    return deep(options, {key: value for key, value in over.items() if key in options_of(kind)})


def _combinations(grid: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by name: every combination of a grid."""
    for option, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError("A grid is a mapping from options to lists of values", f"{option}: {values!r}")
    made = {}
    for values in product(*grid.values()):
        pairs = dict(zip(grid, values, strict=True))
        made[",".join(f"{option}={_word(value)}" for option, value in pairs.items())] = pairs
    return made


def _word(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)


def _check_folders(settings: Iterable[Setting]) -> None:
    taken: dict[str, str] = {}
    for setting in settings:
        key = setting.folder.lower()  # some file systems know no case
        if key in taken:
            raise UserError("Two settings need names that differ as folders", f"{taken[key]!r} and {setting.name!r}")
        if key in RESERVED:
            raise UserError(f"A setting may not be named {' or '.join(RESERVED)}", repr(setting.name))
        if len(key) > LONGEST:
            raise UserError("The name of a setting becomes a folder", f"{len(key)} letters", "Name it in `settings`")
        taken[key] = setting.name


# --- other parts -------------------------------------------------------------------------------------------------


def _before(written: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Before]:
    made: dict[str, Before] = {}
    for name, each in written.items():
        where = f"before {name}"
        if not FOLDER.fullmatch(str(name)):
            raise UserError(f"{where}: the name becomes a folder, {FOLDER_WORDS}", repr(name))
        if not isinstance(each, dict):
            raise UserError(f"{where} is a mapping with `verb`, `options` and perhaps `once`", repr(each))
        check_keys(where, each, ("verb", "options", "once", "config"))
        kind = check_verb(where, each.get("verb"))
        once = each.get("once", False)
        if not isinstance(once, bool):
            raise UserError(f"{where}: `once` is true or false", repr(once))
        config = {"config": each["config"]} if "config" in each else {}
        options = with_config({**config, **nested(mapping_of(each, "options", where))})
        _refuse_ours(where, options, besides=("seed",) if once else ())
        check_references(where, options, made, "an earlier run of `before`")
        if once and (several := [one for one in references(options) if not made[one].once]):
            raise UserError(f"{where} is made once, so it can only build on what is made once", f"{{{several[0]}}}")
        made[str(name)] = Before(Step(str(name), kind, _overridden(kind, options, over)), once)
    return made


def _refuse_ours(where: str, options: Mapping[str, Any], besides: Collection[str] = ()) -> None:
    if given := [name for name in OURS if name in options and name not in besides]:
        raise UserError(f"{where}: a sweep gives each run its {given[0]}", options[given[0]], "Leave it out")
