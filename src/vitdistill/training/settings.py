"""Settings that every training verb shares; each field appears on the command line as `--group.field`."""

from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Literal

from vitdistill.data.images.augment import Augment
from vitdistill.errors import UserError, near


@dataclass(frozen=True)
class Optim:
    """Optimizer and learning rate schedule.

    Args:
        lr: peak learning rate for a global batch of `lr_batch` images.
        lr_batch: the global batch that `lr` is meant for; lr is scaled linearly to yours. 0 takes `lr` as it is.
        name: any optimizer of timm (adamw, sgd, lion, ...).
        weight_decay: decoupled weight decay; none on biases, norms, tokens and position embeddings.
        betas: AdamW's two momenta.
        layer_decay: learning rate factor from each block to the one before it; none gives all blocks the same rate.
        schedule: cosine decay to `min_lr`, or constant after the warm-up.
        warmup_epochs: linear warm-up from `warmup_lr`.
        warmup_lr: learning rate of the first step (not scaled by the batch).
        min_lr: learning rate of the last step (not scaled by the batch).
        clip: largest gradient norm; none does not clip.
        accumulate: batches per optimizer step.
        ema: decay of an exponential moving average of the weights; none keeps no average.
    """

    lr: float = 5e-4
    lr_batch: int = 512
    name: str = "adamw"
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    clip: float | None = None
    accumulate: int = 1
    ema: float | None = None


@dataclass(frozen=True)
class Loader:
    """Reading data.

    Args:
        workers: loader processes per device; none chooses 0 for bundled data, else one per core up to 8.
        eval_batch: validation batch per device; none takes the training batch.
        pin: copy batches through pinned memory; none does so when training on a GPU.
    """

    workers: int | None = None
    eval_batch: int | None = None
    pin: bool | None = None


@dataclass
class Settings:
    """What the training engine needs to know besides the method and the data.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per device and step.
        image_size: height and width of the student's input, in pixels.
        precision: Lightning's precision, or "auto".
        trainer: further arguments for `lightning.Trainer`.
        sampling: which frames of a video make a clip; None for images.
    """

    epochs: int
    batch_size: int
    image_size: tuple[int, int]
    seed: int = 0
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    loader: Loader = field(default_factory=Loader)
    precision: str = "auto"
    compile: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)
    sampling: Any = None  # a `data.clips.sampling.Sampling`, whose module needs torch

    def check(self) -> None:
        """Refuse values that cannot train anything, all together.

        Raises:
            UserError: naming every value out of range.
        """
        from timm.optim import list_optimizers

        broken = out_of_range(self.epochs, self.batch_size, self.optim, self.loader)
        known = [str(name) for name in list_optimizers()]
        if self.optim.name not in known:
            hint = near(self.optim.name, known)
            broken.append(f"optim.name must be one of timm's optimizers, not {self.optim.name!r}. {hint}")
        if broken:
            raise UserError("; ".join(broken))
        check_trainer_arguments(self.trainer)


def out_of_range(epochs: int, batch_size: int, optim: Optim, loader: Loader) -> list[str]:
    """What is wrong with the numbers, in words; needs no torch."""
    rules = {
        f"epochs must be at least 1, not {epochs}": epochs >= 1,
        f"batch_size must be at least 1, not {batch_size}": batch_size >= 1,
        f"optim.accumulate must be at least 1, not {optim.accumulate}": optim.accumulate >= 1,
        f"optim.lr must be positive, not {optim.lr}": optim.lr > 0,
        f"optim.ema must lie in (0, 1), not {optim.ema}": optim.ema is None or 0 < optim.ema < 1,
        f"optim.layer_decay must lie in (0, 1], not {optim.layer_decay}": (
            optim.layer_decay is None or 0 < optim.layer_decay <= 1
        ),
        f"loader.workers must be 0 or more, not {loader.workers}": (loader.workers or 0) >= 0,
        f"loader.eval_batch must be at least 1, not {loader.eval_batch}": (
            loader.eval_batch is None or loader.eval_batch >= 1
        ),
    }
    return [rule for rule, holds in rules.items() if not holds]


# Arguments of Lightning's Trainer that have a name of their own here.
_OURS = {
    "max_epochs": "--epochs",
    "gradient_clip_val": "--optim.clip",
    "accumulate_grad_batches": "--optim.accumulate",
    "precision": "--precision",
    "default_root_dir": "--out",
    "callbacks": None,
    "logger": None,
    "plugins": None,
    "enable_checkpointing": None,
}


def check_trainer_arguments(arguments: dict[str, Any]) -> None:
    """Refuse unknown arguments of Lightning's Trainer, and those that this package sets itself.

    Raises:
        UserError: with near names, or the option to use instead.
    """
    from lightning.pytorch import Trainer

    known = [name for name in signature(Trainer.__init__).parameters if name != "self"]
    for name in arguments:
        if name in _OURS:
            raise UserError(
                f"--trainer.{name} is set by vitdistill", remedy=f"Use {_OURS[name]}" if _OURS[name] else "Leave it out"
            )
        if name not in known:
            raise UserError("--trainer takes arguments of lightning.Trainer", repr(name), near(name, known))
