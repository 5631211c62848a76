"""Optimizer and schedule, both timm's."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler

from vitdistill.methods.method import Method
from vitdistill.training.settings import Optim


def scaled_lr(optim: Optim, global_batch: int) -> float:
    """Peak learning rate for a global batch (linear scaling rule; DeiT: lr * batch / 512)."""
    return optim.lr * global_batch / optim.lr_batch if optim.lr_batch else optim.lr


def make_optimizer(method: Method, optim: Optim, global_batch: int) -> torch.optim.Optimizer:
    """timm's optimizer over the student, with its rules for weight decay and layer decay, and over what else learns.

    Parameters of the method outside the student (projections, decoders) get the peak rate and no layer decay.
    """
    lr = scaled_lr(optim, global_batch)
    options: dict[str, Any] = {"betas": tuple(optim.betas)} if optim.name.startswith("adam") else {}
    optimizer = create_optimizer_v2(
        method.student.net,
        opt=optim.name,
        lr=lr,
        weight_decay=optim.weight_decay,
        layer_decay=optim.layer_decay,
        **options,
    )
    own = {id(parameter) for parameter in method.student.net.parameters()}
    extra = [p for p in method.parameters() if p.requires_grad and id(p) not in own]
    for decay, group in (
        (optim.weight_decay, [p for p in extra if p.ndim > 1]),
        (0.0, [p for p in extra if p.ndim <= 1]),
    ):
        if group:
            optimizer.add_param_group({"params": group, "weight_decay": decay, "lr": lr})
    return optimizer


def make_schedule(optimizer: torch.optim.Optimizer, optim: Optim, epochs: int, steps_per_epoch: int) -> Scheduler:
    """Warm-up and cosine decay, updated every optimizer step (timm's per-epoch schedule, interpolated)."""
    steps = max(1, epochs * steps_per_epoch)
    warmup = min(round(optim.warmup_epochs * steps_per_epoch), steps - 1)
    if optim.schedule == "constant":
        # A cosine whose floor is its peak: the warm-up stays.
        peaks = [group["lr"] for group in optimizer.param_groups]
        floor: float = min(peaks)
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
