"""Making a pre-trained network ready for fine-tuning: what is kept, what is fresh, what is refused."""

import pytest
import torch

from tiny import SMALL, tiny
from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.models.finetuning import finetunable
from vitdistill.models.heads import head_count, set_heads
from vitdistill.models.positions import fix_positions
from vitdistill.models.record import record_of

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
    assert network(images).logits.shape == (3, 7)


def test_the_class_token_keeps_the_final_norm():
    before = body()
    with torch.no_grad():
        before.net.norm.weight.fill_(3.0)
    network = finetunable(before, 7, pool="cls")
    assert network.net.global_pool == "token" and bool((network.net.norm.weight == 3).all())


def test_a_network_with_a_classifier_for_the_data_stays_as_it_is(images):
    before = body(10)
    expected = before(images).logits
    network = finetunable(before, 10)
    assert network is before and torch.equal(network(images).logits, expected)


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


def test_a_module_of_ones_own_cannot_be_rebuilt():
    with pytest.raises(UserError, match="module object can only be rebuilt in Python"):
        finetunable(build(tiny("vit", num_classes=0)), 5)


def test_only_position_tables_over_the_patches_can_be_fixed():
    with pytest.raises(UserError, match="no position embedding that could be fixed"):
        fix_positions(build(tiny("swin")))
    network = body()
    fix_positions(network)
    assert not network.net.pos_embed.requires_grad and bool((network.net.pos_embed[0, 0] == 0).all())
