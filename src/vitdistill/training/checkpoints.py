"""Checkpoints that survive a pulled plug: written beside the old one, then renamed; loaded without running code."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from safetensors.torch import save

from vitdistill.errors import UserError
from vitdistill.files import is_first_process, write_atomically
from vitdistill.models.families.linear_only import FrozenBody
from vitdistill.models.network import Network
from vitdistill.models.record import WEIGHTS, ModelRecord


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file in the same folder, flushes it to disk, and renames it over the old one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """
        Raises:
            UserError: when the disk is full or refuses; the earlier checkpoint is as it was.
        """
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content: tensors and plain values only.

    Raises:
        UserError: when there is none, or it is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError("There must be a checkpoint to continue from", path, "Start the run without --resume") from None
    except Exception as error:
        raise UserError("The checkpoint must be whole", f"{path} ({str(error).splitlines()[0][:160]})") from error


def load_student(path: str | Path) -> Network:
    """The student of `RUN/checkpoints/*.ckpt`, built as `RUN/student.json` says.

    Raises:
        UserError: when the checkpoint or the record of its architecture is missing, or they are of different networks.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("The run must have this checkpoint", path, _remedy(path))
    return student_with(student_weights(read_checkpoint(path)["state_dict"]), path.parent.parent, path)


def student_with(weights: dict[str, torch.Tensor], run: Path, source: Path) -> Network:
    """The student of a run, built as `RUN/student.json` says, with weights that its training left.

    Args:
        weights: of the student, without a frozen body; that is read from where the run's start left it.
        run: the run directory.
        source: of the weights, for messages.

    Raises:
        UserError: when the record or the body is missing, or they are of another network.
    """
    from vitdistill.models.build import rebuild
    from vitdistill.models.weights.read import load_into

    student = rebuild(ModelRecord.read(run))
    if isinstance(student, FrozenBody):
        _load_body(student, run / "checkpoints" / BODY)
    load_into(student.net, weights, str(source))
    return student


def _remedy(missing: Path) -> str:
    """What to evaluate in place of a checkpoint that is not there."""
    there = [name for name in ("last", "best") if missing.with_name(f"{name}.ckpt").is_file()]
    there += ["exported"] if (missing.parent.parent / WEIGHTS).is_file() else []
    if not there:
        return f"Continue its run with `vitdistill resume {missing.parent.parent}`"
    why = "Only runs that validate on labels have a best one. " if missing.name == "best.ckpt" else ""
    return f"{why}Use --checkpoint {' or '.join(there)}"


def keep_body(student: Network, folder: Path, *, resume: bool) -> None:
    """Write a frozen body once, beside the checkpoints, which leave it out; or take it up again from there.

    A resumed run so has the body that it was started with, whatever has become of where that came from.

    Args:
        student: of which nothing is written unless it has a frozen body.
        folder: of the checkpoints.
        resume: whether the run goes on from a checkpoint.
    """
    if not isinstance(student, FrozenBody):
        return
    if resume:
        _load_body(student, folder / BODY)
    elif is_first_process():
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in student.fixed().items()})
        write_atomically(folder / BODY, lambda file: file.write(content))


def _load_body(student: FrozenBody, path: Path) -> None:
    from vitdistill.models.weights.read import read_weights

    if not path.is_file():
        raise UserError("Checkpoints of a linear-only run need the body that was written at its start", f"no {path}")
    student.load_fixed(read_weights(path), path)


BODY = "body.safetensors"
STUDENT = "method.student.net."


def student_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The student's own tensors out of a training module's state dict, under the network's own names."""
    return {name[len(STUDENT) :]: tensor for name, tensor in state.items() if name.startswith(STUDENT)}


def export_weights(weights: dict[str, torch.Tensor], path: Path, record: ModelRecord | None = None) -> None:
    """Write a student's tensors under timm's names as safetensors.

    Args:
        weights: by name.
        path: of the file.
        record: of the network, for the file's header: the file then says by itself what its tensors do not show.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    content = save(tensors, metadata=None if record is None else record.metadata())
    write_atomically(path, lambda file: file.write(content))


class SaveCheckpoints(Checkpoint):
    """`last.ckpt` after every epoch and `best.ckpt` whenever the task's validation score rises."""

    def __init__(self, folder: Path) -> None:
        self.last, self.best_path = folder / "last.ckpt", folder / "best.ckpt"
        self.best = float("-inf")
        self.best_epoch = -1

    @property
    def state_key(self) -> str:
        return "SaveCheckpoints"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        task = pl_module.method.task
        score = None if task is None else pl_module.row.get(f"val/{task.score}")
        if score is not None and score > self.best:
            self.best, self.best_epoch = score, trainer.current_epoch
            trainer.save_checkpoint(self.best_path)  # before `last`, so that a kill in between only repeats it
        trainer.save_checkpoint(self.last)
