"""Learning rates as the recipe says."""

import math
from itertools import pairwise

import pytest
import timm
import torch

from vitdistill.methods.supervised import Supervised
from vitdistill.training.optim import make_optimizer, make_schedule, plan_groups, scaled_lr
from vitdistill.training.settings import Optim, Settings, check_trainer_arguments


@pytest.fixture
def method() -> Supervised:
    return Supervised(
        timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=12, depth=3, num_heads=2, num_classes=4
        )
    )


def optimizer_for(method: Supervised, optim: Optim, global_batch: int) -> torch.optim.Optimizer:
    return make_optimizer(method, plan_groups(method, optim), optim, global_batch)


def test_groups_are_planned_before_a_wrapper_flattens_the_parameters(method: Supervised) -> None:
    groups = plan_groups(method, Optim(weight_decay=0.1))

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._fsdp_wrapped_module = method

    for parameter in method.parameters():
        parameter.data = parameter.data.flatten()
    optimizer = make_optimizer(Wrapped(), groups, Optim(weight_decay=0.1), 512)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(method.student.net.head.weight)] == 0.1
    assert decays[id(method.student.net.head.bias)] == 0.0


def test_linear_scaling() -> None:
    assert scaled_lr(Optim(lr=5e-4, lr_batch=512), 1024) == pytest.approx(1e-3)
    assert scaled_lr(Optim(lr=5e-4, lr_batch=0), 1024) == 5e-4


def test_every_parameter_is_optimised_once_and_biases_do_not_decay(method: Supervised) -> None:
    optimizer = optimizer_for(method, Optim(weight_decay=0.1), 512)
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(grouped) == len({id(parameter) for parameter in grouped}) == len(list(method.parameters()))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            tokens = parameter is method.student.net.pos_embed or parameter is method.student.net.cls_token
            assert group["weight_decay"] == (0.0 if parameter.ndim <= 1 or tokens else 0.1)


def test_layer_decay_slows_the_early_blocks(method: Supervised) -> None:
    optimizer = optimizer_for(method, Optim(layer_decay=0.5), 512)
    schedule = make_schedule(optimizer, Optim(layer_decay=0.5, warmup_epochs=0), epochs=2, steps_per_epoch=5)
    schedule.step_update(1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    blocks = [rates[id(block.attn.qkv.weight)] for block in method.student.net.blocks]
    assert blocks[1] / blocks[0] == pytest.approx(2) and blocks[2] / blocks[1] == pytest.approx(2)


def test_warm_up_then_cosine_to_the_minimum(method: Supervised) -> None:
    optim = Optim(lr=1.0, lr_batch=0, warmup_epochs=2, warmup_lr=0.1, min_lr=0.01)
    optimizer = optimizer_for(method, optim, 1)
    schedule = make_schedule(optimizer, optim, epochs=10, steps_per_epoch=10)
    seen = []
    for step in range(101):
        schedule.step_update(step)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen[0] == pytest.approx(0.1) and seen[10] == pytest.approx(0.55)
    assert seen[50] == pytest.approx(0.01 + 0.5 * 0.99 * (1 + math.cos(math.pi * 0.5)))
    assert seen[100] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(seen[20:]))


def test_constant_schedule_stays(method: Supervised) -> None:
    optim = Optim(lr=0.3, lr_batch=0, warmup_epochs=1, warmup_lr=0.0, schedule="constant")
    optimizer = optimizer_for(method, optim, 1)
    schedule = make_schedule(optimizer, optim, epochs=5, steps_per_epoch=4)
    schedule.step_update(17)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3)


def test_settings_report_every_broken_rule_together() -> None:
    from vitdistill.errors import UserError

    settings = Settings(epochs=0, batch_size=0, optim=Optim(lr=-1.0, ema=2.0))
    with pytest.raises(UserError) as error:
        settings.check()
    for word in ("epochs", "batch_size", "optim.lr", "optim.ema"):
        assert word in str(error.value)


def test_trainer_arguments_are_checked_against_lightning() -> None:
    from vitdistill.errors import UserError

    check_trainer_arguments({"devices": 8, "num_nodes": 4, "strategy": "fsdp"})
    with pytest.raises(UserError, match="'strategy'"):
        check_trainer_arguments({"stratgy": "ddp"})
    with pytest.raises(UserError, match="--epochs"):
        check_trainer_arguments({"max_epochs": 3})


def test_an_optimizer_step_changes_the_student(method: Supervised) -> None:
    optimizer = optimizer_for(method, Optim(), 512)
    before = method.student.net.head.weight.clone()
    method(torch.randn(2, 3, 16, 16), torch.tensor([0, 3])).loss.backward()
    optimizer.step()
    assert not torch.equal(before, method.student.net.head.weight)
