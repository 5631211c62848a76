"""UperNet over a ViT: relative positions written out by hand, taps and necks, published size and cost, layer decay."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitdistill.errors import UserError
from vitdistill.methods.distillation import Distillation
from vitdistill.models.build import build, rebuild
from vitdistill.models.families.upernet import UperNet, UperNetViT, default_taps
from vitdistill.models.macs import traced_macs
from vitdistill.models.record import record_of
from vitdistill.tokens.gather import take
from vitdistill.training.optim import plan_groups
from vitdistill.training.settings import Optim
from vitdistill.types import Capture

STAR = "upernet_vit_tiny_star"
TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}


def upernet(name: str = "upernet_vit_tiny", **options: Any) -> UperNetViT:
    """Every parameter is random, so that no bias hides behind zero."""
    torch.manual_seed(0)
    network = build(name, args={**TINY, **options}, num_classes=5)
    assert isinstance(network, UperNetViT)
    with torch.no_grad():
        for parameter in network.net.encoder.parameters():
            parameter.copy_(0.5 * parameter + 0.3 * torch.randn_like(parameter))
    return network.eval()


# --- the body, by hand -----------------------------------------------------------------------------------------------


def bias_by_hand(table: Tensor, side: int, specials: int) -> Tensor:
    """(h, m, m): one entry for each offset of two patches, and three that have a special token, for each of these."""
    tokens = specials + side**2
    result = torch.empty(table.shape[1], tokens, tokens)
    for one in range(tokens):
        for other in range(tokens):
            first = min(one, other)
            if first >= specials:
                (row, column), (row2, column2) = (divmod(token - specials, side) for token in (one, other))
                entry = (row - row2 + side - 1) * (2 * side - 1) + column - column2 + side - 1
            else:  # 1 to 3 from the end those of the class token, 4 to 6 those of the distillation token
                entry = len(table) - 3 * first - (1 if one == other else 3 if one == first else 2)
            result[:, one, other] = table[entry]
    return result


def block_by_hand(block: Any, tokens: Tensor, bias: Tensor) -> Tensor:
    """(b, m, d) from the weights alone; bias is (b, h, m, m)."""
    inner = F.layer_norm(tokens, tokens.shape[-1:], block.norm1.weight, block.norm1.bias, 1e-6)
    q, k, v = block.attn.qkv(inner).unflatten(2, (3, bias.shape[1], -1)).permute(2, 0, 3, 1, 4)
    mixed = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
    tokens = tokens + block.ls1.gamma * block.attn.proj(mixed.transpose(1, 2).flatten(2))
    inner = F.layer_norm(tokens, tokens.shape[-1:], block.norm2.weight, block.norm2.bias, 1e-6)
    return tokens + block.ls2.gamma * block.mlp.fc2(F.gelu(block.mlp.fc1(inner)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["upernet_vit_tiny", STAR])
def test_blocks_add_biases_by_where_tokens_lie_to_each_other(images: Tensor, name: str, masked: bool) -> None:
    network = upernet(name, num_heads=[3, 3, 4])
    keep = torch.stack([torch.randperm(16)[:7].sort().values for _ in range(3)]) if masked else None
    net, every = network.net.encoder, torch.arange(16).expand(3, -1)
    with torch.no_grad():
        got = network(images, keep=keep, capture=Capture.at(-1, "output", head=False)).tokens(-1).all
        special = net.cls_token if name != STAR else torch.cat((net.cls_token, net.dist_token), dim=1)
        count = special.shape[1]
        tokens = net.patch_embed(images) + net.pos_embed[:, count:]
        tokens = take(tokens, every if keep is None else keep)
        tokens = torch.cat(((special + net.pos_embed[:, :count]).expand(3, -1, -1), tokens), dim=1)
        seen = (every if keep is None else keep) + count
        seen = torch.cat((torch.arange(count).expand(3, -1), seen), dim=1)
        for block in net.blocks:
            bias = bias_by_hand(block.attn.relative_position_bias_table, 4, count)
            bias = torch.stack([bias[:, row][:, :, row] for row in seen])
            tokens = block_by_hand(block, tokens, bias)
    torch.testing.assert_close(got, tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["upernet_vit_tiny", STAR])
def test_saliency_has_the_biases(images: Tensor, name: str) -> None:
    network, rows = upernet(name), []
    specials = network.specials
    kinds = {"cls": slice(0, 1), "patch": slice(specials, None), "cls+dist": slice(0, 2)}
    attention = network.blocks[1].attn
    attention.attn_drop.register_forward_hook(lambda _m, inputs, _o: rows.append(inputs[0]))
    attention.fused_attn = False
    with torch.no_grad():
        for kind, queries in list(kinds.items())[: 1 + specials]:
            output = network(images, capture=network.saliency_capture(1, kind))  # type: ignore[arg-type]
            got = network.saliency(output, 1, kind)  # type: ignore[arg-type]
            torch.testing.assert_close(got, rows[-1][:, :, queries, specials:].mean(dim=(1, 2)), rtol=1e-4, atol=1e-6)
    if specials == 1:
        with pytest.raises(UserError, match="'cls\\+dist' needs a network with a distillation token"):
            network.saliency_capture(1, "cls+dist")


def test_relative_positions_begin_at_zero_and_scales_at_one() -> None:
    net = build("upernet_vit_tiny", args={**TINY, "num_heads": [3, 3, 4]}, num_classes=5).net
    for block, heads in zip(net.blocks, (3, 3, 4), strict=True):
        assert block.attn.num_heads == heads and block.attn.head_dim == 24 // heads
        assert block.attn.relative_position_bias_table.shape == (7 * 7 + 3, heads)
        assert not block.attn.relative_position_bias_table.any()
        assert bool((block.ls1.gamma == 1).all()) and bool((block.ls2.gamma == 1).all())
    assert not any(name.startswith("encoder.norm.") for name, _ in net.named_parameters())


# --- taps, necks and heads -------------------------------------------------------------------------------------------


def test_heads_read_maps_of_four_sizes(images: Tensor) -> None:
    network, sizes = upernet(), []
    pyramid = network.net.decoder
    pyramid.decode_head.register_forward_pre_hook(
        lambda _m, inputs: sizes.extend(tuple(one.shape) for one in inputs[0])
    )
    output = network(images)
    assert sizes == [(3, 24, 16, 16), (3, 24, 8, 8), (3, 24, 4, 4), (3, 24, 2, 2)]
    assert output.prediction.shape == (3, 5, 32, 32) and output.distilled is None
    assert torch.equal(output.prediction, network.net(images))
    kinds = [type(part).__name__ for part in pyramid.necks[0]]
    assert kinds == ["ConvTranspose2d", "BatchNorm2d", "GELU", "ConvTranspose2d"]
    for head in (pyramid.decode_head, pyramid.auxiliary_head):
        assert isinstance(head.classifier[0], nn.Dropout2d) and head.classifier[0].p == 0.1


@torch.no_grad()
def test_wide_necks_put_out_four_times_the_width(images: Tensor) -> None:
    """As TinyMIM's tiny* has them: the coarsest map is expanded patch by patch, then a convolution halves it."""
    network, sizes, read = upernet(STAR), [], []
    pyramid = network.net.decoder
    assert pyramid.decode_head.channels == 96
    assert upernet(STAR, channels=24).net.decoder.decode_head.channels == 24  # the light head
    pyramid.decode_head.register_forward_pre_hook(
        lambda _m, inputs: sizes.extend(tuple(one.shape) for one in inputs[0])
    )
    pyramid.necks[3].register_forward_hook(lambda _m, _i, out: read.append(out))
    last = network(images, capture=Capture.at(-1, "output")).tokens(-1).patches
    assert sizes == [(3, 96, 16, 16), (3, 96, 8, 8), (3, 96, 4, 4), (3, 96, 2, 2)]
    finest, half, once, (_, norm, linear, _, _, convolution) = pyramid.necks
    assert [tuple(part.weight.shape) for part in (finest[0], finest[1], finest[3])] == [
        *((24, 48, 2, 2), (48,), (48, 96, 2, 2)),
    ]
    assert half.weight.shape == (24, 96, 2, 2) and once.weight.shape == (96, 24, 1, 1)
    assert linear.weight.shape == (1280, 24) and convolution.weight.shape == (96, 1280, 3, 3)
    wide = F.gelu(F.linear(F.layer_norm(last, (24,), norm.weight, norm.bias), linear.weight, linear.bias))
    wide = F.conv2d(wide.transpose(1, 2).unflatten(2, (4, 4)), convolution.weight, convolution.bias, 2, 1)
    torch.testing.assert_close(read[0], wide, rtol=1e-4, atol=1e-5)


def test_the_third_map_is_the_blocks_output_without_a_norm(images: Tensor) -> None:
    network, read = upernet(taps=[0, 0, 1, 2]), []
    network.net.decoder.necks[2].register_forward_hook(lambda _m, _i, out: read.append(out))
    output = network(images, capture=Capture.at(1, "output"))
    assert torch.equal(read[0].flatten(2).transpose(1, 2), output.tokens(1).patches)


def test_the_auxiliary_head_answers_in_training(images: Tensor) -> None:
    network = upernet().train()
    torch.manual_seed(1)
    output = network(images)
    torch.manual_seed(1)
    prediction, auxiliary = network.net(images)
    assert output.prediction.shape == output.distilled.shape == (3, 5, 32, 32)
    assert torch.equal(output.distilled, auxiliary) and torch.equal(output.prediction, prediction)
    with pytest.raises(UserError, match="at least two images on each device; got one"):
        network(images[:1])
    assert network.eval()(images[:1]).prediction.shape == (1, 5, 32, 32)


@pytest.mark.parametrize(("depth", "taps"), [(12, [3, 5, 7, 11]), (24, [7, 11, 15, 23]), (3, [0, 0, 1, 2])])
def test_blocks_that_are_read(depth: int, taps: list[int]) -> None:
    assert default_taps(depth) == taps


# --- as published ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_head_has_the_published_size_and_cost() -> None:
    network = build("upernet_vit_base", meta=True)
    head = network.net.decoder.decode_head
    assert sum(parameter.numel() for parameter in head.parameters()) / 1e6 == pytest.approx(68.0, abs=0.05)
    assert network.input.shape == (3, 512, 512) and network.input.mean[0] == 0.485

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, finest: Tensor) -> Tensor:
            return self.head([F.interpolate(finest, scale_factor=2.0**-step) for step in range(4)])

    assert traced_macs(Head(), (768, 128, 128)).total / 1e9 == pytest.approx(483, abs=0.5)
    body = network.macs(None, Capture.at(-1, "output", head=False)).total
    assert body / 1e9 == pytest.approx(107.1, rel=1e-3)
    assert network.macs(768).total / 1e9 == pytest.approx(76.9, rel=1e-3)


@pytest.mark.slow
def test_tiny_star_has_the_published_sizes() -> None:
    network = build(STAR, meta=True)
    net, head = network.net.encoder, network.net.decoder.decode_head
    assert (network.width, network.specials, network.grid.count) == (192, 2, 1024)
    assert {block.attn.num_heads for block in net.blocks} == {12} and head.channels == 768
    assert net.blocks[0].attn.relative_position_bias_table.shape == (63**2 + 6, 12)
    assert net.pos_embed.shape == (1, 1026, 192) and network.input.mean[0] == 0.485
    assert sum(parameter.numel() for parameter in head.parameters()) / 1e6 == pytest.approx(68.0, abs=0.05)
    light = build(STAR, args={"channels": 192}, meta=True)
    macs = [one.macs().total / 1e9 for one in (network, light)]
    body = network.macs(None, Capture.at(-1, "output", head=False)).total / 1e9
    assert (body, *macs) == pytest.approx((10.47, 502.3, 52.09), rel=1e-3)  # ours: nobody publishes them


@pytest.mark.parametrize("name", ["upernet_vit_tiny", STAR])
def test_macs_are_those_that_torch_counts(images: Tensor, name: str) -> None:
    network = upernet(name)
    with FlopCounterMode(display=False) as counter:
        network(images)
    assert 3 * network.macs(layernorm=False).total == counter.get_total_flops() / 2


@pytest.mark.parametrize(("name", "decay"), [("upernet_vit_tiny", 0.75), (STAR, 0.8)])
def test_layers_learn_at_the_published_rates(name: str, decay: float) -> None:
    """decay^(13 - id): 0 for embeddings, i + 1 for block i, 13 for all else; 1-D parameters and positions do not decay.

    The authors' code lets positions and class token decay, since it misses a prefix of their names.
    """
    network = build(name, args={**TINY, "depth": 12}, num_classes=5)
    method = Distillation(network)
    groups = plan_groups(method, Optim(layer_decay=decay, weight_decay=0.05))
    found = {name.removeprefix("student.net."): group.options for group in groups for name in group.names}
    assert len(found) == len(list(network.parameters()))
    levels = {
        "encoder.cls_token": 0,
        "encoder.pos_embed": 0,
        "encoder.patch_embed.proj.weight": 0,
        "encoder.blocks.0.attn.relative_position_bias_table": 1,
        "encoder.blocks.11.ls1.gamma": 12,
        "decoder.necks.0.0.weight": 13,
        "decoder.decode_head.classifier.1.weight": 13,
        **({"encoder.dist_token": 0, "decoder.necks.3.2.weight": 13} if name == STAR else {}),
    }
    for parameter, level in levels.items():
        assert found[parameter]["lr_scale"] == pytest.approx(decay ** (13 - level)), parameter
    still = {name for name, options in found.items() if options["weight_decay"] == 0}
    one = {name for name, parameter in network.net.named_parameters() if parameter.ndim == 1}
    assert still == one | {"encoder.pos_embed", "encoder.cls_token", *(["encoder.dist_token"] if name == STAR else [])}


# --- records and refusals --------------------------------------------------------------------------------------------


def test_a_record_knows_the_heads_of_every_block(images: Tensor) -> None:
    network = upernet(num_heads=[3, 3, 4], taps=[0, 1, 1, 2], channels=16)
    again = rebuild(record_of(network.net))
    again.net.load_state_dict(network.net.state_dict())
    assert torch.equal(again.eval()(images).prediction, network(images).prediction)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"num_heads": [3, 3]}, r"or one for each of its 3 blocks; got \[3, 3\]"),
        ({"num_heads": [3, 3, 5]}, "divides its 24 channels"),
        ({"taps": [0, 1, 2, 3]}, r"taps of an UperNet must be four blocks from 0 to 2; got \[0, 1, 2, 3\]"),
        ({"encoder": "vit_small_patch14_reg4_dinov2"}, "must have a class token, and no other special ones"),
    ],
    ids=["too few", "heads", "taps", "registers"],
)
def test_impossible_networks(args: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        build("upernet_vit_tiny", args={**TINY, **args}, num_classes=5)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unchecked")
def test_misspelt_necks() -> None:
    with pytest.raises(UserError, match="necks must be one of plain, wide; got 'wid'. Did you mean 'wide'"):
        build("upernet_vit_tiny", args={**TINY, "necks": "wid"}, num_classes=5)


def test_images_of_another_size(images: Tensor) -> None:
    network = upernet()
    for one in (network, network.net):
        with pytest.raises(UserError, match="This UperNet takes images of 32x32 pixels; got 24x32"):
            one(images[..., :24, :])


def test_the_library_of_its_heads_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers.models.upernet.modeling_upernet", None)
    with pytest.raises(UserError, match="transformers library. pip install"):
        UperNet("vit_tiny_patch16_224", 5, **TINY)
