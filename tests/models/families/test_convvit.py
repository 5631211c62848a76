"""ConvViT: every stage written out by hand, its published size and cost, and files of ConvMAE."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.backbone import with_tokens
from vitdistill.models.build import build
from vitdistill.models.classes import class_names
from vitdistill.models.families.convvit import ConvViT
from vitdistill.models.macs import traced_macs
from vitdistill.models.surgery.drop_path import drop_path_rates
from vitdistill.types import TokenGrid

NAME = "convvit_base_patch16_224"
TINY: dict[str, Any] = {"embed_dim": (8, 12, 16), "depth": (1, 1, 2), "num_heads": 2, "img_size": 32}


@pytest.fixture
def net() -> ConvViT:
    """A tiny network whose every parameter is random."""
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        net = ConvViT(**TINY, num_classes=10)
        for parameter in net.parameters():
            parameter.copy_(0.5 * parameter + 0.2 * torch.randn_like(parameter))
    return net.eval()


# --- by hand ---------------------------------------------------------------------------------------------------------


def normed(maps: Tensor, weight: Tensor, bias: Tensor, eps: float, dim: int) -> Tensor:
    mean, variance = maps.mean(dim, keepdim=True), maps.var(dim, unbiased=False, keepdim=True)
    shape = [-1 if axis == dim % maps.ndim else 1 for axis in range(maps.ndim)]
    return (maps - mean) / (variance + eps).sqrt() * weight.view(shape) + bias.view(shape)


def by_hand(net: ConvViT, images: Tensor, keep: Tensor | None = None) -> list[Tensor]:
    """What leaves each stage, from the names and shapes of the published files alone; the class scores come last."""
    w = net.state_dict()

    def patches(maps: Tensor, name: str, stride: int) -> Tensor:
        maps = F.conv2d(maps, w[f"{name}.proj.weight"], w[f"{name}.proj.bias"], stride=stride)
        return F.gelu(normed(maps, w[f"{name}.norm.weight"], w[f"{name}.norm.bias"], 1e-5, 1))

    def conv_block(maps: Tensor, name: str) -> Tensor:
        inner = normed(maps, w[f"{name}.norm1.weight"], w[f"{name}.norm1.bias"], 1e-5, 1)
        inner = F.conv2d(inner, w[f"{name}.conv1.weight"], w[f"{name}.conv1.bias"])
        inner = F.conv2d(inner, w[f"{name}.attn.weight"], w[f"{name}.attn.bias"], padding=2, groups=maps.shape[1])
        maps = maps + F.conv2d(inner, w[f"{name}.conv2.weight"], w[f"{name}.conv2.bias"])
        inner = normed(maps, w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"], 1e-5, 1)
        inner = F.gelu(F.conv2d(inner, w[f"{name}.mlp.fc1.weight"], w[f"{name}.mlp.fc1.bias"]))
        return maps + F.conv2d(inner, w[f"{name}.mlp.fc2.weight"], w[f"{name}.mlp.fc2.bias"])

    def vit_block(tokens: Tensor, name: str) -> Tensor:
        inner = normed(tokens, w[f"{name}.norm1.weight"], w[f"{name}.norm1.bias"], 1e-6, -1)
        inner = inner @ w[f"{name}.attn.qkv.weight"].T + w[f"{name}.attn.qkv.bias"]
        q, k, v = inner.unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(-1) @ v
        tokens = (
            tokens + mixed.transpose(1, 2).flatten(2) @ w[f"{name}.attn.proj.weight"].T + w[f"{name}.attn.proj.bias"]
        )
        inner = normed(tokens, w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"], 1e-6, -1)
        inner = F.gelu(inner @ w[f"{name}.mlp.fc1.weight"].T + w[f"{name}.mlp.fc1.bias"])
        return tokens + inner @ w[f"{name}.mlp.fc2.weight"].T + w[f"{name}.mlp.fc2.bias"]

    first = conv_block(patches(images, "patch_embed1", 4), "blocks1.0")
    second = conv_block(patches(first, "patch_embed2", 2), "blocks2.0")
    tokens = patches(second, "patch_embed3", 2).flatten(2).transpose(1, 2)
    tokens = tokens @ w["patch_embed4.weight"].T + w["patch_embed4.bias"] + w["pos_embed"]
    entering = tokens
    if keep is not None:
        tokens = torch.stack([one[row] for one, row in zip(tokens, keep, strict=True)])
    for block in (0, 1):
        tokens = vit_block(tokens, f"blocks3.{block}")
    pooled = normed(tokens.mean(1), w["fc_norm.weight"], w["fc_norm.bias"], 1e-6, -1)
    return [first, second, entering, tokens, pooled @ w["head.weight"].T + w["head.bias"]]


def test_every_stage_is_that_of_the_paper(net: ConvViT, images: Tensor) -> None:
    found: dict[str, Tensor] = {}
    for name in ("blocks1.0", "blocks2.0", "blocks3.1"):
        net.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: found.update({name: out}))
    with torch.no_grad():
        scores, entering = net(images), net.embed(images)
    got = [found["blocks1.0"], found["blocks2.0"], entering, found["blocks3.1"], scores]
    for one, expected in zip(got, by_hand(net, images), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
    assert [tuple(one.shape[1:]) for one in got] == [(8, 8, 8), (12, 4, 4), (4, 16), (4, 16), (10,)]


def test_masked_behind_the_convolutions_and_in_any_order(net: ConvViT, images: Tensor) -> None:
    keep = torch.tensor([[0, 3], [1, 2], [2, 3]])
    with torch.no_grad():
        masked, turned = (build(net)(images, keep=kept).prediction for kept in (keep, keep.flip(1)))
    torch.testing.assert_close(masked, by_hand(net, images, keep)[-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned, masked)


# --- as published ----------------------------------------------------------------------------------------------------


def test_the_base_network() -> None:
    backbone = with_tokens(build(NAME, meta=True))
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 85_374_824
    assert backbone.grid == TokenGrid(1, 14, 14) and (backbone.specials, backbone.depth, backbone.width) == (0, 11, 768)
    assert backbone.input.shape == (3, 224, 224) and backbone.input.patch == (1, 16, 16)
    assert backbone.input.mean == (0.485, 0.456, 0.406) and backbone.num_classes == 1000
    assert class_names(backbone)[0] == "n01440764"  # what a fine-tuned file tells apart
    data = timm.data.resolve_model_data_config(backbone.net)
    assert (data["interpolation"], data["crop_pct"], data["input_size"]) == ("bicubic", 0.875, (3, 224, 224))
    shapes, hooked = {}, ("blocks1.1", "blocks2.1", "patch_embed3", "blocks3.10")
    for name in hooked:
        module = backbone.net.get_submodule(name)
        module.register_forward_hook(lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    backbone(torch.empty(1, 3, 224, 224, device="meta"))
    assert [shapes[name] for name in hooked] == [(256, 56, 56), (384, 28, 28), (768, 14, 14), (196, 768)]


def test_the_epsilon_of_every_norm() -> None:
    net = build(NAME, meta=True).net
    norms = {name: part.eps for name, part in net.named_modules() if isinstance(part, nn.LayerNorm)}
    late = {name for name in norms if name.startswith(("blocks3.", "fc_norm"))}
    assert len(norms) == 34 and len(late) == 23
    assert {norms[name] for name in late} == {1e-6} and {norms[name] for name in norms.keys() - late} == {1e-5}


@pytest.mark.parametrize(
    ("kept", "bare", "normed"),
    [(None, 23_081_125_888, 23.126), (144, 18_733_852_672, 18.774), (98, 14_964_355_072, 15.001)],
)
def test_multiply_accumulates(kept: int | None, bare: int, normed: float) -> None:
    network = build(NAME, meta=True)
    assert network.macs(kept, layernorm=False).total == bare
    assert network.macs(kept).total / 1e9 == pytest.approx(normed, abs=5e-4)
    traced = traced_macs(network, network.input.shape, kept)
    assert (traced.other, traced.total) == (bare, network.macs(kept).total)


@pytest.mark.parametrize(("kept", "published"), [(None, 8543), (98, 5540)])
def test_the_published_cells_have_a_slip_in_the_number_of_images(kept: int | None, published: float) -> None:
    """1,231,167 for 1,281,167, one digit off, gives both cells of Table 2; the saving is the same."""
    macs = build(NAME, meta=True).macs(kept).total * 300 / 1e15
    assert macs * 1_231_167 == pytest.approx(published, rel=3e-4)
    assert macs * 1_281_167 == pytest.approx(1.0406 * published, rel=1e-3)


def test_drop_path_rises_over_the_blocks_of_all_stages() -> None:
    rates = drop_path_rates(build(NAME, args={"drop_path_rate": 0.14}, meta=True))
    assert rates == pytest.approx([0.01 * block for block in range(15)])


# --- files -----------------------------------------------------------------------------------------------------------


def saved(net: nn.Module, folder: Path, **more: Tensor) -> str:
    torch.save({"model": {**net.state_dict(), **more}}, folder / "convvit.pth")
    return f"{NAME}@{folder / 'convvit.pth'}"


def test_a_fine_tuned_file_is_a_teacher(net: ConvViT, images: Tensor, tmp_path: Path) -> None:
    loaded = build(saved(net, tmp_path), args=dict(TINY), pretrained=True)
    assert loaded.num_classes == 10 and loaded.name == NAME
    assert list(loaded.net.state_dict()) == list(net.state_dict())
    assert torch.equal(loaded(images).prediction, net(images))


DECODER = {"stage1_output_decode.weight": torch.zeros(16, 8, 4, 4), "mask_token": torch.zeros(1, 1, 8)}


@pytest.mark.parametrize(
    ("more", "args", "message"),
    [
        (DECODER, {}, "fine-tuned file, which has a classifier; got one of ConvMAE's pre-training"),
        ({"norm.weight": torch.ones(16)}, {}, r"1 unexpected \(norm.weight\)"),
        ({}, {"img_size": 64}, "one size, whose positions are 4 patches; got a network of 4x4 .*get.* resized"),
    ],
    ids=["pre-trained", "another name", "another size"],
)
def test_other_files_are_refused(net: ConvViT, tmp_path: Path, more: dict, args: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(saved(net, tmp_path, **more), args={**TINY, **args}, pretrained=True)
    assert "\n" not in str(caught.value)


def test_another_networks_name_is_refused(net: ConvViT, tmp_path: Path) -> None:
    saved(net, tmp_path)
    with pytest.raises(UserError, match="a file of ConvViT. Name its architecture: convvit_base_patch16_224@FILE"):
        build(f"deit_tiny_patch16_224@{tmp_path / 'convvit.pth'}")
    save_file({"cls_token": torch.zeros(1, 1, 16)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="must fit ConvViT"):
        build(f"{NAME}@{tmp_path / 'other.safetensors'}", args=dict(TINY))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"img_size": 40}, "multiple of its patch size 16; got 40x40"),
        ({"depth": (1, 1)}, "depth of a ConvViT must be three numbers"),
    ],
)
def test_impossible_networks_are_refused(args: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(NAME, args={**TINY, **args})


def test_images_of_another_size_and_missing_weights_are_refused(net: ConvViT, images: Tensor) -> None:
    with pytest.raises(UserError, match="images of 32x32 pixels; got 16x16"):
        net(images[..., :16, :16])
    with pytest.raises(UserError, match=f"no published weights that can be downloaded. Give {NAME}@weights-file"):
        build(NAME, pretrained=True)
