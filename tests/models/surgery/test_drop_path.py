"""Stochastic depth of a built network: every rate of every family, as timm builds it."""

import pytest
import timm
import torch
from timm.layers import DropPath, calculate_drop_path_rates
from torch import nn

from tiny import tiny
from vitdistill.data.open import open_source
from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.models.surgery.classifier import finetunable
from vitdistill.models.surgery.drop_path import constant_but_last, drop_path_rates, rising, set_drop_path
from vitdistill.verbs.common import make_student

SWIN = {"depths": (2, 2, 4, 2), "num_heads": (1, 2, 3, 3), "img_size": 64, "window_size": 2, "embed_dim": 12}


def dropped(net: nn.Module) -> list[float]:
    """The rate of every drop path module, in the network's order."""
    return [module.drop_prob for module in net.modules() if isinstance(module, DropPath)]


def test_every_stage_of_swin_rises_in_order():
    swin = build("swin_tiny_patch4_window7_224", args=SWIN)
    set_drop_path(swin, 0.27)
    rates = [0.0, 0.03, 0.06, 0.09, 0.12, 0.15, 0.18, 0.21, 0.24, 0.27]
    assert drop_path_rates(swin) == pytest.approx(rates)
    assert dropped(swin.net) == pytest.approx([rate for rate in rates[1:] for _ in range(2)])
    set_drop_path(swin, 0.0)
    assert drop_path_rates(swin) == [0.0] * 10 and dropped(swin.net) == []


def test_cait_drops_its_whole_trunk_at_one_rate_and_no_class_attention():
    cait = build(tiny("cait"))
    assert len(cait.net.blocks) == 3 and len(cait.net.blocks_token_only) == 2
    cait = finetunable(cait, 10, drop_path=0.2)
    assert drop_path_rates(cait) == [0.2, 0.2, 0.2, 0.0, 0.0] and dropped(cait.net) == [0.2] * 3


def test_a_vit_keeps_the_rates_of_earlier_runs_bit_for_bit():
    vit = build(tiny("vit", depth=12))
    set_drop_path(vit, 0.1)
    assert drop_path_rates(vit) == [0.1 * block / 11 for block in range(12)]
    assert [type(block.drop_path1) for block in vit.blocks] == [nn.Identity] + [DropPath] * 11
    assert rising(0.1, 12) == pytest.approx(calculate_drop_path_rates(0.1, 12), abs=1e-8)


def test_one_rate_per_block():
    vit = build(tiny("vit"))
    set_drop_path(vit, constant_but_last(0.3, 3))
    assert drop_path_rates(vit) == [0.3, 0.3, 0.0] and dropped(vit.net) == [0.3] * 4


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch16_18x2_224",  # parallel branches: a block has four
        "cait_xxs24_224",
        "swin_tiny_patch4_window7_224",
        "swinv2_cr_tiny_224",
        "resnet18",
        "convnext_atto",
        "eva02_tiny_patch14_224",
        "beit_base_patch16_224",
    ],
)
def test_the_rates_are_those_of_timm(name):
    with torch.device("meta"):
        expected = build(timm.create_model(name, drop_path_rate=0.3))
        backbone = build(timm.create_model(name, drop_path_rate=0.1))
    set_drop_path(backbone, 0.3)
    assert drop_path_rates(backbone) == pytest.approx(drop_path_rates(expected), abs=1e-7)
    assert dropped(backbone.net) == pytest.approx(dropped(expected.net), abs=1e-7) and len(dropped(backbone.net)) > 5


def test_a_resnet_drops_whole_residual_branches(images):
    resnet = build("test_resnet", args={"num_classes": 10, "zero_init_last": False})
    before = resnet.eval()(images).prediction
    network = finetunable(resnet, 10, drop_path=0.9)
    assert drop_path_rates(network) == pytest.approx([0.9 * block / 3 for block in range(4)])
    assert torch.equal(network.eval()(images).prediction, before)
    outputs = [network.train()(images).prediction for _ in range(2)]
    assert not torch.equal(*outputs)


def test_a_network_without_drop_path_is_refused_a_rate():
    vgg = build("vgg11", meta=True)
    set_drop_path(vgg, 0.0)
    with pytest.raises(UserError, match=r"^vgg11 has no drop path that could be set; got 0.2. Use --drop_path 0$"):
        set_drop_path(vgg, 0.2)
    with pytest.raises(UserError, match=r"^vgg11 has no drop path that could be set; got 0.2. Use --drop_path 0$"):
        build("vgg11", args={"drop_path_rate": 0.2}, meta=True)


@pytest.mark.parametrize("rates", [1.0, -0.1, [0.0, 1.0, 0.0]])
def test_rates_out_of_range_are_refused(rates):
    with pytest.raises(UserError, match=r"must lie in \[0, 1\); got (1.0|-0.1)"):
        set_drop_path(build(tiny("vit")), rates)


@pytest.mark.parametrize("rate", [0.0, 0.27])
def test_a_student_by_name_has_the_rate_that_was_asked_for(rate):
    """timm's own default for Swin is 0.1."""
    options = {"args": SWIN, "image_size": 64, "pretrained": False}
    student = make_student("swin_tiny_patch4_window7_224", open_source("digits"), drop_path=rate, **options)
    assert drop_path_rates(student) == pytest.approx([rate * block / 9 for block in range(10)])
