"""How long steps take, and how much of it is waiting for data."""

import time
from typing import Any

import lightning.pytorch as pl
import torch


class StepTiming(pl.Callback):
    """Feeds the module's clock with each epoch's wall time and waiting for data; the first steps warm up uncounted.

    The device is waited for once, at an epoch's last step, so that work still queued then is counted.
    """

    WARM_UP = 3

    def __init__(self) -> None:
        self._seen = self._steps = 0
        self._opened = self._ended = self._data = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._opened = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        self._seen += 1
        if self._seen == self.WARM_UP + 1:
            pl_module.clock.reset()
            self._opened = 0.0
        if self._opened == 0.0:
            self._opened, self._steps, self._data = now, 0, 0.0
        else:
            self._data += now - self._ended
        self._steps += 1

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and self._seen > self.WARM_UP:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            pl_module.clock.add("wall", (time.perf_counter() - self._opened) * 1e3)
            pl_module.clock.add("data", self._data * 1e3)
            pl_module.steps_timed += self._steps
        self._ended = time.perf_counter()
