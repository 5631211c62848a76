"""The numbers of a run as columns of a table: the last epoch of metrics.csv, and what run.json says of its cost."""

from collections.abc import Mapping
from typing import Any

from vitdistill.runs.read import Run

# Column -> where run.json has it, and what it is called.
FIGURES: dict[str, tuple[str, str]] = {
    "seconds": ("seconds", "seconds of training"),
    "epochs": ("epochs", "epochs"),
    "student_params": ("student.params", "student parameters"),
    "student_gmacs": ("cost.student_gmacs_full_per_image", "student MACs / input"),
    "teacher_gmacs": ("cost.teacher_gmacs_per_image", "teacher MACs / input"),
    "teacher_gmacs_total": ("cost.teacher_gmacs_total", "teacher MACs in all"),
    "teacher_saved": ("cost.saved_fraction", "share of the teacher's cost saved"),
    "kept": ("tokens.kept", "patches the teacher sees"),
    "images_per_s": ("speed.images_per_s", "inputs / s"),
    "step_ms": ("speed.step_ms", "ms / step"),
    "teacher_ms": ("speed.teacher_ms", "teacher ms / step"),
    "peak_memory_gib": ("peak_memory_gib", "peak memory, GiB"),
}
# Of metrics.csv, before the name of a metric; `best/` is the best epoch's score, which is chosen by what it is told on.
METRICS = ("val", "ema", "best", "teacher", "train")
NO_COLUMNS = ("epoch", "step")
PARTS = {
    "val": "",
    "ema": "average's ",
    "best": "best epoch's ",
    "teacher": "teacher's training ",
    "train": "training ",
}


def row_of(run: Run) -> dict[str, float]:
    """The columns of a run that have a value.

    Example:
        row_of(read_run("runs/small"))["val/top1"]
    """
    row = {name: column[-1] for name, column in run.metrics.items() if name not in NO_COLUMNS and column}
    row |= {name: run.number(key) for name, (key, _) in FIGURES.items()}
    row["teacher_gmacs"] = run.teacher_gmacs
    if run.score is not None:
        row[f"best/{run.score}"] = run.number(f"accuracy.best_{run.score}")
    return {name: value for name, value in row.items() if value is not None}


def score_of(run: Run) -> str:
    """The column that says how good a run is: its score on validation, or the loss where there are no labels."""
    return "val/loss" if run.score is None else f"val/{run.score}"


def heading(column: str, metrics: Mapping[str, Any]) -> str:
    """What a column is called.

    Args:
        column: its name.
        metrics: headings of metrics, by name.

    Example:
        >>> heading("knn/top1", {"top1": "top-1 %"}), heading("val/loss", {}), heading("seconds", {})
        ('knn top-1 %', 'loss', 'seconds of training')
    """
    if column in FIGURES:
        return FIGURES[column][1]
    first, separator, rest = column.partition("/")
    if not separator:
        return column
    metric = f"{metrics.get(rest, rest)}"
    return f"{PARTS.get(first, f'{first} ')}{metric}"
