"""Token merging in trained networks: against the authors' code, written out by hand, and counted."""

from collections.abc import Sequence

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tiny import FAMILIES, tiny
from vitdistill.errors import UserError
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.models.build import build
from vitdistill.models.families.linear_only import linear_only
from vitdistill.models.macs import traced_macs
from vitdistill.models.merged import Merged
from vitdistill.tokens.merge import match, merge_tokens, sources
from vitdistill.types import Capture

MERGEABLE = [
    *("vit", "deit", "deit_distilled", "deit3", "clip", "mae_mean_pool", "no_class_token", "registers", "qk_norm"),
    *("dist_token", "cait", "convvit", "ast"),
]


def test_the_authors_networks(golden) -> None:
    case = golden("tome_vit_a")
    hyper = case.hyper
    net = timm.create_model(
        "vit_tiny_patch16_224",
        **{name: hyper[name] for name in ("img_size", "embed_dim", "depth", "num_heads", "num_classes")},
        patch_size=hyper["patch_size"],
    )
    case.load(net, "model")
    with torch.no_grad():
        case.check("logits_no_tome", net(case.inputs["image"]))
        for name, run in hyper["r_settings"].items():
            merge = f"{run['r'][0]}:{run['r'][1]}" if name == "decreasing" else run["r"]
            for ending, proportional in (("prop", True), ("noprop", False)):
                merged = Merged.over(net, merge, proportional=proportional)
                assert list(merged.merges) == run["per_layer"]
                left = merged.run(case.inputs["image"])
                case.check(f"logits_{name}_{ending}", merged(case.inputs["image"]).prediction)
                case.check(f"size_{name}_{ending}", left.size[..., None])
                case.check(f"source_{name}_{ending}", sources(left.place, left.all.shape[1]))
    assert case.checked == case.expected.keys()


@pytest.mark.parametrize("family", MERGEABLE)
def test_merging_nothing_is_bit_for_bit_the_untouched_network(family: str, images: Tensor) -> None:
    net = tiny(family)
    with torch.no_grad():
        assert torch.equal(Merged.over(net, 0)(images).prediction, net(images))


def by_hand(net: nn.Module, images: Tensor, merges: Sequence[int], specials: int) -> Tensor:
    """A ViT of timm that merges, with its attention written out."""
    tokens = net.norm_pre(net._pos_embed(net.patch_embed(images)))
    size = torch.ones(tokens.shape[:2])
    for block, merge in zip(net.blocks, merges, strict=True):
        q, k, v = block.attn.qkv(block.norm1(tokens)).unflatten(2, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = block.attn.q_norm(q), block.attn.k_norm(k)
        logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + size.log()[:, None, None]
        attended = block.attn.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
        tokens = tokens + block.ls1(attended)
        tokens, size = merge_tokens(tokens, size, match(k.mean(1), merge, specials))
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
    tokens = net.norm(tokens)
    if net.global_pool == "avg":
        pooled = (tokens * size[..., None])[:, specials:].sum(1) / 16
        return net.head(net.fc_norm(pooled))
    scores = net.head(tokens[:, 0])
    return (scores + net.head_dist(tokens[:, 1])) / 2 if hasattr(net, "head_dist") else scores


@pytest.mark.parametrize(
    ("family", "specials"),
    [
        ("deit_distilled", 2),
        ("dist_token", 2),
        ("deit3", 1),
        ("clip", 1),
        ("mae_mean_pool", 1),
        ("no_class_token", 0),
        ("registers", 5),
        ("qk_norm", 1),
    ],
)
def test_merging_written_out(family: str, specials: int, images: Tensor) -> None:
    """LayerScale, norms of queries and keys, two heads, the mean weighted by sizes, and protected special tokens."""
    net = tiny(family)
    with torch.no_grad():
        got = Merged.over(net, "4,0,3")(images).prediction
        torch.testing.assert_close(got, by_hand(net, images, (4, 0, 3), specials), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(got, net(images), atol=1e-3)


def test_cait_merges_in_its_trunk(images: Tensor) -> None:
    """Sizes join behind the map between heads, and the class token attends to what is left."""
    net = tiny("cait")
    with torch.no_grad():
        tokens, size = net.patch_embed(images) + net.pos_embed, torch.ones(3, 16)
        for block, merge in zip(net.blocks, (5, 0, 2), strict=True):
            attention = block.attn
            q, k, v = (
                attention.qkv(block.norm1(tokens)).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
            )
            logits = attention.proj_l((q @ k.transpose(-2, -1) * attention.scale).permute(0, 2, 3, 1))
            shares = (logits.permute(0, 3, 1, 2) + size.log()[:, None, None]).softmax(-1)
            shares = attention.proj_w(shares.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            tokens = tokens + block.gamma_1 * attention.proj((shares @ v).transpose(1, 2).flatten(2))
            tokens, size = merge_tokens(tokens, size, match(k.mean(1), merge))
            tokens = tokens + block.gamma_2 * block.mlp(block.norm2(tokens))
        cls = net.cls_token.expand(3, -1, -1)
        for block in net.blocks_token_only:
            cls = block(tokens, cls)
        expected = net.head(net.norm(torch.cat((cls, tokens), dim=1))[:, 0])
        torch.testing.assert_close(Merged.over(net, "5,0,2")(images).prediction, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", MERGEABLE)
def test_the_network_stays_as_it_was_and_its_cost_is_what_torch_counts(family: str, images: Tensor) -> None:
    net = tiny(family)
    merged, before = Merged.over(net, "5:-1"), list(net.state_dict())
    with FlopCounterMode(display=False) as counter:
        merged(images)
    assert 3 * merged.macs(layernorm=False).total == counter.get_total_flops() / 2
    assert traced_macs(merged, (3, 32, 32)).total == merged.macs().total < build(net).macs().total
    assert list(net.state_dict()) == before and list(merged.state_dict()) == [f"net.{name}" for name in before]
    assert not any(module._forward_hooks for module in net.modules())
    assert sum(p.numel() for p in merged.parameters()) == sum(p.numel() for p in net.parameters())


def test_tokens_left_and_the_cost_of_matching() -> None:
    """The whole table of two published networks is in tests/verbs/test_merging.py."""
    merged = Merged.over(build("deit_small_patch16_224", meta=True), 8)
    assert merged.tokens_left() == [197 - 8 * block for block in range(1, 13)]
    assert 0 < merged.macs().matching < 0.006 * merged.macs().total


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in MERGEABLE])
def test_other_families_are_refused(family: str) -> None:
    with pytest.raises(UserError, match=r"Tokens can be merged in ViT, DeiT, .*; got \w+") as error:
        Merged.over(tiny(family), 2)
    assert "\n" not in str(error.value)


def test_a_linear_only_student_is_refused_as_what_it_is() -> None:
    with pytest.raises(UserError, match="a frozen body with a linear classifier on it"):
        Merged.over(linear_only(build(tiny("vit", depth=4)), 5), 1)


def test_pooling_by_attention_and_networks_without_tokens_are_refused() -> None:
    siglip = timm.create_model("vit_base_patch16_siglip_224", **FAMILIES["vit"][1])
    with pytest.raises(UserError, match="pools by attention"):
        Merged.over(siglip, 2)
    with pytest.raises(UserError, match="got resnet18"):
        Merged.over(timm.create_model("resnet18"), 2)


def test_it_hands_out_class_scores_alone_and_sees_every_patch(images: Tensor) -> None:
    merged = Merged.over(tiny("deit"), 2)
    with pytest.raises(UserError, match=r"hands out logits only \(it merges tokens\)"):
        merged(images, capture=Capture.at(0, "output"))
    with pytest.raises(UserError, match=r"cannot leave out patches \(it merges tokens\).*--keep 1\.0"):
        merged(images, keep=torch.zeros(3, 1, dtype=torch.long))
    with pytest.raises(UserError, match="keep 0.5.*it merges tokens"):
        MaskedKD(tiny("vit"), merged, keep=0.5)
    with pytest.raises(UserError, match=r"every block; got deit_tiny_patch16_224 \(merging tokens\)"):
        MaskedKD(tiny("vit"), merged, keep=1.0, distill="manifold")


def test_a_merging_teacher_teaches_and_its_merged_passes_are_counted(images: Tensor) -> None:
    net = tiny("deit")
    method = MaskedKD(tiny("deit", seed=1), Merged.over(net, 3), keep=1.0)
    step = method(images, torch.tensor([0, 1, 2]))
    step.loss.backward()
    with torch.no_grad():
        torch.testing.assert_close(step.teacher_prediction, Merged.over(net, 3)(images).prediction)
    teacher = next(one for one in method.passes(0.0) if one.role == "teacher")
    assert teacher.macs == Merged.over(net, 3).macs().total < build(net).macs().total


def test_in_bfloat16() -> None:
    net = tiny("deit").bfloat16()
    images = torch.randn(2, 3, 32, 32).bfloat16()
    with torch.no_grad():
        assert Merged.over(net, 4)(images).prediction.dtype == torch.bfloat16
