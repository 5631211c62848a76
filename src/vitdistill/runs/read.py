"""Reading run directories, also old, unfinished and damaged ones."""

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import yaml

from vitdistill.errors import UserError
from vitdistill.files import AVERAGED

if TYPE_CHECKING:
    from vitdistill.data.source import DataSource
    from vitdistill.methods.method import Method
    from vitdistill.models.network import Network

Checkpoint = Literal["exported", "last", "best", "ema"]

# Arguments that say where a run is written, not what it does.
BOOKKEEPING = frozenset({"out", "resume", "overwrite", "config", "json"})
# Metrics of runs that were written before run.json said what they are called: score, headings.
_BEFORE = (("top1", {"top1": "top-1 %", "top5": "top-5 %"}), ("map", {"map": "frame mAP %"}))
MISSING = object()
_SEED_SUFFIX = re.compile(r"(?P<stem>.+?)[-_./ ]*(seed|s)?[-_ ]*\d+")


@dataclass(frozen=True)
class Run:
    """What is known about one run. Anything but the path and the name may be empty.

    Attributes:
        path: the run directory.
        name: how the run is called in tables.
        config: resolved configuration, dotted groups as nested mappings.
        info: contents of `run.json`.
        metrics: columns of `metrics.csv`, one entry per epoch; None where a cell is empty or not finite.
        problems: files that could not be read, in words.
    """

    path: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, list[float | None]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def get(self, key: str) -> Any:
        """A field of `run.json` by dotted name, or None."""
        return lookup(self.info, key)

    def number(self, key: str) -> float | None:
        """A finite number of `run.json` by dotted name, or None."""
        return _finite(self.get(key))

    def text(self, key: str) -> str | None:
        """A text of `run.json` by dotted name, or None when it is missing or empty."""
        value = self.get(key)
        return None if value is None or isinstance(value, Mapping | list) or value == "" else str(value)

    def setting(self, name: str) -> Any:
        """A setting by the last part of its dotted name (`keep` finds `method.keep`), or None."""
        if name in self.config:
            return self.config[name]
        found = [value for key, value in flatten(self.config).items() if key.rpartition(".")[2] == name]
        return found[0] if found else None

    @property
    def verb(self) -> str:
        """The verb that made the run.

        Raises:
            UserError: when the run does not say.
        """
        verb = self.text("verb")
        if verb is None:
            raise UserError("The run must say which verb made it", f"{self.path / 'run.json'} does not")
        return verb

    @property
    def objects(self) -> list[str]:
        """Settings that were given as Python objects, of which the configuration has the class only."""
        return [name for name, value in self.config.items() if isinstance(value, str) and value.startswith("<")]

    @property
    def status(self) -> str:
        """finished, running, interrupted, failed or unknown."""
        return self.text("status") or "unknown"

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint from which the run goes on."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def score(self) -> str | None:
        """Which metric says how good the student is; None for runs without labels."""
        return score_of(self.info, self.metrics)

    @property
    def per_sample(self) -> bool:
        """Whether the score is the share of validation samples that are right."""
        return bool(self.info.get("score_per_sample", self.score == _BEFORE[0][0]))

    @property
    def columns(self) -> dict[str, str]:
        """What the metrics are called, by name: headings, in percent."""
        return columns_of(self.info, self.metrics)

    @property
    def result(self) -> float | None:
        """The score that the run ended with."""
        return None if self.score is None else self.number(f"accuracy.{self.score}")

    @property
    def teacher_gmacs(self) -> float | None:
        """GMACs per image that the teacher cost: 0 for a run known to have no teacher, None when unknown."""
        cost = self.number("cost.teacher_gmacs_per_image")
        return 0.0 if cost is None and self.has_no_teacher else cost

    def student(self, checkpoint: Checkpoint = "exported") -> "Network":
        """The student as training left it, or as a checkpoint holds it.

        Args:
            checkpoint: the exported student, the last or best checkpoint, or the averaged weights.

        Raises:
            UserError: when the run does not hold it.
        """
        from vitdistill.models.build import build

        if checkpoint == "exported":
            return build(str(self.path))
        if checkpoint in ("last", "best"):
            from vitdistill.training.checkpoints import load_student

            return load_student(self.path / "checkpoints" / f"{checkpoint}.ckpt")
        from vitdistill.models.weights.read import load_into, read_weights

        file = self.path / AVERAGED
        if not file.is_file():
            raise UserError("Averaged weights exist only for runs with --optim.ema", self.path)
        backbone = build(str(self.path))
        load_into(backbone.net, read_weights(file), str(file))
        return backbone

    def source(self, *, labels: bool = True) -> "DataSource":
        """The data of the run.

        Args:
            labels: False for a run without labels, whose data may be any folder of images.

        Raises:
            UserError: when the run does not say, or the data is not there.
        """
        from vitdistill.data.open import open_source

        if not self.config.get("data"):
            raise UserError("The run must say which data it used", str(self.path), "Give --data")
        return open_source(str(self.config["data"]), labels=labels)

    def method(self, *, heads: bool = True) -> "Method":
        """The method that the run trained, with the weights that it ended with, in evaluation mode.

        Calls the run's verb once more with the options that the run recorded, which builds the teachers anew.

        Args:
            heads: read decoders and projections from the last checkpoint; without it they have random weights, which
                does where only the networks are looked at.

        Raises:
            UserError: when the run is unfinished, was given Python objects, or its teachers cannot be had.
        """
        import vitdistill
        from vitdistill.training.checkpoints import read_checkpoint

        if objects := [name for name in self.objects if name not in ("student", "model")]:
            raise UserError(f"{self.path} was given Python objects", ", ".join(objects), "Build its method in Python")
        method = getattr(vitdistill, self.verb).rebuild(self)
        if heads and any(not name.startswith("student.") for name in method.state_dict()):
            state = read_checkpoint(self.last_checkpoint)["state_dict"]
            own = {name.removeprefix("method."): value for name, value in state.items() if name.startswith("method.")}
            method.load_state_dict(own)
        return method.eval()

    @property
    def has_no_teacher(self) -> bool:
        """Whether the run says that it had no teacher (as opposed to saying nothing)."""
        return "teacher" in self.info and self.info["teacher"] is None


class Setting(NamedTuple):
    """One flattened setting and its value in each run; `MISSING` where a run does not have it."""

    key: str
    values: list[Any]


class Spread(NamedTuple):
    """A figure over the seeds of one setting: mean and sample standard deviation of `n` runs."""

    mean: float
    std: float
    n: int


class Group(NamedTuple):
    """Runs that differ by seed only, by their position in the list of runs."""

    name: str
    members: list[int]


# --- reading ---------------------------------------------------------------------------------------------


def read_run(path: str | Path) -> Run:
    """Read a run directory.

    Args:
        path: directory that holds `run.json` or `config.yaml`.

    Raises:
        UserError: when it is no run directory.
    """
    path = Path(path)
    if not (path / "run.json").is_file() and not (path / "config.yaml").is_file():
        what = "a directory without them" if path.is_dir() else "a file" if path.exists() else "nothing there"
        holds_runs = path.is_dir() and any(path.glob("*/run.json"))
        remedy = (
            f"Give those in it: {path}/*" if holds_runs else "Give the directory that a training verb wrote with --out"
        )
        raise UserError("A run directory holds run.json or config.yaml", f"{path} ({what})", remedy)
    problems: list[str] = []
    info = _read_mapping(path / "run.json", problems)
    config = current(_read_mapping(path / "config.yaml", problems))
    return Run(
        path,
        path.resolve().name,
        config,
        info,
        _read_metrics(path / "metrics.csv", problems),
        tuple(problems),
    )


def find_run(path: str | Path) -> Run | None:
    """The run of a run directory, or of a checkpoint in one; None for a path that is neither."""
    path = Path(path)
    folder = path.parent.parent if path.suffix == ".ckpt" else path
    return read_run(folder) if (folder / "config.yaml").is_file() else None


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Read several run directories; runs of one name are told apart by their parent directories.

    Raises:
        UserError: when the list is empty or a path is no run directory.
    """
    if not paths:
        raise UserError("Name at least one run directory", remedy="For example: vitdistill report runs/*")
    runs = [read_run(path) for path in paths]
    if len({run.name for run in runs}) == len(runs):
        return runs
    parent = common_parent([run.path for run in runs])
    return [Run(**{**vars(run), "name": _name_below(parent, run)}) for run in runs]


def common_parent(paths: Sequence[Path]) -> Path:
    """The deepest directory that holds all the paths."""
    return Path(os.path.commonpath([path.resolve().parent for path in paths]))


def _name_below(parent: Path, run: Run) -> str:
    return run.path.resolve().relative_to(parent).as_posix()


def _read_mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON or YAML mapping; empty, with a problem noted, when the file is missing or damaged."""
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{path.name} cannot be read: {' '.join(str(error).split())}")
    else:
        if isinstance(data, dict):
            return data
        problems.append(f"{path.name} is not a mapping")
    return {}


def _read_metrics(path: Path, problems: list[str]) -> dict[str, list[float | None]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, restval="")
            columns: dict[str, list[float | None]] = {name: [] for name in rows.fieldnames or ()}
            for row in rows:
                for name, column in columns.items():
                    column.append(_finite(row[name]))
    except FileNotFoundError:
        problems.append("metrics.csv is missing")
    except (OSError, ValueError, csv.Error) as error:
        problems.append(f"metrics.csv cannot be read: {error}")
    else:
        return columns
    return {}


def _finite(value: Any) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def score_of(info: Mapping[str, Any], metrics: Iterable[str] = ()) -> str | None:
    """Which metric says how good a run's student is; None for runs without labels.

    Args:
        info: contents of run.json.
        metrics: columns of metrics.csv, for runs that were written before run.json said it.
    """
    if "score" in info:
        return info["score"]
    before = _before(info, metrics)
    return None if before is None else before[0]


def columns_of(info: Mapping[str, Any], metrics: Iterable[str] = ()) -> dict[str, str]:
    """What a run's metrics are called, by name; arguments as of `score_of`."""
    if isinstance(info.get("metrics"), Mapping):
        return dict(info["metrics"])
    before = _before(info, metrics)
    return {} if before is None else dict(before[1])


def _before(info: Mapping[str, Any], metrics: Iterable[str]) -> tuple[str, dict[str, str]] | None:
    known = {*(info.get("accuracy") or {}), *(name.removeprefix("val/") for name in metrics)}
    return next((named for named in _BEFORE if named[0] in known), None)


def current(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as it would be written today: runs of `detect` are those of `finetune --task actions`."""
    if not {"videos", "threshold", "val"} <= set(config):
        return config
    names = ("train", "val", "labels", "evaluated", "detections", "excluded", "threshold", "start", "frame_rate")
    actions = {name: config.get(name) for name in names}
    if actions["detections"] is None:
        actions["threshold"] = None  # which is that of detections
    rest = {name: value for name, value in config.items() if name not in (*names, "videos")}
    return {**rest, "data": config["videos"], "task": "actions", "actions": actions}


# --- settings --------------------------------------------------------------------------------------------


def lookup(mapping: Mapping[str, Any], key: str) -> Any:
    """`lookup(m, "a.b")` is `m["a"]["b"]`, or None where a part is missing."""
    value: Any = mapping
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def flatten(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one level of dotted names; lists stay as they are."""
    return dict(_flat_items(mapping, ""))


def _flat_items(mapping: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from _flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing_settings(runs: Sequence[Run]) -> list[Setting]:
    """Settings whose values are not the same in all runs, in the order in which they first appear.

    Where a run was written to is not a setting.
    """
    flat = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings if key not in BOOKKEEPING)
    rows = [Setting(key, [settings.get(key, MISSING) for settings in flat]) for key in keys]
    return [row for row in rows if any(value != row.values[0] for value in row.values[1:])]


def group_by_seed(runs: Sequence[Run]) -> list[Group]:
    """Runs of the same verb and settings but for the seed; a run without a configuration stands alone."""
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        settings = {k: v for k, v in flatten(run.config).items() if k not in BOOKKEEPING | {"seed"}}
        identity = [run.get("verb"), settings] if settings else f"run {index}"
        key = json.dumps(identity, sort_keys=True, default=str)
        groups.setdefault(key, []).append(index)
    return [Group(_group_name([runs[i].name for i in members]), members) for members in groups.values()]


def _group_name(names: list[str]) -> str:
    """What the names of a group begin with, without the mark of the seed; else the first name."""
    matches = [_SEED_SUFFIX.fullmatch(name) for name in names]
    stems = {match["stem"] for match in matches if match}
    return stems.pop() if len(names) > 1 and all(matches) and len(stems) == 1 else names[0]


def spread(values: Sequence[float | None]) -> Spread | None:
    """Mean and sample standard deviation of the known values; None when fewer than two are known."""
    known = [value for value in values if value is not None]
    return Spread(mean(known), stdev(known), len(known)) if len(known) > 1 else None
