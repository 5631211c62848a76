"""Segmenter: the authors' values, what its decoder attends to, its published cost, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from golden_values import Golden
from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.models.backbone import with_tokens
from vitdistill.models.build import build
from vitdistill.models.families import as_network
from vitdistill.models.families.segmenter import LinearDecoder, Segmenter, SegmenterViT
from vitdistill.models.surgery.drop_path import drop_path_rates, set_drop_path
from vitdistill.models.weights.segmenter import convert
from vitdistill.types import Capture, TokenGrid

TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def segmenter(**options: Any) -> SegmenterViT:
    torch.manual_seed(0)
    network = build("segmenter_tiny", args={**TINY, "decoder_heads": 4, **options}, num_classes=5)
    assert isinstance(network, SegmenterViT)
    return network.eval()


# --- as the authors compute it --------------------------------------------------------------------------------------


@pytest.fixture
def case(golden: Any) -> Golden:
    return golden("segmenter_a")


def test_everything_is_as_the_authors_compute_it(case: Golden) -> None:
    network = segmenter()
    net: Segmenter = network.net
    net.load_state_dict(convert(case.part("model"), net))  # strictly
    image, linear = case.inputs["image"], LinearDecoder(24, 5)
    linear.load_state_dict(case.part("linear"))
    with torch.no_grad():
        tokens, grid = net.forward_features(image), net.grid_of(image)
        assert (grid, case.hyper["padded_hw"]) == (TokenGrid(1, 4, 6), list(net.padded(image).shape[-2:]))
        case.check("pos_embed_resized", net.positions(grid))
        case.check("encoder_features", tokens)
        case.check("decoder_masks", net.decoder(tokens[:, 1:], grid))
        case.check("linear_decoder_masks", linear(tokens[:, 1:], grid))
        output = network(image)
        case.check("output_masks", output.prediction)
        first = net.decoder.blocks[0].attn
        case.check("decoder_attention_layer0_class_rows", attention_of(network, first, image)[:, :, -5:])
    assert output.grid == grid and case.checked == set(case.expected)


def attention_of(network: SegmenterViT, attention: nn.Module, images: Tensor) -> Tensor:
    """The softmax attention that timm's unfused code computes, (b, h, m, m)."""
    found: list[Tensor] = []
    handle = attention.attn_drop.register_forward_hook(lambda _m, inputs, _o: found.append(inputs[0]))
    attention.fused_attn = False
    network(images)
    attention.fused_attn = True
    handle.remove()
    return found[0]


# --- inside ----------------------------------------------------------------------------------------------------------


def test_every_norm_has_the_authors_epsilon_and_images_their_statistics() -> None:
    network = build("segmenter_small", meta=True)
    assert {part.eps for part in network.net.modules() if isinstance(part, nn.LayerNorm)} == {1e-5}
    assert network.input.shape == (3, 512, 512) and network.num_classes == 150
    assert network.input.mean == network.input.std == (0.5, 0.5, 0.5)
    of_deit = build("segmenter_base", args={"encoder": "deit_base_patch16_384", "depth": 1}, meta=True)
    assert of_deit.input.mean == (0.485, 0.456, 0.406)
    decoder = network.net.decoder
    assert [block.attn.num_heads for block in decoder.blocks] == [6, 6]
    assert {part.p for part in decoder.modules() if isinstance(part, nn.Dropout)} == {0.1}


def test_the_decoders_saliency_is_what_its_classes_attend_to(images: Tensor) -> None:
    network = segmenter()
    capture = network.saliency_capture(-1, "decoder")
    output = network(images.requires_grad_(), capture=Capture(capture.points, head=False))
    got = network.saliency(output, -1, "decoder")
    with torch.no_grad():
        rows = attention_of(network, network.net.decoder.blocks[-1].attn, images)[:, :, -5:, :-5]
    torch.testing.assert_close(got, rows.mean(dim=(1, 2)), rtol=1e-4, atol=1e-6)
    assert got.shape == (3, 16) and not got.requires_grad
    assert output.prediction is not None  # it lies in the head, which ran


@pytest.mark.parametrize(
    ("options", "block", "words"),
    [
        ({"decoder": "linear"}, -1, "whose decoder is a mask transformer; got segmenter_tiny with a linear one"),
        ({}, 0, "behind the last block; got block 0. Use --saliency_layer last"),
    ],
)
def test_saliency_that_there_is_not(options: dict[str, Any], block: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        segmenter(**options).saliency_capture(block, "decoder")
    with pytest.raises(UserError, match="needs a Segmenter"):
        with_tokens(build(tiny("vit"))).saliency_capture(-1, "decoder")


def test_the_class_token_ranks_patches_by_default(images: Tensor) -> None:
    network = segmenter()
    assert network.saliency_kind(-1, "cls") == "cls"
    output = network(images, capture=network.saliency_capture())
    with torch.no_grad():
        row = attention_of(network, network.blocks[-1].attn, images)[:, :, 0, 1:]
    torch.testing.assert_close(network.saliency(output), row.mean(dim=1), rtol=1e-4, atol=1e-6)


def test_stochastic_depth_is_the_encoders_alone() -> None:
    network = segmenter(depth=3)
    set_drop_path(network, 0.1)
    assert drop_path_rates(network) == [0.0, 0.05, 0.1]


# --- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "encoder", "decoder"),
    [
        ("tiny", {None: 10.46}, 2.2),
        ("small", {None: 31.80, 768: 22.12, 512: 13.64}, 6.7),
        pytest.param("base", {None: 107.1, 768: 76.9}, None, marks=pytest.mark.slow),
    ],
)
def test_macs_at_512_pixels(size: str, encoder: dict[int | None, float], decoder: float | None) -> None:
    network = build(f"segmenter_{size}", meta=True)
    last = Capture.at(-1, "output", head=False)
    for kept, published in encoder.items():
        assert network.macs(kept, last).total / 1e9 == pytest.approx(published, rel=1e-3)
    whole = network.macs().total
    if decoder is not None:
        assert (whole - network.macs(None, last).total) / 1e9 == pytest.approx(decoder, rel=0.01)
    assert network.macs(768) == network.macs(768, last), "a masked pass stops behind the last block"
    assert network.macs(1024).total == whole


@pytest.mark.parametrize("decoder", ["mask", "linear"])
def test_macs_are_those_that_torch_counts(decoder: str, images: Tensor) -> None:
    network = segmenter(decoder=decoder)
    with FlopCounterMode(display=False) as counter:
        network(images)
    assert 3 * network.macs(layernorm=False).total == counter.get_total_flops() / 2


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "classes", "words"),
    [
        ({}, 1, "A Segmenter needs at least 2 classes; got 1"),
        (
            {"encoder": "vit_base_patch16_siglip_224"},
            5,
            "must be a plain ViT of timm; got .*, with attention that pools",
        ),
        ({"encoder": "vit_base_patch16_rpn_224"}, 5, "must be a plain ViT of timm"),
        ({"decoder_heads": 5}, 5, "The 24 channels of the decoder must be a multiple of its attention heads; got 5"),
    ],
    ids=["one class", "pools", "no ViT", "heads"],
)
def test_impossible_networks(args: dict[str, Any], classes: int, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        build("segmenter_tiny", args={**TINY, **args}, num_classes=classes)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unchecked")
def test_a_misspelt_decoder() -> None:
    with pytest.raises(UserError, match="decoder must be one of mask, linear; got 'masks'. Did you mean 'mask'"):
        build("segmenter_tiny", args={**TINY, "decoder": "masks"}, num_classes=5)


def test_a_module_of_ones_own_is_known(images: Tensor) -> None:
    net = Segmenter("vit_tiny_patch16_224", 5, **TINY).eval()
    network = as_network(net)
    assert isinstance(network, SegmenterViT) and torch.equal(network(images).prediction, net(images))
