"""Ctrl-C and SIGTERM: finish the step, save, say how to go on."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl


class Interrupted(BaseException):
    """Raised after a signal, once the checkpoint is written."""


class StopBetweenSteps(pl.Callback):
    """Turns the first SIGINT or SIGTERM into a checkpoint at the next step's end; a second one stops at once."""

    def __init__(self, last: Path) -> None:
        self.last = last
        self.asked = self.agreed = False
        self._before: dict[int, Any] = {}

    # Lightning installs handlers of its own after on_fit_start; theirs would end the run without a checkpoint.
    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        several = trainer.world_size > 1
        step, rest = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        # Gradients of half an accumulated step are in no checkpoint. Several processes must agree to stop, which
        # costs a message, so they ask only every tenth step.
        if rest or (several and step % 10):
            return
        self._agree(trainer)
        if not self.agreed or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return  # an epoch's end saves by itself; the next one does not start
        pl_module.check_finite(weights=True)
        pl_module.on_train_batch_end(outputs, batch, batch_idx)  # ours runs after the callbacks': bring it forward
        trainer.save_checkpoint(self.last)
        raise Interrupted

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._agree(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.agreed:  # the epoch that was under way when the signal came is saved
            raise Interrupted

    def _agree(self, trainer: pl.Trainer) -> None:
        """Whether any process was asked to stop; the same answer in all of them."""
        several = trainer.world_size > 1
        self.agreed = trainer.strategy.reduce_boolean_decision(self.asked, all=False) if several else self.asked
