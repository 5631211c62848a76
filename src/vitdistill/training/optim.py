"""Optimizer and schedules, both timm's."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from vitdistill.errors import UserError, error_words
from vitdistill.methods.method import Method
from vitdistill.training.settings import SCHEDULE_OPTIONS, Optim

log = logging.getLogger(__name__)


def scaled_lr(optim: Optim, global_batch: int) -> float:
    """Peak learning rate for a global batch (linear scaling rule; DeiT: lr * batch / 512)."""
    return optim.lr * global_batch / optim.lr_batch if optim.lr_batch else optim.lr


@dataclass
class Group:
    """Parameters by name that share their options (weight decay, layer-wise rate)."""

    names: list[str]
    options: dict[str, Any] = field(default_factory=dict)


def plan_groups(method: Method, optim: Optim) -> list[Group]:
    """Which parameters decay, and how fast each layer learns: timm's rules for the student, the same for the rest.

    Made before a strategy wraps the method: FSDP flattens parameters, and the rules look at their dimensions.

    The rules are timm's (`param_groups_weight_decay` and `param_groups_layer_decay`, which `create_optimizer_v2`
    calls with what the network says of itself). Of these only names and options are kept. They take a whole module,
    so what belongs to the method outside the student (projections, decoders) is grouped here; it has no layer decay.
    """
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    rules = create_optimizer_v2(
        method.student.net, opt="sgd", lr=1.0, weight_decay=optim.weight_decay, layer_decay=optim.layer_decay
    )
    groups = [
        Group(
            [names[id(parameter)] for parameter in group["params"]],
            {key: group[key] for key in ("weight_decay", "lr_scale") if key in group},
        )
        for group in rules.param_groups
    ]
    if method.decays_positions:
        groups = [part for group in groups for part in _by_dimensions(method, group, optim.weight_decay)]
    planned = {name for group in groups for name in group.names}
    rest = [(name, p) for name, p in method.named_parameters() if p.requires_grad and name not in planned]
    decayed = {name for name, p in rest if p.ndim > 1 and not name.endswith("_token")}
    groups.append(Group([name for name, _ in rest if name in decayed], {"weight_decay": optim.weight_decay}))
    groups.append(Group([name for name, _ in rest if name not in decayed], {"weight_decay": 0.0}))
    return [group for group in groups if group.names]


def _by_dimensions(method: nn.Module, group: Group, weight_decay: float) -> list[Group]:
    """A group as two: parameters of two or more dimensions, which decay, and the others, which do not."""
    dimensions = {name: parameter.ndim for name, parameter in method.named_parameters()}
    parts = ([n for n in group.names if dimensions[n] > 1], [n for n in group.names if dimensions[n] < 2])
    return [
        Group(names, {**group.options, "weight_decay": decay})
        for names, decay in zip(parts, (weight_decay, 0.0), strict=True)
        if names
    ]


@torch.no_grad()
def clip_each(parameters: Iterable[nn.Parameter], most: float) -> None:
    """Scale down the gradient of every parameter whose norm is above `most`, each by itself (DINO).

    The global norm, by which `--optim.clip` goes, lets one large gradient shrink all others.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for gradient, norm in zip(gradients, torch._foreach_norm(gradients), strict=True):
        gradient.mul_((most / (norm + 1e-6)).clamp(max=1.0))


def make_optimizer(method: nn.Module, groups: list[Group], optim: Optim, global_batch: int) -> torch.optim.Optimizer:
    """timm's optimizer by name over planned groups, whatever has wrapped the method since."""
    wrappers = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in method.named_parameters():
        for wrapper in wrappers:
            name = name.replace(wrapper, "")
        parameters[name] = parameter
    # timm leaves them out where the optimizer has none.
    options: dict[str, Any] = {} if optim.betas is None else {"betas": tuple(optim.betas)}
    try:
        return create_optimizer_v2(
            [{"params": [parameters[name] for name in group.names], **group.options} for group in groups],
            opt=optim.name,
            lr=scaled_lr(optim, global_batch),
            weight_decay=optim.weight_decay,
            **options,
        )
    except (AssertionError, ImportError) as error:  # those of APEX and bitsandbytes need a GPU and their packages
        rule = f"The optimizer --optim.name {optim.name} must be usable on this machine"
        raise UserError(rule, error_words(error), "Choose another") from error


def make_schedules(
    optimizer: torch.optim.Optimizer, optim: Optim, epochs: int, steps_per_epoch: int
) -> list[Scheduler]:
    """Schedules of the learning rate and, if asked for, the weight decay, to be updated after every optimizer step.

    Args:
        optimizer: whose groups are changed.
        optim: which schedule.
        epochs: of the whole training, the warm-up included.
        steps_per_epoch: optimizer steps.

    Example:
        >>> schedules = make_schedules(optimizer, Optim(schedule="poly", power=0.9), epochs=10, steps_per_epoch=100)
        >>> for schedule in schedules:
        ...     schedule.step_update(num_updates=steps_done)
    """
    steps = max(1, epochs * steps_per_epoch)
    warmup = min(round(optim.warmup_epochs * steps_per_epoch), steps - 1)
    peak = max(float(group["lr"]) for group in optimizer.param_groups)
    decays = [max(1, round(epoch * steps_per_epoch)) for epoch in optim.milestones]
    if optim.schedule == "wsd":
        decays = [min(*decays, steps - warmup) if decays else max(1, round(0.2 * (steps - warmup)))]
    # timm counts in epochs; here one of its epochs is one step, so that none of its products is rounded.
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=optim.schedule,
        num_epochs=steps,
        warmup_epochs=warmup,
        warmup_lr=min(optim.warmup_lr, peak),
        min_lr=min(optim.min_lr, peak),
        decay_epochs=decays[0] if decays else None,
        decay_milestones=[step + 1 for step in decays],  # timm decays at the step before each of these
        decay_rate=optim.power if optim.schedule == "poly" else optim.decay_rate,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    decay = [] if optim.weight_decay_end is None else [WeightDecaySchedule(optimizer, optim.weight_decay_end, steps)]
    return [schedule, *decay]


class WeightDecaySchedule(Scheduler):
    """Weight decay along a cosine from each group's own to `end` (DINO, Caron et al., 2021); groups without keep none.

    timm's schedules are of the learning rate: its cosine sets no other field, and multiplies by a layer's rate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, end: float, steps: int) -> None:
        self.end, self.steps = end, steps
        super().__init__(optimizer, param_group_field="weight_decay", t_in_epochs=False)

    def _get_lr(self, t: int) -> list[float]:
        left = 0.5 * (1 + math.cos(math.pi * min(t, self.steps) / self.steps))
        return [self.end + (start - self.end) * left if start else 0.0 for start in self.base_values]

    def update_groups(self, values: float | list[float]) -> None:
        assert isinstance(values, list)
        for group, value in zip(self.optimizer.param_groups, values, strict=True):
            group["weight_decay"] = value


def warn_about_rates(optim: Optim, epochs: int, global_batch: int, batches: int | None = None) -> None:
    """Warn where the learning rate cannot be as asked.

    `warmup_lr` and `min_lr`, which the batch does not scale, may be above the peak, which it does; the warm-up may take
    the whole training; the rate may be meant to fall only after its end; and an epoch may have fewer batches than an
    optimizer step takes.

    Args:
        optim: what was asked for.
        epochs: of the training.
        global_batch: images of one optimizer step.
        batches: of an epoch; None is not known.
    """
    peak = scaled_lr(optim, global_batch)
    for name in ("warmup_lr", "min_lr"):
        looked_at = optim.warmup_epochs > 0 if name == "warmup_lr" else optim.schedule in SCHEDULE_OPTIONS[name]
        if looked_at and getattr(optim, name) > peak:
            log.warning(
                "--optim.%s %g is above the peak learning rate of %g (for a global batch of %d), which replaces it; "
                "lower --optim.%s, or raise --optim.lr",
                *(name, getattr(optim, name), peak, global_batch, name),
            )
    if optim.warmup_epochs >= epochs:
        log.warning(
            "The warm-up of %g epochs takes all of the %d, so the learning rate never gets to its peak; "
            "set --optim.warmup_epochs",
            *(optim.warmup_epochs, epochs),
        )
    late = [epoch for epoch in optim.milestones if epoch >= epochs]
    if late and optim.schedule in ("step", "multistep"):
        log.warning(
            "--optim.decay_epochs %g is not before the end of the training after %d epochs, so the learning rate does "
            "not fall there; set --optim.decay_epochs",
            *(late[0], epochs),
        )
    if batches is not None and optim.accumulate > batches:
        log.warning(
            "--optim.accumulate %d is above the %d batches of an epoch, at whose end the optimizer steps in any case: "
            "the learning rate is scaled for larger steps than there are; lower --optim.accumulate",
            *(optim.accumulate, batches),
        )
