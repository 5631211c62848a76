"""Optimizer and schedule, both timm's."""

from dataclasses import dataclass, field
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from vitdistill.methods.method import Method
from vitdistill.training.settings import Optim


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
    Parameters of the method outside the student (projections, decoders) get no layer decay.
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
    planned = {name for group in groups for name in group.names}
    rest = [(name, p) for name, p in method.named_parameters() if p.requires_grad and name not in planned]
    decayed = {name for name, p in rest if p.ndim > 1 and not name.endswith("_token")}
    groups.append(Group([name for name, _ in rest if name in decayed], {"weight_decay": optim.weight_decay}))
    groups.append(Group([name for name, _ in rest if name not in decayed], {"weight_decay": 0.0}))
    return [group for group in groups if group.names]


def make_optimizer(method: nn.Module, groups: list[Group], optim: Optim, global_batch: int) -> torch.optim.Optimizer:
    """timm's optimizer by name over planned groups, whatever has wrapped the method since."""
    wrappers = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in method.named_parameters():
        for wrapper in wrappers:
            name = name.replace(wrapper, "")
        parameters[name] = parameter
    options: dict[str, Any] = {"betas": tuple(optim.betas)} if optim.name.startswith("adam") else {}
    return create_optimizer_v2(
        [{"params": [parameters[name] for name in group.names], **group.options} for group in groups],
        opt=optim.name,
        lr=scaled_lr(optim, global_batch),
        weight_decay=optim.weight_decay,
        **options,
    )


def make_schedule(optimizer: torch.optim.Optimizer, optim: Optim, epochs: int, steps_per_epoch: int) -> Scheduler:
    """Warm-up and cosine decay, updated every optimizer step (timm's per-epoch schedule, interpolated)."""
    steps = max(1, epochs * steps_per_epoch)
    warmup = min(round(optim.warmup_epochs * steps_per_epoch), steps - 1)
    if optim.schedule == "constant":
        # A cosine whose floor is its peak: the warm-up stays.
        floor = min(float(group["lr"]) for group in optimizer.param_groups)
    else:
        floor = optim.min_lr
    return CosineLRScheduler(
        optimizer,
        t_initial=steps,
        lr_min=floor,
        warmup_t=warmup,
        warmup_lr_init=optim.warmup_lr,
        t_in_epochs=False,
    )
