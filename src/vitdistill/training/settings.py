"""Settings that every training verb shares; each field appears on the command line as `--group.field`."""

from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Literal, get_args

from vitdistill.data.images.augment import Augment
from vitdistill.data.images.views import MultiCrop
from vitdistill.errors import UserError, near
from vitdistill.training.loggers import DEFAULT

Schedule = Literal["cosine", "constant", "step", "multistep", "poly", "wsd"]
# The options that belong to some schedules only, and to which.
SCHEDULE_OPTIONS: dict[str, tuple[Schedule, ...]] = {
    "min_lr": ("cosine", "poly", "wsd"),
    "decay_epochs": ("step", "multistep", "wsd"),
    "decay_rate": ("step", "multistep"),
    "power": ("poly",),
}


@dataclass(frozen=True)
class Optim:
    """Optimizer and learning rate schedule.

    Args:
        lr: peak learning rate for a global batch of `lr_batch` images.
        lr_batch: the global batch that `lr` is meant for; lr is scaled linearly to yours. 0 takes `lr` as it is.
        name: any optimizer of timm (adamw, sgd, lion, ...).
        weight_decay: decoupled weight decay; none on biases, norms, tokens and position embeddings (`dino` decays the
            last two as well).
        weight_decay_end: weight decay of the last step, to which it goes along a cosine (DINO: 0.04 to 0.4); none
            keeps `weight_decay` throughout.
        betas: momenta of the optimizer; none takes its own (AdamW: 0.9, 0.999).
        layer_decay: learning rate factor from each block to the one before it; none gives all blocks the same rate.
        schedule: how the rate falls after the warm-up: cosine or poly to `min_lr`; constant; step and multistep
            by `decay_rate` at `decay_epochs`; wsd (warm-up, stable, decay) to `min_lr` at the end only.
        warmup_epochs: linear warm-up from `warmup_lr`; a part of the epochs, and may be a fraction.
        warmup_lr: learning rate of the first step (not scaled by the batch).
        min_lr: learning rate of the last step (not scaled by the batch).
        decay_epochs: of step, the epochs from one decay to the next; of multistep, those after which it decays
            ([10,20]); of wsd, how many epochs at the end it falls (none: a fifth).
        decay_rate: of step and multistep, the factor at each decay.
        power: of poly, the exponent: (1 - share of training)^power (Segmenter: 0.9).
        clip: largest gradient norm; none does not clip.
        clip_each: largest norm of each parameter's own gradient (DINO: 3); none does not clip them one by one.
        accumulate: batches per optimizer step.
        ema: decay of an exponential moving average of the weights; none keeps no average.
    """

    lr: float = 5e-4
    lr_batch: int = 512
    name: str = "adamw"
    weight_decay: float = 0.05
    weight_decay_end: float | None = None
    betas: tuple[float, ...] | None = None
    layer_decay: float | None = None
    schedule: Schedule = "cosine"
    warmup_epochs: float = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    decay_epochs: float | tuple[float, ...] | None = None
    decay_rate: float = 0.1
    power: float = 0.9
    clip: float | None = None
    clip_each: float | None = None
    accumulate: int = 1
    ema: float | None = None

    @property
    def milestones(self) -> tuple[float, ...]:
        """`decay_epochs` as one or several numbers."""
        epochs = self.decay_epochs
        return () if epochs is None else (epochs,) if isinstance(epochs, int | float) else tuple(epochs)


@dataclass(frozen=True)
class Loader:
    """Reading data.

    Args:
        workers: loader processes per device; none chooses 0 for bundled data, else one per core up to 8.
        eval_batch: validation batch per device; none takes the training batch.
        pin: copy batches through pinned memory; none does so when training on a GPU.
        bad_share: share of the files that may be unreadable; more stop the run. In small sets up to 3 files are borne,
            but no more than a quarter; 0 bears none.
        balance: draw the classes evenly, however many images each has; an epoch has as many batches as without.
    """

    workers: int | None = None
    eval_batch: int | None = None
    pin: bool | None = None
    bad_share: float = 0.01
    balance: bool = False


@dataclass
class Settings:
    """What the training engine needs to know besides the method and the data.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per device and step.
        precision: Lightning's precision, or "auto".
        trainer: further arguments for `lightning.Trainer`.
        loggers: names of those that get the numbers of every epoch.
        optim_default: what the verb takes where no option is given. An option that has no effect is refused only where
            it differs from this.
        stride: of clips, frames from one to the next; None chooses by the data.
        sampling: of clips, dense or uniform; None is dense.
        several: several crops of each image in place of one.
        snapshots: at how many points of the training the student's weights are kept; None is none.
    """

    epochs: int
    batch_size: int
    seed: int = 0
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    loader: Loader = field(default_factory=Loader)
    precision: str = "auto"
    compile: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)
    loggers: tuple[str, ...] = (DEFAULT,)
    optim_default: Optim = field(default_factory=Optim)
    stride: int | None = None
    sampling: str | None = None
    several: MultiCrop | None = None
    snapshots: int | None = None

    def check(self) -> None:
        """Refuse values that cannot train anything, all together.

        Raises:
            UserError: naming every value out of range.
        """
        broken = out_of_range(self.epochs, self.batch_size, self.optim, self.loader, self.snapshots)
        broken += without_effect(self.optim, self.optim_default)
        broken += _optimizer_errors(self.optim, self.optim_default)
        if broken:
            raise UserError("; ".join(broken))
        check_trainer_arguments(self.trainer)


def out_of_range(epochs: int, batch_size: int, optim: Optim, loader: Loader, snapshots: int | None = None) -> list[str]:
    """What is wrong with the numbers, in words; needs no torch."""
    rules = {
        f"epochs must be at least 1, not {epochs}": epochs >= 1,
        f"batch_size must be at least 1, not {batch_size}": batch_size >= 1,
        f"--optim.accumulate must be at least 1, not {optim.accumulate}": optim.accumulate >= 1,
        f"--optim.lr must be positive, not {optim.lr}": optim.lr > 0,
        f"--optim.ema must lie in (0, 1), not {optim.ema}": optim.ema is None or 0 < optim.ema < 1,
        f"--optim.layer_decay must lie in (0, 1], not {optim.layer_decay}": (
            optim.layer_decay is None or 0 < optim.layer_decay <= 1
        ),
        f"--optim.weight_decay must be 0 or more, not {optim.weight_decay}": optim.weight_decay >= 0,
        f"--optim.weight_decay_end must be 0 or more, not {optim.weight_decay_end}": (optim.weight_decay_end or 0) >= 0,
        f"--optim.warmup_epochs must be 0 or more, not {optim.warmup_epochs}": optim.warmup_epochs >= 0,
        f"--optim.warmup_lr must be 0 or more, not {optim.warmup_lr}": optim.warmup_lr >= 0,
        f"--optim.min_lr must be 0 or more, not {optim.min_lr}": optim.min_lr >= 0,
        f"--optim.decay_rate must lie in (0, 1], not {optim.decay_rate}": 0 < optim.decay_rate <= 1,
        f"--optim.clip must be positive, or null for none, not {optim.clip}": optim.clip is None or optim.clip > 0,
        f"--optim.clip_each must be positive, or null for none, not {optim.clip_each}": (
            optim.clip_each is None or optim.clip_each > 0
        ),
        f"--optim.power must be positive, not {optim.power}": optim.power > 0,
        f"--optim.schedule must be one of {', '.join(get_args(Schedule))}, not {optim.schedule!r}": (
            optim.schedule in get_args(Schedule)
        ),
        f"loader.workers must be 0 or more, not {loader.workers}": (loader.workers or 0) >= 0,
        f"loader.eval_batch must be at least 1, not {loader.eval_batch}": (
            loader.eval_batch is None or loader.eval_batch >= 1
        ),
        f"--snapshots must lie between 2 and {epochs + 1} (start and end included), not {snapshots}": (
            snapshots is None or 2 <= snapshots <= epochs + 1
        ),
        f"loader.bad_share must lie in [0, 1], not {loader.bad_share}": 0 <= loader.bad_share <= 1,
    }
    return [rule for rule, holds in rules.items() if not holds] + _decay_epochs_errors(optim, epochs)


def _decay_epochs_errors(optim: Optim, epochs: int) -> list[str]:
    kind, given = optim.schedule, optim.milestones
    fits = all(number > 0 for number in given)
    if kind == "step":
        needs, fits = "one number of epochs above 0", fits and len(given) == 1
    elif kind == "multistep":
        needs, fits = "epochs above 0 in ascending order ([10,20])", fits and given != () and given == _ascending(given)
    elif kind == "wsd" and given:
        left = epochs - optim.warmup_epochs
        needs, fits = (
            f"at most the {left:g} epochs behind the warm-up, or null",
            fits and len(given) == 1 and given[0] <= left,
        )
    else:
        return []
    return [] if fits else [f"--optim.decay_epochs of the schedule {kind} must be {needs}, not {optim.decay_epochs}"]


def _ascending(numbers: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sorted(set(numbers)))


def without_effect(optim: Optim, default: Optim = Optim()) -> list[str]:
    """Options that the chosen schedule does not look at, in words; needs no torch.

    Args:
        optim: what was asked for.
        default: what the verb takes where nothing is asked for.
    """
    plain = Optim()
    unused = [
        f"--optim.{name} has no effect unless --optim.schedule is {' or '.join(schedules)}"
        for name, schedules in SCHEDULE_OPTIONS.items()
        if optim.schedule not in schedules
        and getattr(optim, name) not in (getattr(default, name), getattr(plain, name))
    ]
    if optim.weight_decay_end is not None and not optim.weight_decay:
        unused.append("--optim.weight_decay_end has no effect unless --optim.weight_decay is above 0")
    return unused


def _optimizer_errors(optim: Optim, default: Optim) -> list[str]:
    """What timm's registry says against the optimizer and its betas."""
    from timm.optim import get_optimizer_info, list_optimizers

    known = [str(name) for name in list_optimizers()]
    if optim.name not in known:
        return [f"--optim.name must be one of timm's optimizers, not {optim.name!r}. {near(optim.name, known)}"]
    if get_optimizer_info(optim.name).second_order:
        return [f"--optim.name {optim.name} needs second derivatives, which training does not compute; choose another"]
    if optim.betas is None:
        return []
    info, betas = get_optimizer_info(optim.name), list(optim.betas)
    if not info.has_betas:
        given = default.betas is None or betas != list(default.betas)
        return [f"--optim.betas has no effect on {optim.name}, which has none; leave it out"] if given else []
    if len(betas) != info.num_betas or not all(0 <= beta < 1 for beta in betas):
        return [f"--optim.betas of {optim.name} must be {info.num_betas} numbers in [0, 1) or null, not {betas}"]
    return []


# Arguments of Lightning's Trainer that have a name of their own here.
_OURS = {
    "max_epochs": "--epochs",
    "gradient_clip_val": "--optim.clip",
    "accumulate_grad_batches": "--optim.accumulate",
    "precision": "--precision",
    "default_root_dir": "--out",
    "callbacks": None,
    "logger": "--loggers",
    "plugins": None,
    "enable_checkpointing": None,
}


def refuse_ours(arguments: dict[str, Any]) -> None:
    """Refuse arguments of Lightning's Trainer that this package sets itself; needs no torch.

    Raises:
        UserError: with the option to use instead.
    """
    for name in arguments:
        if name in _OURS:
            raise UserError(
                f"--trainer.{name} is set by vitdistill", remedy=f"Use {_OURS[name]}" if _OURS[name] else "Leave it out"
            )


def check_trainer_arguments(arguments: dict[str, Any]) -> None:
    """Refuse unknown arguments of Lightning's Trainer, and those that this package sets itself.

    Raises:
        UserError: with near names, or the option to use instead.
    """
    from lightning.pytorch import Trainer

    known = [name for name in signature(Trainer.__init__).parameters if name != "self"]
    refuse_ours(arguments)
    for name in arguments:
        if name not in known:
            raise UserError("--trainer takes arguments of lightning.Trainer", repr(name), near(name, known))
