"""What a person sees while a run is under way: samples per second, time left, loss, accuracy."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vitdistill.tasks.task import Task


class ProgressBar(pl.Callback):
    """One bar over the whole training on a terminal; one line per epoch elsewhere."""

    def __init__(self, samples_per_step: int, unit: str, task: Task | None) -> None:
        """
        Args:
            samples_per_step: of all devices.
            unit: what they are called: images, videos, ...
            task: whose score to show; None shows the loss alone.
        """
        self.samples_per_step, self.unit = samples_per_step, unit
        # By the metrics' column: what stands before its value.
        self.shown = {} if task is None else {f"val/{task.score}": task.columns[task.score].removesuffix(" %")}
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.epochs = 0
        self._epoch_start = self._epoch_end = 0.0
        self._epoch_steps = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.epochs = pl_module.settings.epochs
        self._epoch_start = time.perf_counter()
        if not trainer.is_global_zero or not self.console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn(f"{{task.fields[rate]}} {self.unit}/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[scores]}"),
            console=self.console,
            refresh_per_second=4,
        )
        total = pl_module.settings.epochs * len(pl_module._sampler)
        self.task = self.bar.add_task("", total=total, epoch="0", rate="-", scores="")
        self.bar.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._epoch_start = time.perf_counter()
        self._epoch_steps = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._epoch_steps += 1
        self._epoch_end = time.perf_counter()
        if self.bar is not None:
            self.bar.update(
                self.task,
                completed=trainer.current_epoch * len(pl_module._sampler) + batch_idx + 1,
                epoch=f"{trainer.current_epoch + 1}/{self.epochs}",
                rate=f"{self._rate():.0f}",
            )

    def on_row(self, row: dict[str, float]) -> None:
        """Show an epoch's scores."""
        scores = f"loss {row['train/loss']:.3f}"
        scores += "".join(f"  {name} {row[column]:.1f}%" for column, name in self.shown.items() if column in row)
        scores += teacher_words(row)
        if self.bar is not None:
            self.bar.update(self.task, scores=scores)
        else:
            print(
                f"epoch {row['epoch'] + 1}/{self.epochs}  {scores}  {self._rate():.0f} {self.unit}/s",
                file=sys.stderr,
                flush=True,
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _rate(self) -> float:
        return self._epoch_steps * self.samples_per_step / max(self._epoch_end - self._epoch_start, 1e-9)


def teacher_words(row: dict[str, float]) -> str:
    """How the teacher fares on training batches, and, where it is masked, how often it agrees with the whole one.

    Example:
        >>> teacher_words({"teacher/top1": 64.31, "teacher/agreement": 71.0})
        '  masked teacher 64.3%, agrees with the whole 71%'
    """
    if "teacher/top1" not in row:
        return ""
    if "teacher/agreement" not in row:
        return f"  teacher {row['teacher/top1']:.1f}%"
    return f"  masked teacher {row['teacher/top1']:.1f}%, agrees with the whole {row['teacher/agreement']:.0f}%"
