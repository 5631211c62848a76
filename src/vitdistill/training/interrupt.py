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
        self.asked = False
        self._before: dict[int, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # With several processes they must agree, which costs a message: ask only every tenth step.
        several = trainer.world_size > 1
        if several and batch_idx % 10:
            return
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # gradients of half a step are in no checkpoint
        stop = trainer.strategy.reduce_boolean_decision(self.asked, all=False) if several else self.asked
        if not stop or pl_module.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return  # an epoch's end saves by itself; see on_train_epoch_end
        pl_module.check_finite()
        pl_module.on_train_batch_end(outputs, batch, batch_idx)  # ours runs after the callbacks': bring it forward
        trainer.save_checkpoint(self.last)
        raise Interrupted

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        several = trainer.world_size > 1
        self.asked = trainer.strategy.reduce_boolean_decision(self.asked, all=False) if several else self.asked

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.asked:  # the epoch that was under way when the signal came is saved
            raise Interrupted
