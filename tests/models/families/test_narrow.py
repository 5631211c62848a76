"""How networks narrower than any published one begin."""

import pytest
import torch

from vitdistill.models.build import build
from vitdistill.models.surgery.detector import detector
from vitdistill.tokens.positions import sincos_2d
from vitdistill.types import TokenGrid

SIZES = {"img_size": 48, "patch_size": 6, "depth": 1}


def patch_positions(network: torch.nn.Module, det_tokens: int = 0) -> torch.Tensor:
    table = network.pos_embed.detach()[0]
    return table[1 : len(table) - det_tokens]


def test_positions_of_patches_are_as_large_as_patches_and_all_differ() -> None:
    torch.manual_seed(0)
    net = build("yolos_tiny", args={**SIZES, "embed_dim": 64, "num_heads": 4}, num_classes=10).net
    places = patch_positions(net, net.det_tokens)
    assert len(places) == 64 and 0.6 < places.std() < 0.8
    assert torch.pdist(places).min() > 1.0  # of 8 at most, where all 64 channels have another sign


@pytest.mark.parametrize("name", ["yolos_tiny", "segmenter_tiny", "upernet_vit_tiny"])
def test_blocks_have_the_spread_that_their_width_asks_for(name: str) -> None:
    # Glorot's spread is the square root of 2 by inputs and outputs; published ViTs begin at 0.02.
    torch.manual_seed(0)
    net = build(name, args={**SIZES, "embed_dim": 64, "num_heads": 4}, num_classes=10).net
    assert abs(net.blocks[0].attn.qkv.weight.std() - (2 / (64 + 192)) ** 0.5) < 0.005
    net = build(name, args={**SIZES, "embed_dim": 192, "num_heads": 3}, num_classes=10).net
    places = patch_positions(net, getattr(net, "det_tokens", 0)) if net.pos_embed is not None else torch.zeros(2)
    assert places.std() < 0.03 and net.blocks[0].attn.qkv.weight.std() < 0.03


def test_sounds_as_well() -> None:
    args = {"img_size": [64, 98], "depth": 1, "num_heads": 3}
    narrow = build("ast_tiny", args={**args, "embed_dim": 48}, num_classes=9).net
    assert narrow.pos_embed.shape[1] == 2 + 5 * 9
    assert narrow.pos_embed[0, 2:].std() > 0.6 and narrow.pos_embed[0, :2].std() < 0.05
    published = build("ast_tiny", args={**args, "embed_dim": 192}, num_classes=9).net
    assert published.pos_embed.std() < 0.03


def test_a_width_of_no_whole_waves_leaves_the_last_channels_as_they_are() -> None:
    net = build("yolos_tiny", args={**SIZES, "embed_dim": 30, "num_heads": 3, "det_tokens": 5}, num_classes=10).net
    places = patch_positions(net, 5)
    assert places[:, :28].std() > 0.6 and places[:, 28:].std() < 0.03


def test_a_detector_made_of_a_narrow_vit_knows_places_and_has_detection_tokens_that_differ() -> None:
    torch.manual_seed(0)
    body = build("segmenter_tiny", args={**SIZES, "embed_dim": 64, "num_heads": 4}, num_classes=11)
    net = detector(body, 10, det_tokens=8).net
    waves = patch_positions(net, 8) - patch_positions(body.trunk)
    torch.testing.assert_close(waves.square().mean(), torch.tensor(0.5))  # of sines and cosines
    assert torch.pdist(net.det_token[0].detach()).min() > 4.0


def test_the_shortest_wave_is_two_patches_long_and_the_longest_as_much_longer_as_asked() -> None:
    table = sincos_2d(32, TokenGrid(1, 1, 65), step=torch.pi, spread=32.0)[0]
    cosines = table[:, 8:16]  # of the columns
    torch.testing.assert_close(cosines[:, 0], torch.tensor([1.0, -1.0]).repeat(33)[:65], atol=1e-5, rtol=0)
    # Frequencies are pi / 32^(i / 8): four channels on, waves are 32^0.5 times as long.
    expected = torch.cos(torch.pi / 32**0.5 * torch.arange(65.0))
    torch.testing.assert_close(cosines[:, 4], expected, atol=1e-4, rtol=0)
