"""G2SD's distillation token: where it stands, how fast it learns, and networks without a place for it."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.methods.supervised import Supervised
from vitdistill.models.build import build, rebuild
from vitdistill.models.families.dist_token import append_dist_token
from vitdistill.models.record import record_of
from vitdistill.models.surgery.dist_token import with_dist_token
from vitdistill.tokens.gather import take
from vitdistill.training.optim import plan_groups
from vitdistill.training.settings import Optim
from vitdistill.training.train import export_weights

ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}


def in_the_authors_order(net, images, keep=None):
    """Logits of both heads, the tokens in the order [class, patches, distillation]; and the last block's attention."""
    patches = net.patch_embed(images) + net.pos_embed[:, 1:]
    patches = patches if keep is None else take(patches, keep)
    cls, dist = (net.cls_token + net.pos_embed[:, :1]), net.dist_token
    tokens = torch.cat((cls.expand(len(images), -1, -1), patches, dist.expand(len(images), -1, -1)), dim=1)
    for block in net.blocks[:-1]:
        tokens = block(tokens)
    last = net.blocks[-1]
    q, k, _ = last.attn.qkv(last.norm1(tokens)).unflatten(-1, (3, 3, -1)).permute(2, 0, 3, 1, 4)
    attention = (q[:, :, :1] @ k.transpose(-2, -1) * 8**-0.5).softmax(dim=-1).mean(dim=1)[:, 0]
    tokens = net.norm(last(tokens))
    return (net.head(tokens[:, 0]), net.head_dist(tokens[:, -1])), attention


@pytest.mark.parametrize("kept", [None, 5], ids=["all", "some"])
def test_it_is_the_authors_network_with_the_token_last(images, kept):
    """And the saliency leaves the column of the token out."""
    net = tiny("dist_token")
    keep = None if kept is None else torch.stack([torch.randperm(16)[:kept].sort().values for _ in range(3)])
    backbone = build(net)
    with torch.no_grad():
        (labelled, distilled), attention = in_the_authors_order(net, images, keep)
        output = backbone(images, keep=keep, capture=backbone.saliency_capture())
    torch.testing.assert_close(output.prediction, (labelled + distilled) / 2)
    torch.testing.assert_close(backbone.saliency(output), attention[:, 1:-1])
    names = {"cls_token", "dist_token", "pos_embed", "head.weight", "head_dist.weight"}
    assert names <= set(net.state_dict()) and net.pos_embed.shape == (1, 17, 24)


def test_layers_learn_as_the_authors_have_it():
    """Token, final norm and heads at the full rate; the token decays."""
    method = Supervised(tiny("dist_token"))
    found = {
        name: (round(group.options.get("lr_scale", 1.0), 4), group.options["weight_decay"])
        for group in plan_groups(method, Optim(layer_decay=0.5, weight_decay=0.05))
        for name in group.names
    }
    at = {name.removeprefix("student.net."): value for name, value in found.items()}
    for name in ("dist_token", "head.weight", "head_dist.weight"):
        assert at[name] == (1.0, 0.05)
    assert at["norm.weight"] == at["head_dist.bias"] == (1.0, 0.0)
    assert at["cls_token"] == at["pos_embed"] == (0.0625, 0.0) and at["patch_embed.proj.weight"] == (0.0625, 0.05)
    assert [at[f"blocks.{i}.attn.qkv.weight"][0] for i in range(3)] == [0.125, 0.25, 0.5]


def test_an_encoder_becomes_a_student_that_is_built_again_from_its_record_and_file(images, tmp_path):
    encoder = build("vit_tiny_patch16_224", args={**ARGS, "num_classes": 10})
    before = {name: value.clone() for name, value in encoder.net.state_dict().items()}
    network = with_dist_token(encoder, fresh_head=True)
    after = network.net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if name != "head.weight")
    assert 0 < float(after["head.weight"].abs().max()) < 1e-3 < float(after["head_dist.weight"].abs().max())
    assert record_of(network.net).args["dist_token"] is True and network.specials == 2
    path = tmp_path / "student.safetensors"
    export_weights(after, path, record_of(network.net))
    for again in (build(f"vit_tiny_patch16_224@{path}"), rebuild(record_of(network.net))):
        again.net.load_state_dict(after)
        assert torch.equal(again.eval()(images).prediction, network.eval()(images).prediction)
    fewer = rebuild(record_of(network.net), num_classes=4)
    assert fewer.net.head_dist.out_features == 4 and fewer(images).prediction.shape == (3, 4)
    bare = build("vit_tiny_patch16_224", args={**ARGS, "num_classes": 0, "dist_token": True})
    assert isinstance(bare.net.head_dist, nn.Identity) and bare(images).prediction.shape == (3, 24)


def test_a_trained_classifier_stays():
    encoder = build("vit_tiny_patch16_224", args={**ARGS, "num_classes": 10})
    weight = encoder.net.head.weight.clone()
    assert torch.equal(with_dist_token(encoder, fresh_head=False).net.head.weight, weight)


def test_positions_are_resampled_for_another_image_size(tmp_path):
    path = tmp_path / "weights.safetensors"
    export_weights(tiny("dist_token").state_dict(), path, None)
    larger = build(f"vit_tiny_patch16_224@{path}", args={**ARGS, "img_size": 48, "dist_token": True})
    assert larger.net.pos_embed.shape == (1, 37, 24) and larger(torch.randn(1, 3, 48, 48)).prediction.shape == (1, 10)


def test_copies_and_pickles_are_the_same_network(images):
    net = tiny("dist_token")
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(images), net(images))


@pytest.mark.parametrize(
    ("family", "found"),
    [
        ("mae_mean_pool", "pooling 'avg'"),
        ("no_class_token", "pooling 'avg'"),
        ("swin", "SwinTransformer"),
        ("cait", "Cait"),
        ("dinov3", "Eva"),
        ("deit_distilled", "one with a distillation token"),
        ("dist_token", "one with a distillation token"),
    ],
)
def test_networks_without_a_place_for_it_are_refused(family, found):
    with pytest.raises(UserError, match=f"has no place for it; got {found}.*--dist_token") as error:
        with_dist_token(build(tiny(family)), fresh_head=False)
    assert "\n" not in str(error.value)


def test_a_classifier_on_mean_pooling_is_refused():
    with pytest.raises(UserError, match="no place for it; got pooling 'avg'"):
        tiny("dist_token").reset_classifier(3, "avg")
    with pytest.raises(UserError, match="no place for it; got ResNet"):
        append_dist_token(timm.create_model("test_resnet"))
