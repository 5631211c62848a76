"""What a run will take: room on the disk, said before its first step, and time, said once some steps were timed."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch

from vitdistill.methods.options import training_forwards
from vitdistill.runs.directory import RunDirectory
from vitdistill.training.disk import Footprint, in_words, warn_of_full_disk
from vitdistill.training.progress import ProgressBar
from vitdistill.training.timing import StepTiming


class Estimate(pl.Callback):
    """A warning where the disk is too full; and one line after some timed steps: the time of all that is left,
    validation included, and the bytes written.

    Runs of less than a minute say nothing. A sample in validation is taken for a forward pass of those that one in
    training counts as (two with averaged weights) until a validation was seen; from then on it is measured, with all
    else that happens between two epochs.
    """

    STEPS = 20  # that are timed, behind the warm-up of `StepTiming`
    SHORT = 60.0  # seconds

    def __init__(self, bar: ProgressBar, written: Footprint, run: RunDirectory, validated: int) -> None:
        """
        Args:
            bar: above which the line stands on a terminal.
            written: what the run leaves on the disk.
            run: its directory.
            validated: samples that one validation sees.
        """
        self.bar, self.written, self.run, self.validated = bar, written, run, validated
        self._seen = self._timed = 0
        self._seconds = 0.0
        self._last: float | None = None  # end of the step before, in the same epoch
        self._epoch_end: float | None = None
        self._between: float | None = None  # from the last step of an epoch to the first of the next

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:  # before the bar begins
        warn_of_full_disk(self.written, self.run)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._epoch_end, self._last = self._last, None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._timed >= self.STEPS or self._last is not None:
            return
        self._last = time.perf_counter()
        if self._epoch_end is not None:
            self._between = self._last - self._epoch_end

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._timed >= self.STEPS or self._last is None:
            return
        self._seen += 1
        # The device is waited for where the timing begins and where it ends.
        if pl_module.device.type == "cuda" and self._seen in (StepTiming.WARM_UP, StepTiming.WARM_UP + self.STEPS):
            torch.cuda.synchronize(pl_module.device)
        now = time.perf_counter()
        if self._seen > StepTiming.WARM_UP:
            self._seconds += now - self._last
            self._timed += 1
        self._last = now
        if self._timed == self.STEPS and trainer.is_global_zero:
            self._say(trainer, pl_module, batch_idx)

    def _say(self, trainer: pl.Trainer, pl_module: Any, batch_idx: int) -> None:
        step = self._seconds / self._timed
        epochs = pl_module.settings.epochs - trainer.current_epoch
        steps = epochs * min(int(trainer.num_training_batches), len(pl_module._sampler)) - batch_idx - 1
        seconds = step * steps + epochs * self._after_epoch(trainer, pl_module, step)
        if seconds < self.SHORT:
            return
        which = f"{epochs} epoch{'s' if epochs > 1 else ''}"
        which = which if trainer.current_epoch == 0 else f"the {which} left"
        rate = self.bar.samples_per_step / step
        shown = f"{rate:.{0 if rate >= 10 else 1}f} {self.bar.unit}/s"
        self._print(
            f"about {duration(seconds)} for {which} ({shown}), "
            f"validation included; {in_words(self.written.total)} will be written in {self.run.path}"
        )

    def _after_epoch(self, trainer: pl.Trainer, pl_module: Any, step: float) -> float:
        """Seconds of validation, and whatever else comes between epochs where that was seen."""
        if self._between is not None:
            return self._between
        if not sum(map(float, trainer.num_val_batches)):
            return 0.0
        passes = 1 if pl_module.settings.optim.ema is None else 2
        every = trainer.check_val_every_n_epoch or 1
        share = passes / training_forwards(pl_module.method.student.trains_body)
        return share * step * self.validated / self.bar.samples_per_step / every

    def _print(self, line: str) -> None:
        if self.bar.bar is not None:
            self.bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> duration(11400)
        '3 h 10 min'
    """
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{max(1, minutes)} min"
    hours = minutes // 60
    if hours < 48:
        return f"{hours} h {minutes % 60} min"
    days, hours = divmod(round(minutes / 60), 24)
    return f"{days} days {hours} h"
