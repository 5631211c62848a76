"""The moving average of a network: weights bit for bit as `lerp`, buffers too, and through a checkpoint."""

import copy

import pytest
import torch
from torch import nn

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.methods.mvd import MVD, FeatureDecoder
from vitdistill.models.build import build
from vitdistill.models.ema import moving_average
from vitdistill.models.families.video_vit import video_vit


def moved(net: nn.Module, seed: int) -> None:
    """As after an optimizer step: every parameter somewhere else."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def test_parameters_are_interpolated_bit_for_bit():
    network = build(tiny("vit"))
    average = moving_average(network, 0.7)
    expected = [parameter.detach().clone() for parameter in network.parameters()]
    for step in range(3):
        moved(network.net, step)
        average.update(network)
        for own, new in zip(expected, network.parameters(), strict=True):
            own.lerp_(new.detach(), 1 - 0.7)
    assert all(torch.equal(a, b) for a, b in zip(average.module.parameters(), expected, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(expected, network.parameters(), strict=True))


def test_buffers_follow_the_network(images):
    """The statistics of a BatchNorm, of which a copy of the parameters alone knows nothing."""
    net = build("test_resnet", args={"num_classes": 10}).net.train()
    average = moving_average(net, 0.5)
    net(images)
    average.update(net)
    batch_norm, followed = net.bn1, average.module.bn1
    torch.testing.assert_close(followed.running_mean, 0.5 * batch_norm.running_mean)
    torch.testing.assert_close(followed.running_var, 0.5 + 0.5 * batch_norm.running_var)
    assert int(followed.num_batches_tracked) == int(batch_norm.num_batches_tracked) == 1


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5, -0.1])
def test_decays_out_of_range_are_refused(decay):
    with pytest.raises(UserError, match=rf"must lie in \(0, 1\); got {decay}"):
        moving_average(nn.Linear(2, 2), decay)


def test_half_precision_needs_no_random_state_that_a_checkpoint_lacks():
    first, second = (nn.Linear(64, 64, bias=False, dtype=torch.bfloat16) for _ in range(2))
    second.load_state_dict(first.state_dict())
    averages = [moving_average(net, 0.9) for net in (first, second)]
    moved(first, 1), moved(second, 1)
    averages[0].update(first)
    resumed = moving_average(second, 0.9)
    resumed.load_state_dict(averages[0].state_dict())
    averages[0].update(first)
    resumed.update(second)
    assert torch.equal(averages[0].module.weight, resumed.module.weight)


def bootstrapped(decay: float) -> MVD:
    torch.manual_seed(0)
    student = video_vit(img_size=32, patch_size=8, frames=4, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    return MVD(student, bootstrap=decay, decoder=FeatureDecoder(width=32, depth=1, heads=2))


def test_a_bootstrapped_teacher_is_part_of_the_methods_state():
    method = bootstrapped(0.9)
    moved(method.student.net, 5)
    method.after_step(0.5)
    assert method.average is not None and method.teachers[0].backbone is method.average.module
    state = copy.deepcopy(method.state_dict())
    assert any(name.startswith("average.module.") for name in state)
    again = bootstrapped(0.9)
    again.load_state_dict(state)
    moved(method.student.net, 6), moved(again.student.net, 6)
    method.after_step(0.6), again.after_step(0.6)
    assert again.average is not None
    resumed = again.average.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in method.average.state_dict().items())
    assert not any(parameter.requires_grad for parameter in method.average.parameters())
