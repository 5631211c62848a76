"""Grey networks: what they take, and teachers that take other channels than their students."""

import pytest
import timm
import torch

from tiny import SMALL, tiny
from vitdistill.data import Augment, ViewOptions, open_source
from vitdistill.errors import UserError
from vitdistill.models.families import as_network
from vitdistill.models.teacher import Teacher
from vitdistill.types import InputSpec

GREY, RGB = ((0.4,), (0.2,)), ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_network_says_which_channels_it_takes(family, channels):
    spec = as_network(tiny(family, in_chans=channels)).input
    assert spec.shape == (channels, 32, 32) and len(spec.mean) == len(spec.std) == channels


def test_a_cnn_says_it_too_and_a_grey_one_has_the_mean_of_the_statistics():
    spec = as_network(timm.create_model("resnet10t", in_chans=1, num_classes=2)).input
    assert spec.shape[0] == 1 and spec.mean == pytest.approx((0.449,), abs=1e-3)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("recipe", ["deit", "tiny", "none"])
def test_transforms_give_what_the_network_takes(train, recipe):
    samples, options = open_source("digits").train, ViewOptions(augment=Augment(recipe=recipe, color_jitter=0.2))
    made = [
        samples.transform(InputSpec((n, 16, 16), *stats), options, train=train) for n, stats in ((1, GREY), (3, RGB))
    ]
    image = samples.load(0)[0]
    assert [transform(image).shape for transform in made] == [(1, 16, 16), (3, 16, 16)] == [one.shape for one in made]
    with pytest.raises(UserError, match="3 channels or 1; got in_chans 2"):
        samples.transform(InputSpec((2, 16, 16), (0.5,) * 2, (0.5,) * 2), options, train=train)


def test_a_grey_students_inputs_become_rgb_for_its_teacher():
    grey = torch.rand(2, 1, 32, 32)
    teacher = Teacher(as_network(tiny("vit")), mean=(0.4,), std=(0.2,))
    own = teacher.network.input
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (own.mean, own.std))
    expected = teacher.network((grey.expand(-1, 3, -1, -1) - mean) / std).prediction
    assert torch.allclose(teacher((grey - 0.4) / 0.2).prediction, expected, atol=1e-4)


def test_a_students_rgb_becomes_luma_for_its_grey_teacher():
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in RGB)
    teacher = Teacher(as_network(tiny("vit", in_chans=1)), mean=RGB[0], std=RGB[1])
    luma = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    own = teacher.network.input
    expected = teacher.network((luma - own.mean[0]) / own.std[0]).prediction
    assert torch.allclose(teacher((images - mean) / std).prediction, expected, atol=1e-4)


def test_equal_statistics_do_not_hide_that_channels_differ():
    teacher = Teacher(as_network(tiny("vit")), mean=(0.5,), std=(0.5,))
    assert teacher.network.input.mean == (0.5,) * 3
    assert teacher(torch.rand(1, 1, 32, 32)).prediction.shape == (1, 10)


def test_other_channels_are_one_line():
    student = as_network(timm.create_model("vit_tiny_patch16_224", in_chans=4, **SMALL))
    with pytest.raises(UserError, match=r"the same channels.*got 4 channels, and 3"):
        Teacher.of(as_network(tiny("vit")), student)
