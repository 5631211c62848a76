"""Making a pre-trained network ready for fine-tuning: what is kept, what is fresh, what is refused."""

import pytest
import torch
from timm.layers import DropPath

from tiny import SMALL, tiny
from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.models.record import record_of
from vitdistill.models.surgery.attention_heads import head_count, set_heads
from vitdistill.models.surgery.classifier import finetunable
from vitdistill.models.surgery.positions import fix_positions

NAME = "vit_tiny_patch16_224"


def body(num_classes: int = 0, **args):
    torch.manual_seed(1)
    return build(NAME, args={**SMALL, **args, "num_classes": num_classes})


def test_mean_pooling_comes_with_a_fresh_norm_and_a_small_head(images):
    before = body()
    set_heads(before, {-1: 4})
    network = finetunable(before, 7, head_init=0.001)
    state, old = network.net.state_dict(), before.net.state_dict()
    assert network.num_classes == 7 and network.net.global_pool == "avg"
    assert "norm.weight" not in state and bool((state["fc_norm.weight"] == 1).all())
    assert all(torch.equal(state[name], value) for name, value in old.items() if not name.startswith("norm."))
    assert float(state["head.weight"].abs().max()) < 1e-3 and head_count(network, -1) == 4
    assert record_of(network.net).args["global_pool"] == "avg"
    assert network(images).prediction.shape == (3, 7)


def test_the_class_token_keeps_the_final_norm():
    before = body()
    with torch.no_grad():
        before.net.norm.weight.fill_(3.0)
    network = finetunable(before, 7, pool="cls")
    assert network.net.global_pool == "token" and bool((network.net.norm.weight == 3).all())


def test_a_network_with_a_classifier_for_the_data_stays_as_it_is(images):
    before = body(10)
    expected = before(images).prediction
    network = finetunable(before, 10)
    assert network is before and torch.equal(network(images).prediction, expected)


def test_frozen_parameters_are_trained_again():
    before = body()
    fix_positions(before)
    before.net.blocks[-1].mlp.requires_grad_(False)
    assert all(parameter.requires_grad for parameter in finetunable(before, 5).net.parameters())


def test_drop_path_rises_to_its_rate():
    network = finetunable(body(), 5, drop_path=0.2)
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in network.blocks] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize(("options", "words"), [({}, "has 10 and the data 7.*--new_head"), ({"pool": "cls"}, "has 10")])
def test_another_classifier_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        finetunable(body(10), 7, **options)
    assert finetunable(body(10), 7, new_head=True, **options).num_classes == 7


def test_another_pooling_under_a_kept_classifier_is_refused():
    with pytest.raises(UserError, match=r"belongs to its pooling 'token'; got 'avg'"):
        finetunable(body(10), 10, pool="avg")


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "test_resnet"])
def test_other_families_get_a_new_classifier_and_keep_their_pooling(name):
    args = {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 3)}
    before = build(name, args={**(args if "swin" in name else {}), "num_classes": 10})
    network = finetunable(before, 7, new_head=True)
    assert network.num_classes == 7 and str(network.net.global_pool) == str(before.net.global_pool)
    with pytest.raises(UserError, match="Only a ViT's pooling can be chosen"):
        finetunable(before, 7, new_head=True, pool="avg")


def test_drop_path_of_a_given_module_is_turned_off():
    before = build(tiny("vit", drop_path_rate=0.3))
    assert any(block.drop_path1.__class__ is DropPath for block in before.blocks)
    network = finetunable(before, 10, drop_path=0.0)
    assert not any(isinstance(module, DropPath) for module in network.net.modules())


@pytest.mark.parametrize("pool", ["auto", "cls", "avg"])
def test_a_headless_module_gets_its_head_in_place(images, pool):
    """As one that is built by name, which a module object cannot be: the same tensors, the same fresh parts."""
    before, named = build(tiny("vit", num_classes=0)), body()
    old = {name: value.clone() for name, value in before.net.state_dict().items()}
    network, expected = finetunable(before, 5, pool=pool), finetunable(named, 5, pool=pool)
    state = network.net.state_dict()
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in expected.net.state_dict().items()
    }
    assert all(torch.equal(state[name], value) for name, value in old.items() if name in state)
    assert network.net.global_pool == expected.net.global_pool and network(images).prediction.shape == (3, 5)
    assert 0 < float(state["head.weight"].abs().max()) < 1e-3 and not state["head.bias"].any()


def test_a_module_with_another_head_gets_a_new_one(images):
    network = finetunable(build(tiny("mae_mean_pool")), 7, pool="cls", new_head=True)
    assert "fc_norm.weight" not in network.net.state_dict() and network(images).prediction.shape == (3, 7)
    assert finetunable(build(tiny("deit_distilled")), 7, new_head=True).num_classes == 7


def test_a_module_without_classifier_that_cannot_be_given_one_is_refused():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4))
    net.num_classes = 4
    with pytest.raises(UserError, match="must have a classifier for the 5 classes.*Sequential with 4.*reset_class"):
        finetunable(build(net), 5, new_head=True)


def test_only_position_tables_over_the_patches_can_be_fixed():
    with pytest.raises(UserError, match="no position embedding that could be fixed"):
        fix_positions(build(tiny("swin")))
    network = body()
    fix_positions(network)
    assert not network.net.pos_embed.requires_grad and bool((network.net.pos_embed[0, 0] == 0).all())
