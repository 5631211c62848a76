"""The run directory: everything needed to trust, repeat, resume and use a run."""

import csv
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vitdistill.errors import UserError
from vitdistill.files import (
    AVERAGED,
    FULL,
    RECORD,
    SNAPSHOTS,
    TEMPORARY,
    WEIGHTS,
    absolute,
    is_first_process,
    write_atomically,
)
from vitdistill.runs.data import check_same_data, describe_data

if TYPE_CHECKING:
    from vitdistill.data.source import DataSource

# Keys that may differ between a run and its continuation: they do not change what is computed. A continuation on
# other devices must come to the same global batch, which the checkpoint knows.
FREE = re.compile(
    r"out$|resume$|overwrite$|loggers$|loader\.(?!balance$)|"
    r"trainer\.(enable_\w+|profiler|devices|num_nodes|accelerator|strategy)$"
)

MAY_MOVE = "data"  # may lie elsewhere in a continuation; whether it is the same data is compared by its content

# What every training writes, and what runs wrote before they listed it in run.json.
TRAINING = ("config.yaml", "run.json", "metrics.csv", RECORD, "checkpoints", "tensorboard")
EARLIER = (
    *(*TRAINING, WEIGHTS, AVERAGED, FULL),
    *("report.html", "masks.png", "predictions.csv", "detection.json", "export"),
)


MEND = "Repair it, or choose another --out"


class RunDirectory:
    """Paths and files of one run. Only the first process writes.

    Layout: config.yaml, run.json, metrics.csv, student.safetensors, student.json, report.html,
    checkpoints/{last,best}.ckpt, tensorboard/. What else is written into it is listed in run.json ("files"), so that
    --overwrite knows it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.info, self.metrics = path / "config.yaml", path / "run.json", path / "metrics.csv"
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self._plan: tuple[str, dict[str, Any], bool] = ("", {}, False)  # verb, configuration, whether it is resumed

    @classmethod
    def prepare(
        cls, out: str | Path, verb: str, config: dict[str, Any], *, resume: bool, overwrite: bool
    ) -> "RunDirectory":
        """Check that a run may be written here; `begin` then writes. A run that is refused in between leaves no trace.

        Raises:
            UserError: when it is not empty and neither `resume` nor `overwrite` is given, when there is nothing to
                resume, or when the configuration differs from the one to resume (naming the keys).
        """
        if resume and overwrite:
            raise UserError("--resume and --overwrite exclude each other", remedy="Give one of them")
        if not str(out):
            raise UserError("--out must name a folder", "''")
        run = cls(Path(out))
        if run.path.exists() and not run.path.is_dir():
            raise UserError("The run directory must be a directory", f"the file {run.path}", "Choose another --out")
        run._plan = (verb, config, resume)
        if not is_first_process():
            return run
        occupied = run.path.exists() and not run._is_blank()
        if resume:
            run._check_same(verb, config)
        elif occupied and not overwrite:
            raise UserError(
                "The run directory must be new or empty",
                run.path,
                "Continue the run in it with --resume, or replace it with --overwrite",
            )
        elif occupied:
            run._check_only_ours()
        parent = next(folder for folder in (run.path.absolute(), *run.path.absolute().parents) if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError("The run directory must be writable", run.path)
        return run

    def begin(self) -> None:
        """Make the directory, in place of an earlier run where that may be replaced, and write the configuration.

        Raises:
            UserError: when it cannot be written.
        """
        if not is_first_process():
            return
        verb, config, resume = self._plan
        if not resume and self.path.exists() and not self._is_blank():
            self._clear()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError("The run directory must be writable", f"{self.path} ({error.strerror})") from error
        if not resume:
            header = f"# vitdistill {verb} --config {self.config.name}\n"
            _write(self.config, header + yaml.safe_dump(config, sort_keys=False))
        elif self.config.is_file():
            before = yaml.safe_load(self.config.read_text())
            if before.get(MAY_MOVE) != config.get(MAY_MOVE):
                header = f"# vitdistill {verb} --config {self.config.name}\n"
                _write(self.config, header + yaml.safe_dump({**before, MAY_MOVE: config[MAY_MOVE]}, sort_keys=False))
        known = self.read_info()
        if resume and known.get("command"):
            self.update(resumed_by=[*known.get("resumed_by", ()), command_line()])
        else:
            self.update(command=command_line())
        self.update(verb=verb, status="running")
        self.wrote(*TRAINING)

    def _is_blank(self) -> bool:
        """Whether there is nothing to lose: an empty folder, or a run that failed before its first checkpoint."""
        if not self.path.is_dir():
            return False
        entries = {entry.name for entry in self.path.iterdir()}
        named = {self.config.name, self.info.name, "student.json", "checkpoints", "tensorboard", "wandb", SNAPSHOTS}
        never_trained = entries <= named and not any(self.checkpoints.glob("*.ckpt"))
        return not entries or (never_trained and self.config.name in entries)

    def _check_same(self, verb: str, config: dict[str, Any]) -> None:
        if not self.config.is_file():
            raise UserError("There must be a run to resume", self.path, "Start it without --resume")
        if self.read_info().get("status") == "finished":
            raise UserError("Only an unfinished run can be resumed", f"{self.path}, which is finished")
        before_verb = self.read_info().get("verb", verb)
        if before_verb != verb:
            raise UserError(f"{self.path} is a run of `{before_verb}`, which `{verb}` cannot resume")
        before = yaml.safe_load(self.config.read_text()) or {}
        found = changed_options(before, plain(config))
        changed = [f"{key} (was {old}, is {new})" for key, old, new in found if key != MAY_MOVE]
        if changed:
            raise UserError(
                "A resumed run must keep its configuration",
                "changed " + ", ".join(changed),
                "Undo these, or start a new run in another --out",
            )

    def check_data(self, source: "DataSource") -> None:
        """Refuse to resume the run on other data than it was started on.

        Raises:
            UserError: naming what changed.
        """
        before = dict(self.read_info().get("data") or {})
        record = self.path / RECORD
        if "class_names" not in before and before.get("classes") and record.is_file():
            with suppress(ValueError, AttributeError):  # a run of an earlier version; its record has the names
                before["class_names"] = json.loads(record.read_text()).get("classes")
        check_same_data(before, describe_data(source), source.train.word)

    def _check_only_ours(self) -> None:
        """Refuse to replace what no run of ours wrote."""
        if not self.path.is_dir():
            raise UserError(f"{self.path} is a file; refusing to --overwrite it", remedy="Choose another --out")
        ours = set(self.read_info().get("files", EARLIER)) if self.info.is_file() else set()
        others = [
            entry.name
            for entry in sorted(self.path.iterdir())
            if entry.name not in ours and not TEMPORARY.fullmatch(entry.name)
        ]
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            raise UserError(
                f"{self.path} contains files that no run wrote ({', '.join(others[:3])}{more}); refusing to "
                "--overwrite it",
                remedy="Choose another --out, or move them elsewhere",
            )

    def _clear(self) -> None:
        """Remove an earlier run."""
        for entry in self.path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def read_info(self) -> dict[str, Any]:
        """run.json, or an empty mapping when there is none.

        Raises:
            UserError: when it is damaged.
        """
        if not self.info.is_file():
            return {}
        try:
            found = json.loads(self.info.read_text())
        except (OSError, ValueError) as error:
            raise UserError("run.json must be whole", f"{self.info} ({' '.join(str(error).split())})", MEND) from error
        if not isinstance(found, dict):
            raise UserError("run.json must be a mapping", self.info, MEND)
        return found

    def update(self, **values: Any) -> dict[str, Any]:
        """Set keys of run.json."""
        info = {**self.read_info(), **plain(values)}
        if is_first_process():
            _write(self.info, json.dumps(info, indent=2) + "\n")
        return info

    def wrote(self, *names: str) -> None:
        """List files and folders of this directory in run.json, as written by a run."""
        listed = self.read_info().get("files", [])
        if new := [name for name in dict.fromkeys(names) if name not in listed]:
            self.update(files=[*listed, *new])

    def add_row(self, row: dict[str, float]) -> None:
        """Append one epoch to metrics.csv, adding columns as they appear."""
        rows = [*self.rows(), {name: repr(value) for name, value in row.items()}]
        self._write_rows(rows)

    def add_files(self, contents: Mapping[str, str]) -> None:
        """Write texts by their file names, and list them."""
        for name, text in contents.items():
            # Names of classes are names of folders, which need not be text in any encoding.
            write_atomically(
                self.path / name, lambda file, text=text: file.write(text.encode(errors="surrogateescape"))
            )
        self.wrote(*contents)

    def rows(self) -> list[dict[str, str]]:
        """The epochs in metrics.csv, as text."""
        if not self.metrics.is_file():
            return []
        with open(self.metrics, newline="") as file:
            return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]

    def drop_rows_from(self, epoch: int) -> None:
        """Forget epochs that a resumed run will go through again."""
        self._write_rows([row for row in self.rows() if int(row["epoch"]) < epoch])

    def _write_rows(self, rows: list[dict[str, str]]) -> None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _write(self.metrics, text.getvalue() if rows else "")


def list_in_run(*paths: Path) -> None:
    """List written files in the run.json of the run directory that they are in; those outside of runs are left alone.

    To be called by whatever writes where a run may be: reports, pictures, exported networks, predictions.
    """
    for path in paths:
        folder = next((folder for folder in path.absolute().parents if (folder / "run.json").is_file()), None)
        if folder is not None:
            with suppress(UserError):  # of a damaged run.json whoever reads the run tells
                RunDirectory(folder).wrote(path.absolute().relative_to(folder).parts[0])


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def command_line() -> str:
    """How this process was called, for the record."""
    import shlex

    arguments = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return shlex.join(arguments)


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as what YAML and JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def changed_options(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, old, new) of what a continuation must not change; a path is the same however it is written."""
    return [
        (key, old, new)
        for key, old, new in differences(before, now)
        # A run of an earlier version says nothing of a switch that it did not have.
        if not FREE.match(key) and not _same_place(old, new) and not (old is None and new is False)
        # Of an option that is a number or text, words of a command are text.
        if str(old) != str(new)
    ]


def _same_place(old: Any, new: Any) -> bool:
    """Whether two values are one path; runs of earlier versions recorded them as they were given."""
    if not (isinstance(old, str) and isinstance(new, str) and (os.path.isabs(old) or os.path.isabs(new))):
        return False
    return absolute(old) == absolute(new)


def differences(before: Any, after: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old, new) for every leaf that differs."""
    if isinstance(before, dict) or isinstance(after, dict):
        before, after = before or {}, after or {}  # nothing given is the same as an empty mapping
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        return [
            found
            for key in keys
            for found in differences(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if before == after else [(prefix, before, after)]
