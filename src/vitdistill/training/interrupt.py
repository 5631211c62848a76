"""Ctrl-C and SIGTERM in training: finish the step, save, say how to go on."""

import subprocess
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from vitdistill.signals import Interrupted, asked, end_with, install, stop_after

EVERY = 10  # steps, or batches of validation, after which several processes ask each other
SOON = 30  # seconds that the other processes get to end by themselves


class StopBetweenSteps(pl.Callback):
    """Turns SIGINT or SIGTERM into a checkpoint at the next step's end, or the next batch's of a validation.

    Attributes:
        agreed: whether any process was asked to stop; the same in all of them.
        saved: whether the training is in a checkpoint up to where it was stopped.
    """

    def __init__(self, last: Path, trainer: pl.Trainer) -> None:
        """
        Args:
            last: the checkpoint to write.
            trainer: the one that this is a callback of.
        """
        self.last = last
        self.agreed = self.saved = False
        self._steps = 0  # since this process began
        # Lightning puts a handler of its own before ours just before the training starts. It would signal the other
        # processes again, and wait for them in the middle of a step.
        connector = trainer._signal_connector
        register = connector.register_signal_handlers

        def register_and_install() -> None:
            register()
            install()

        connector.register_signal_handlers = register_and_install  # type: ignore[method-assign]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.world_size > 1:
            stop_after("the first step and a checkpoint")  # from here on, none can end without the others

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        several = f" (up to {EVERY} with several processes)" if trainer.world_size > 1 else ""
        stop_after(f"this step{several} and a checkpoint")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        several = trainer.world_size > 1
        step, rest = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        # Gradients of half an accumulated step are in no checkpoint. Several processes must agree to stop, which
        # costs a message, so they ask only now and then.
        if rest or (several and self._steps and step % EVERY):
            return
        self._steps += 1
        # After an epoch's last step comes its validation, and its checkpoint.
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or not self._agree(trainer):
            return
        pl_module.on_train_batch_end(outputs, batch, batch_idx)  # ours runs after the callbacks': bring it forward
        self._save(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            stop_after("this batch of the validation and a checkpoint")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            stop_after("the epoch's checkpoint")

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking or (trainer.world_size > 1 and batch_idx % EVERY):
            return
        if self._agree(trainer):
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._agree(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.agreed:  # while the epoch before was saved
            self.saved = True
            raise Interrupted

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.validating:
            # What this validation has counted is in no checkpoint. Lightning takes it up again where it finds the
            # first batch begun and not done, and then begins it anew.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress.update(total=dict(begun), current=dict(begun), is_last_batch=False)

    def _save(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.check_finite(weights=True)
        trainer.save_checkpoint(self.last)
        self.saved = True
        raise Interrupted

    def _agree(self, trainer: pl.Trainer) -> bool:
        several = trainer.world_size > 1
        self.agreed = trainer.strategy.reduce_boolean_decision(asked(), all=False) if several else asked()
        return self.agreed


def watch_others(trainer: pl.Trainer) -> None:
    """Have the processes that this one has started end with it, when it is stopped on the spot."""

    def kill() -> None:
        for process in _launched(trainer):
            process.kill()

    end_with(kill)


def end_others(trainer: pl.Trainer, *, by_themselves: bool) -> None:
    """Wait for the processes that this one has started, before it ends.

    Args:
        trainer: whose strategy has started them.
        by_themselves: whether they have all agreed to stop; otherwise they are killed, as they would wait for this one.
    """
    started = _launched(trainer)
    processes = list(started)
    if by_themselves:
        started.clear()  # Lightning watches this list, and kills this process when one in it ends with a status
    for process in processes:
        try:
            process.wait(SOON if by_themselves else 0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _launched(trainer: pl.Trainer) -> list[Any]:
    return getattr(trainer.strategy.launcher, "procs", [])
