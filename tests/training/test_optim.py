"""Learning rates as the recipe says."""

import pytest
import timm
import torch

from vitdistill.errors import UserError
from vitdistill.methods.supervised import Supervised
from vitdistill.training.optim import clip_each, make_optimizer, make_schedules, plan_groups, scaled_lr
from vitdistill.training.settings import Optim, Settings


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
    (schedule,) = make_schedules(optimizer, Optim(layer_decay=0.5, warmup_epochs=0), epochs=2, steps_per_epoch=5)
    schedule.step_update(1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    blocks = [rates[id(block.attn.qkv.weight)] for block in method.student.net.blocks]
    assert blocks[1] / blocks[0] == pytest.approx(2) and blocks[2] / blocks[1] == pytest.approx(2)


@pytest.mark.parametrize(
    ("name", "betas", "expected"),
    [
        ("adamw", None, (0.9, 0.999)),
        ("adamw", (0.9, 0.95), (0.9, 0.95)),
        ("lion", None, (0.9, 0.99)),
        ("lion", (0.8, 0.9), (0.8, 0.9)),
        ("lamb", (0.8, 0.9), (0.8, 0.9)),
        ("adan", (0.9, 0.8, 0.7), (0.9, 0.8, 0.7)),
    ],
)
def test_betas_reach_every_optimizer_that_has_them(method: Supervised, name: str, betas, expected) -> None:
    optim = Optim(name=name, betas=betas)
    Settings(epochs=10, batch_size=1, optim=optim).check()
    assert {tuple(group["betas"]) for group in optimizer_for(method, optim, 1).param_groups} == {expected}


def test_an_optimizer_for_gpus_alone_is_one_line(method: Supervised) -> None:
    if torch.cuda.is_available():
        pytest.skip("it is usable here")
    with pytest.raises(UserError, match="--optim.name fusedadam must be usable on this machine; got CUDA required"):
        optimizer_for(method, Optim(name="fusedadam"), 1)


def test_an_optimizer_step_changes_the_student(method: Supervised) -> None:
    optimizer = optimizer_for(method, Optim(), 512)
    before = method.student.net.head.weight.clone()
    method(torch.randn(2, 3, 16, 16), torch.tensor([0, 3])).loss.backward()
    optimizer.step()
    assert not torch.equal(before, method.student.net.head.weight)


def test_gradients_are_clipped_each_by_itself() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3,), (2, 2), (4,), (1,))]
    for parameter, norm in zip(parameters, (6.0, 1.0, 3.0), strict=False):
        parameter.grad = torch.full_like(parameter, norm / parameter.numel() ** 0.5)
    clip_each(parameters, 3.0)
    norms = [round(float(parameter.grad.norm()), 5) for parameter in parameters[:3]]
    assert norms == [3.0, 1.0, 3.0] and parameters[3].grad is None


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_positions_and_tokens_decay_where_the_method_says_so(method: Supervised, layer_decay: float | None) -> None:
    method.decays_positions = True
    groups = plan_groups(method, Optim(weight_decay=0.1, layer_decay=layer_decay))
    decay = {name: group.options["weight_decay"] for group in groups for name in group.names}
    assert decay == {name: 0.1 if p.ndim > 1 else 0.0 for name, p in method.named_parameters()}
    scales = {name: group.options.get("lr_scale") for group in groups for name in group.names}
    assert (scales["student.net.pos_embed"] is None) == (layer_decay is None)
