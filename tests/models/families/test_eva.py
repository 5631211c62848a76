"""Rotary ViTs: what is theirs beside the contract of all backbones; and the attention of heads that pool by it."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tiny import SMALL, tiny
from vitdistill.errors import UserError
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.methods.tinymim import TinyMIM
from vitdistill.models.backbone import with_tokens
from vitdistill.models.families import as_network
from vitdistill.models.families.eva import RotaryViT
from vitdistill.models.surgery.attention_heads import set_heads
from vitdistill.types import Capture

# One architecture of each kind of attention, position, block and pooling beside those of the contract.
OTHERS: dict[str, dict[str, Any]] = {
    "eva02_tiny_patch14_224": {},  # fused q, k, v with a bias that keys have not; mean pooling behind fc_norm
    "eva02_enormous_patch14_clip_224": {},  # post-norm
    "eva_giant_patch14_224": {},  # absolute positions alone
    "vit_medium_patch16_rope_reg1_gap_256": {},  # registers, no class token
    "vit_small_patch16_rope_224": {},
    "vit_small_patch16_dinov3_qkvb": {"dynamic_img_size": False},
    "vit_small_patch16_lingbot": {"dynamic_img_size": False},
    "vit_pe_spatial_tiny_patch16_512": {},
}


def randomised(name: str, **args: Any) -> nn.Module:
    """A tiny network of an architecture whose every parameter is random."""
    torch.manual_seed(0)
    net = timm.create_model(name, **{**SMALL, **args})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.5 * parameter + 0.2 * torch.randn_like(parameter))
    return net.eval()


@pytest.mark.parametrize("name", OTHERS)
def test_leaving_out_patches_is_hiding_them_by_an_attention_mask(name: str, images: Tensor) -> None:
    net = randomised(name, **OTHERS[name])
    backbone, keep = as_network(net), torch.tensor([[0, 3, 8, 15], [1, 2, 3, 4], [5, 7, 11, 12]])
    specials = net.num_prefix_tokens
    seen = torch.cat((torch.arange(specials).expand(3, -1), keep + specials), dim=1)
    mask = torch.zeros(3, specials + 16, dtype=torch.bool).scatter(1, seen, True)
    with torch.no_grad():
        tokens = net.forward_features(images, attn_mask=mask[:, None, None].expand(-1, -1, specials + 16, -1))
        expected = net.forward_head(tokens[mask].unflatten(0, (3, -1)))
        torch.testing.assert_close(backbone(images, keep=keep).prediction, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(backbone(images).prediction, net(images))
    assert isinstance(backbone, RotaryViT) and backbone.input.patch == (1, 8, 8)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "eva02_enormous_patch14_clip_224"])
@pytest.mark.parametrize("point", ["qkv", "attention", "attention_residual", "ffn"])
def test_what_reaches_the_parameters_of_other_blocks(name: str, point: Any, images: Tensor) -> None:
    """Of biases that queries, keys and values have apart, only those of the role that is read."""
    backbone = with_tokens(as_network(randomised(name)))
    capture = Capture.at(1, point, head=False)
    captured = backbone(images, capture=capture).captured[1, point]
    read = captured.q if point == "qkv" else captured.all
    read.square().sum().backward()
    reached = backbone.reached(capture, frozenset("q"))
    assert [
        name
        for name, parameter in backbone.net.named_parameters()
        if (parameter.grad is not None and bool(parameter.grad.any())) != (parameter in reached)
    ] == []


def test_queries_of_special_tokens_are_not_rotated(images: Tensor) -> None:
    """And those of patches are, each by where it lies, kept or not."""
    net = tiny("dinov3")
    backbone, keep = as_network(net), torch.tensor([[2, 9]] * 3)
    attention = net.blocks[0].attn
    with torch.no_grad():
        output = backbone(images, keep=keep, capture=Capture.at(0, "qkv", head=False))
        tokens, angles = net._pos_embed(net.patch_embed(images))
        plain = attention.qkv(net.blocks[0].norm1(tokens)).unflatten(2, (3, 3, 8)).permute(2, 0, 3, 1, 4)[0]
    got = output.qkv(0).q
    torch.testing.assert_close(got[:, :, :5], plain[:, :, :5])
    sin, cos = angles.chunk(2, dim=-1)
    for place, patch in enumerate((2, 9)):
        x = plain[:, :, 5 + patch]
        turned = torch.cat((-x[..., 4:], x[..., :4]), dim=-1)
        torch.testing.assert_close(got[:, :, 5 + place], x * cos[patch] + turned * sin[patch])
        assert not torch.allclose(got[:, :, 5 + place], x)


def test_heads_that_share_keys_are_given_them(images: Tensor) -> None:
    backbone = as_network(tiny("sapiens"))  # 4 heads, and 2 of keys and values
    qkv = backbone(images, capture=Capture.at(-1, "qkv")).qkv(-1)
    assert qkv.q.shape == qkv.k.shape == qkv.v.shape
    assert torch.equal(qkv.k[:, 2], qkv.k[:, 3]) and not torch.equal(qkv.k[:, 1], qkv.k[:, 2])
    assert not torch.equal(qkv.q[:, 2], qkv.q[:, 3])


def test_coordinates_that_are_scaled_at_random_stay_with_their_patches(images: Tensor) -> None:
    """In training, Sapiens draws one scale a pass, which whole and masked passes draw alike."""
    backbone = as_network(tiny("sapiens")).train()
    results = []
    for keep in (None, torch.arange(16).expand(3, -1)):
        torch.manual_seed(5)
        results.append(backbone(images, keep=keep).prediction)
    torch.testing.assert_close(*results)
    torch.manual_seed(6)
    assert not torch.allclose(backbone(images).prediction, results[0])


def test_patch_dropout_and_a_selection_exclude_each_other(images: Tensor) -> None:
    backbone = as_network(tiny("dinov3", patch_drop_rate=0.5)).train()
    assert backbone(images).prediction.shape == (3, 10)
    with pytest.raises(UserError, match=r"drops patches at random \(patch_drop_rate\)"):
        backbone(images, keep=torch.zeros(3, 1, dtype=torch.long))


def test_unfused_attention_is_refused_in_one_line(images: Tensor) -> None:
    net = tiny("dinov3")
    net.blocks[-1].attn.fused_attn = False
    assert as_network(net)(images).prediction.shape == (3, 10)
    with pytest.raises(UserError, match="fused attention. Run without TIMM_FUSED_ATTN=0"):
        as_network(net).saliency_capture()


# --- with plain students --------------------


def test_registers_are_left_out_of_relations_with_a_plain_student(images: Tensor) -> None:
    """Class token against class token, patches against patches."""
    method = TinyMIM(tiny("deit", seed=1), tiny("dinov3", seed=2), color_jitter=0).eval()
    student = method.student(images, capture=Capture.at(2, "qkv")).qkv(2)
    teacher = method.teacher(images, capture=Capture.at(2, "qkv")).qkv(2)
    places = [0, *range(5, 21)]
    expected = 0.0
    for first, second in ("qk", "vv"):
        relations = [
            (a @ b.transpose(-2, -1) * a.shape[-1] ** -0.5).log_softmax(dim=-1)
            for a, b in (
                (getattr(student, first), getattr(student, second)),
                (getattr(teacher, first)[:, :, places], getattr(teacher, second)[:, :, places]),
            )
        ]
        expected += nn.functional.kl_div(*relations, reduction="none", log_target=True).sum(-1).mean()
    torch.testing.assert_close(method(images).loss, expected)


def test_heads_of_a_rotary_student_cannot_be_split_otherwise() -> None:
    with pytest.raises(UserError, match="rotary or relative positions, .* fix their width; got 4 heads"):
        set_heads(with_tokens(as_network(tiny("rope_mixed"))), {-1: 4})


def test_a_student_of_another_grid_selects_for_a_rotary_teacher(images: Tensor) -> None:
    method = MaskedKD(tiny("deit", seed=1), tiny("dinov3", seed=2, patch_size=4), keep=20)
    step = method(images, torch.tensor([0, 1, 2]))
    assert step.kept.shape == (3, 20) and int(step.kept.max()) > 16 and bool(step.loss.isfinite())


# --- attention of the head --------------------


@pytest.mark.parametrize("kind", ["cls", "pool"])
@pytest.mark.parametrize("name", ["perception", "vit_base_patch16_siglip_224"])
def test_the_pooling_head_ranks_patches(name: str, kind: Any, images: Tensor) -> None:
    """By the softmax that timm's own head computes; also where the class token stands for it."""
    net = tiny(name) if name == "perception" else randomised(name)
    backbone, found, pool = as_network(net), [], net.attn_pool
    handle = pool.kv.register_forward_hook(lambda _m, _i, output: found.append(output))
    output = backbone(images, capture=backbone.saliency_capture(-1, kind))
    handle.remove()
    split = (pool.num_heads, pool.head_dim)
    k = found[0].unflatten(2, (2, *split))[:, :, 0].transpose(1, 2)
    q = pool.q(pool.latent).unflatten(2, split).transpose(1, 2)
    weights = (q @ k.transpose(-2, -1) * pool.head_dim**-0.5).softmax(dim=-1)[:, :, 0].mean(dim=1)
    got = backbone.saliency(output, -1, kind)
    torch.testing.assert_close(got, weights[:, net.num_prefix_tokens :])
    assert got.shape == (3, 16) and got.dtype == torch.float32 and not got.requires_grad


def test_where_no_head_pools_by_attention_it_is_refused() -> None:
    for family in ("deit", "dinov3", "cait", "swin"):
        with pytest.raises(UserError, match="'pool' needs a network that pools its patches by attention") as error:
            as_network(tiny(family)).saliency_capture(-1, "pool")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="behind the last block; got block 0"):
        as_network(tiny("perception")).saliency_capture(0, "pool")
