"""Reading run directories, also old, unfinished and damaged ones."""

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from vitdistill.errors import UserError
from vitdistill.files import AVERAGED, SNAPSHOTS, runs_beside
from vitdistill.runs.earlier import columns_of, current, per_sample_of, score_of

if TYPE_CHECKING:
    from vitdistill.data.source import DataSource
    from vitdistill.methods.method import Method
    from vitdistill.models.network import Network

Checkpoint = Literal["exported", "last", "best", "ema"]


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
    def snapshots(self) -> dict[int, Path]:
        """Files of the student's weights that `--snapshots` left, by the number of epochs before each."""
        files = {file.stem.removeprefix("epoch-"): file for file in (self.path / SNAPSHOTS).glob("epoch-*.safetensors")}
        return dict(sorted((int(text), file) for text, file in files.items() if text.isdigit()))

    @property
    def score(self) -> str | None:
        """Which metric says how good the student is; None for runs without labels."""
        return score_of(self.info, self.metrics)

    @property
    def per_sample(self) -> bool:
        """Whether the score is the share of validation samples that are right."""
        return per_sample_of(self.info, self.score)

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
        weights, fixed = read_weights(file), backbone.fixed()
        load_into(backbone.net, {name: value for name, value in weights.items() if name not in fixed}, str(file))
        return backbone

    def source(self, *, labels: bool = True) -> "DataSource":
        """The data of the run.

        Args:
            labels: False for a run without labels, whose data may be any folder of images.

        Raises:
            UserError: when the run does not say, or the data is not there.
        """
        from vitdistill.data.open import open_source
        from vitdistill.tasks import task_class

        if not self.config.get("data"):
            raise UserError("The run must say which data it used", str(self.path), "Give --data")
        if not labels:
            return open_source(str(self.config["data"]), labels=False)
        return task_class(str(self.config.get("task", "classification"))).source_of(self.config)

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
        function = getattr(vitdistill, self.verb)
        if not hasattr(function, "rebuild"):
            raise UserError(f"{self.path} was made by `{self.verb}`, which trains no network")
        method = function.rebuild(self)
        if heads and any(not name.startswith("student.") for name in method.state_dict()):
            state = read_checkpoint(self.last_checkpoint)["state_dict"]
            own = {name.removeprefix("method."): value for name, value in state.items() if name.startswith("method.")}
            method.load_state_dict(own)
        return method.eval()

    @property
    def has_no_teacher(self) -> bool:
        """Whether the run says that it had no teacher (as opposed to saying nothing)."""
        return "teacher" in self.info and self.info["teacher"] is None


# --- reading ---------------------------------------------------------------------------------------------


def check_snapshots(run: Run) -> None:
    """
    Raises:
        UserError: when a run has left none.
    """
    if not run.snapshots:
        raise UserError("The run must have left snapshots", run.path, "Train with --snapshots, for example 6")


def is_run(path: Path) -> bool:
    """Whether a folder is a run directory."""
    return (path / "run.json").is_file() or (path / "config.yaml").is_file()


def read_run(path: str | Path) -> Run:
    """Read a run directory.

    Args:
        path: directory that holds `run.json` or `config.yaml`.

    Raises:
        UserError: when it is no run directory.
    """
    path = Path(path)
    if not is_run(path):
        what = "a directory without them" if path.is_dir() else "a file" if path.exists() else "nothing there"
        holds_runs = path.is_dir() and any(path.glob("*/run.json"))
        remedy = "Give the directory that a training verb wrote with --out"
        if holds_runs:
            remedy = f"Give those in it: {path}/*"
        elif not path.exists():
            remedy = runs_beside(path)
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


def read_runs(paths: Sequence[str | Path], read: Callable[[str | Path], Run] = read_run) -> list[Run]:
    """Read several run directories; runs of one name are told apart by their parent directories.

    Args:
        paths: the directories.
        read: how one is read.

    Raises:
        UserError: when the list is empty or a path is no run directory.
    """
    if not paths:
        raise UserError("Name at least one run directory", remedy="For example: vitdistill report runs/*")
    runs = [read(path) for path in paths]
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
