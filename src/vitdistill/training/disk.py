"""How many bytes a training leaves on the disk, known before its first step."""

import logging
import shutil
from dataclasses import dataclass

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from vitdistill.files import is_first_process
from vitdistill.methods.method import Method
from vitdistill.runs.directory import RunDirectory
from vitdistill.training.settings import Optim

log = logging.getLogger(__name__)

SIDE = 64  # of the matrix on which an optimizer is tried
STATES = 2.0  # per parameter, of an optimizer that cannot be tried: AdamW's


@dataclass(frozen=True)
class Footprint:
    """Bytes of what a run writes. Metrics, reports and TensorBoard's files are left out: they are small.

    Attributes:
        checkpoint: one of them.
        checkpoints: how many are kept: the last, and the best where there is a score.
        exported: weights at the end.
        fixed: a frozen body, written once.
        snapshots: weights at some points of the training.
    """

    checkpoint: int
    checkpoints: int
    exported: int
    fixed: int = 0
    snapshots: int = 0

    @property
    def total(self) -> int:
        """What is there in the end."""
        return self.fixed + self.checkpoint * self.checkpoints + self.exported + self.snapshots

    @property
    def most(self) -> int:
        """What there must be room for: a checkpoint is written beside the one that it replaces."""
        kept = self.fixed + self.checkpoint * self.checkpoints + self.snapshots
        return kept + max(self.checkpoint, self.exported)


def footprint(method: Method, optim: Optim, snapshots: int = 0) -> Footprint:
    """What training a method will write, by its parameters, its optimizer and its averages.

    Args:
        method: before a strategy takes it to pieces.
        optim: which optimizer, and whether weights are averaged.
        snapshots: how many the student leaves during the training.

    Example:
        >>> footprint(method, Optim(ema=0.9999)).total
        1224736768
    """
    state = method.state_dict()
    student = _bytes(method.student.net.state_dict())
    averaged = 0 if optim.ema is None else student
    trained = sum(_size(parameter) for parameter in method.parameters() if parameter.requires_grad)
    fixed = _bytes(method.student.fixed())
    exported = student + averaged + sum(_bytes(weights) for weights in method.artifacts(state).values())
    exported += fixed * (1 if optim.ema is None else 2)
    checkpoint = _bytes(state) + averaged + round(trained * states_per_parameter(optim))
    return Footprint(checkpoint, 1 if method.task is None else 2, exported, fixed, snapshots * student)


def states_per_parameter(optim: Optim) -> float:
    """Numbers that an optimizer keeps for each that it trains: 2 of AdamW, 1 of momentum; tried on one matrix."""
    matrix = nn.Parameter(torch.zeros(SIDE, SIDE))
    try:
        optimizer = create_optimizer_v2([matrix], opt=optim.name, lr=1e-3)
        matrix.grad = torch.ones_like(matrix)
        optimizer.step()
    except Exception:  # some need a GPU, or a closure; the number is only to be said
        return STATES
    kept = [value for value in optimizer.state[matrix].values() if isinstance(value, Tensor)]
    return sum(_size(value) for value in kept) / _size(matrix)


def warn_of_full_disk(footprint: Footprint, run: RunDirectory) -> None:
    """Warn in the first process where the disk has less room than a run will take; what it replaces counts as room."""
    if not is_first_process():
        return
    try:
        free = shutil.disk_usage(run.path).free
        room = free + sum(file.stat().st_size for file in run.checkpoints.glob("*.ckpt"))
    except OSError:  # a file system that does not say
        return
    if room < footprint.most:
        log.warning(
            "The disk of %s has %s free, and the run will take up to %s of it (%d checkpoints of %s, and one that "
            "replaces another); make room, or choose another --out",
            *(run.path, in_words(free), in_words(footprint.most), footprint.checkpoints),
            in_words(footprint.checkpoint),
        )


def in_words(size: int) -> str:
    """Bytes as people say them.

    Example:
        >>> in_words(1224736768)
        '1.2 GB'
    """
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if size >= scale:
            return f"{size / scale:.{0 if size >= 10 * scale else 1}f} {unit}"
    return f"{max(1, round(size / 1000))} kB"


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(_size(tensor) for tensor in tensors.values())


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
