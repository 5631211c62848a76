"""The student's weights at some points of a training, to see afterwards how its attention became what it is."""

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from vitdistill.files import SNAPSHOTS
from vitdistill.models.record import ModelRecord
from vitdistill.runs.directory import RunDirectory
from vitdistill.training.checkpoints import export_weights, student_weights


def snapshot_epochs(count: int, epochs: int) -> tuple[int, ...]:
    """After how many epochs snapshots are taken: the first before any step, the last at the end.

    They stand closer together early, where a student's attention changes most: at squares of equal steps.

    Args:
        count: of snapshots, 2 to `epochs` + 1.
        epochs: of the training.

    Example:
        >>> snapshot_epochs(6, 300)
        (0, 12, 48, 108, 192, 300)
    """
    found: list[int] = []
    for step in range(count):
        epoch = round(epochs * (step / (count - 1)) ** 2)
        found.append(max(epoch, found[-1] + 1) if found else epoch)
    return tuple(found)


def snapshot_file(folder: Path, epoch: int) -> Path:
    """The file of the weights after so many epochs, in a run directory."""
    return folder / SNAPSHOTS / f"epoch-{epoch:03d}.safetensors"


class KeepSnapshots(pl.Callback):
    """Writes RUN/snapshots/epoch-XXX.safetensors: the student's weights after XXX epochs, under timm's names.

    A snapshot is written before the epoch's checkpoint, so that a kill in between only repeats it. Files of sharded
    weights are whole.

    Example:
        >>> trainer.callbacks.append(KeepSnapshots(run, snapshot_epochs(6, 300)))
    """

    def __init__(self, run: RunDirectory, epochs: tuple[int, ...]) -> None:
        """
        Args:
            run: its directory, in which the record of the student lies.
            epochs: after how many epochs; none of them writes nothing.
        """
        self.run, self.epochs = run, epochs

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not self.epochs or pl_module.position != (0, 0):
            return
        if trainer.is_global_zero:  # of a run that failed before its first checkpoint
            shutil.rmtree(self.run.path / SNAPSHOTS, ignore_errors=True)
            self.run.wrote(SNAPSHOTS)
        self._write(trainer, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._write(trainer, trainer.current_epoch + 1)

    def _write(self, trainer: pl.Trainer, epoch: int) -> None:
        if epoch not in self.epochs:
            return
        state = trainer.strategy.lightning_module_state_dict()  # collective where weights are sharded
        if trainer.is_global_zero:
            record = ModelRecord.read(self.run.path)
            export_weights(student_weights(state), snapshot_file(self.run.path, epoch), record)
