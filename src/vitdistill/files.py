"""Files: written whole or not at all, and by the first process of a distributed run alone."""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitdistill.errors import UserError, near

# What a run leaves of its networks.
WEIGHTS, RECORD = "student.safetensors", "student.json"
AVERAGED = "student_ema.safetensors"
FULL = "mae.safetensors"  # encoder and decoder of a run of `mae`
SNAPSHOTS = "snapshots"  # folder of the student's weights at some points of the training

SHOWN = 5  # how many runs a message names
# Names of files that a killed process may leave behind.
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(binary file)` on a temporary neighbour of `path`, then rename it to `path`.

    Raises:
        UserError: when writing fails; the temporary file is removed and `path` is as it was.
    """
    # Not the process's number: on a shared disk two machines may have the same.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().int}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = _writing_error(error)
        if cause is None:
            raise
        rule = f"{path} must be writable" + ("; the earlier one is intact" if path.exists() else "")
        reason, remedy = str(cause).splitlines()[0], ""
        if not isinstance(cause, OSError) or cause.errno in (errno.ENOSPC, errno.EDQUOT):
            parent = next(folder for folder in path.absolute().parents if folder.is_dir())
            reason += f" ({shutil.disk_usage(parent).free / 2**30:.1f} GiB free)"
            remedy = "Make room; a training goes on with --resume"
        raise UserError(rule, reason, remedy) from error


def _writing_error(error: BaseException) -> OSError | RuntimeError | None:
    """What a failure to write was caused by; None where it has another cause, such as a signal."""
    # torch's zip writer turns a full disk into a RuntimeError, and other RuntimeErrors may come by while it writes.
    if isinstance(error, RuntimeError):
        context = error.__context__
        return context if isinstance(context, OSError) else error if "enforce fail" in str(error) else None
    return error if isinstance(error, OSError) else None


def check_path(path: str) -> None:
    """Refuse a path that names nothing by itself; that there is a file is for its reader to say.

    Raises:
        UserError: for an empty path.
    """
    if not path.strip():
        raise UserError("A path must name a file or a folder", repr(path))


def runs_beside(path: Path) -> str:
    """What to say of a run that is not there: near names, or the runs that lie where it was looked for.

    Example:
        >>> runs_beside(Path("runs/dmeo"))
        "Did you mean 'runs/demo'?"
    """
    folder = path.parent
    if not folder.is_dir():
        there = next((parent for parent in folder.parents if parent.is_dir()), Path())
        return f"There is no folder {folder.name} in {there.resolve()}"
    runs = sorted(str(folder / entry.name) for entry in folder.iterdir() if is_run(entry))
    if close := near(str(path), runs):
        return close
    more = f" and {len(runs) - SHOWN} more" if len(runs) > SHOWN else ""
    where = "here" if folder == Path() else f"in {folder}"
    return f"The runs {where} are {', '.join(map(repr, runs[:SHOWN]))}{more}" if runs else f"There are no runs {where}"


def is_run(folder: Path) -> bool:
    """Whether a folder holds what a run writes."""
    return any((folder / name).is_file() for name in (RECORD, "run.json", "config.yaml"))


def absolute(path: str) -> str:
    """A path that holds wherever the process goes, with `~` as the user's folder."""
    return os.path.abspath(os.path.expanduser(path))


def started_by_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun (`python -m torch.distributed.run`) started this process."""
    return "TORCHELASTIC_RUN_ID" in environment


def started_by_slurm(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `srun` started this process as one of a job's tasks; in an interactive job it did not."""
    return "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def is_first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process may write: the first of a distributed run, or the only one.

    The innermost launcher knows: torchrun may run as a task of SLURM, and there number the nodes otherwise.

    Args:
        environment: the process's variables.

    Example:
        >>> is_first_process({"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"})
        True
    """

    def number(name: str) -> int:
        return int(environment.get(name) or 0)

    if "RANK" in environment:  # of all processes: torchrun's, and the convention of torch
        return number("RANK") == 0
    if started_by_slurm(environment):
        return number("SLURM_PROCID") == 0
    # Started by Lightning, which is itself started on every node.
    return number("LOCAL_RANK") == 0 and number("NODE_RANK" if "NODE_RANK" in environment else "GROUP_RANK") == 0


def check_exist(paths: Iterable[str]) -> None:
    """Refuse paths that lead nowhere, in milliseconds.

    Raises:
        UserError: naming up to three of them.
    """
    missing = [repr(str(path)) for path in paths if not Path(path).expanduser().exists()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError("Files and folders must exist", f"{', '.join(missing[:3])}{more}, which do not")


def readable(path: str) -> str:
    """A path as text that can be printed and written; what is not in the system's encoding is replaced."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
