"""A trained ViT as the body of a network that labels pixels."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.models.build import build, rebuild
from vitdistill.models.families.vit import ViT
from vitdistill.models.record import record_of
from vitdistill.models.surgery.attention_heads import head_count, set_heads
from vitdistill.models.surgery.segmenter import segmenter, upernet
from vitdistill.types import Capture

TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
MAKERS = {"segmenter": segmenter, "upernet": upernet}


def body(name: str = "deit_tiny_patch16_224", classes: int = 0, **args: Any) -> ViT:
    torch.manual_seed(0)
    network = build(name, args={**TINY, **args}, num_classes=classes)
    assert isinstance(network, ViT)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def blocks_of(network: Any, images: Tensor) -> Tensor:
    return network.eval()(images, capture=Capture.at(-1, "output", head=False)).tokens(-1).all


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("deit3_small_patch16_224", {}),
        ("vit_base_patch16_224", {"global_pool": "avg"}),
        ("vit_base_patch16_clip_quickgelu_224", {}),
    ],
    ids=["deit3", "mean pool", "clip"],
)
def test_blocks_compute_what_they_did(images: Tensor, maker: str, name: str, args: dict[str, Any]) -> None:
    """Norms differ by their epsilon in a Segmenter; an UperNet's biases begin at zero, its scales at one."""
    own = body(name, classes=7, **args)
    network = MAKERS[maker](own, 5)
    torch.testing.assert_close(blocks_of(network, images), blocks_of(own, images), rtol=1e-3, atol=1e-4)
    assert network.num_classes == 5 and network.input.mean == own.input.mean
    assert all(parameter.requires_grad for parameter in network.parameters())
    if maker == "segmenter":  # the norm lay behind mean pooling in one of them
        before = own.net.fc_norm if args else own.net.norm
        assert torch.equal(network.net.encoder.norm.weight, before.weight)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_run_of_it_is_a_model(images: Tensor, tmp_path: Path, maker: str) -> None:
    network = MAKERS[maker](body(), 5).eval()
    record_of(network.net).classes = list("abcde")
    save_file(network.net.state_dict(), tmp_path / "student.safetensors")
    record_of(network.net).write(tmp_path)
    again = build(str(tmp_path)).eval()
    assert torch.equal(again(images).prediction, network(images).prediction)
    assert record_of(again.net).classes == list("abcde")
    fresh = build(str(tmp_path), num_classes=3)
    assert fresh(images).prediction.shape[1] == 3
    assert torch.equal(blocks_of(fresh, images), blocks_of(network, images))


@pytest.mark.parametrize(("maker", "mode"), [("segmenter", "bilinear"), ("upernet", "bicubic")])
def test_positions_are_interpolated_as_published(maker: str, mode: str) -> None:
    own = body()
    network = MAKERS[maker](own, 5, image_size=(48, 32))
    table, got = own.net.pos_embed, network.net.encoder.pos_embed
    image = table[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(6, 4), mode=mode, align_corners=False, antialias=False)
    torch.testing.assert_close(got[:, 1:], image.permute(0, 2, 3, 1).flatten(1, 2))
    assert torch.equal(got[:, :1], table[:, :1]) and network.input.size == (48, 32)


@pytest.mark.parametrize("maker", MAKERS)
def test_heads_of_single_blocks_stay(images: Tensor, maker: str) -> None:
    """The last block of TinyMIM-B has 16 heads, the others 12."""
    own = body()
    set_heads(own, {-1: 4})
    network: Any = MAKERS[maker](own, 5)
    assert [head_count(network, block) for block in range(3)] == [3, 3, 4]
    torch.testing.assert_close(blocks_of(network, images), blocks_of(own, images), rtol=1e-3, atol=1e-4)


def test_special_tokens_of_the_body(images: Tensor) -> None:
    """A distilled DeiT keeps its second token; one without a position (G2SD) has no place."""
    assert segmenter(body("deit_tiny_distilled_patch16_224"), 5).specials == 2
    assert segmenter(body(dist_token=True), 5).specials == 1
    distilled = body("deit_tiny_distilled_patch16_224", classes=7)
    wide = upernet(distilled, 5, necks="wide", channels=24)
    assert all(maker(distilled, 5).saliency_capture(-1, "cls+dist") for maker in MAKERS.values())
    assert wide.specials == 2 and wide.net.decoder.decode_head.channels == 24
    torch.testing.assert_close(blocks_of(wide, images), blocks_of(distilled, images), rtol=1e-3, atol=1e-4)
    again = rebuild(record_of(wide.net))
    again.net.load_state_dict(wide.net.state_dict())
    assert torch.equal(again.eval()(images).prediction, wide(images).prediction)


def test_options_reach_the_network() -> None:
    network = segmenter(body(), 5, decoder="linear", drop_path=0.2)
    assert record_of(network.net).args["decoder"] == "linear" and not hasattr(network.net.decoder, "cls_emb")
    wide = upernet(body(), 5, channels=16, taps=[0, 1, 1, 2])
    assert wide.net.decoder.decode_head.channels == 16 and wide.net.taps == [0, 1, 1, 2]


def test_an_encoder_can_be_taken_further(images: Tensor) -> None:
    first = segmenter(body(), 5)
    second, third = segmenter(first, 7, decoder="linear"), upernet(first, 7)
    assert torch.equal(blocks_of(second, images), blocks_of(first, images))
    torch.testing.assert_close(blocks_of(third, images), blocks_of(first, images), rtol=1e-3, atol=1e-4)
    assert torch.equal(blocks_of(upernet(third, 3), images), blocks_of(third, images))
    with pytest.raises(UserError, match="no relative positions, which the blocks of an UperNet were trained with"):
        segmenter(third, 5)


BOXES = {"img_size": [16, 16], "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "det_tokens": 3}
CLIPS = {"img_size": 16, "patch_size": 8, "frames": 2, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("name", ["cait", "dinov3", "convvit", "clips", "boxes"])
def test_other_networks_are_refused(name: str) -> None:
    made = {"clips": ("video_vit_small_patch16_224", CLIPS), "boxes": ("yolos_tiny", BOXES)}
    other = build(made[name][0], args=dict(made[name][1])) if name in made else build(tiny(name))
    for maker in MAKERS.values():
        with pytest.raises(UserError, match="is made of a plain ViT of timm over images") as caught:
            maker(other, 5)
        assert "\n" not in str(caught.value)


def test_modules_and_registers_are_refused() -> None:
    with pytest.raises(UserError, match="given as a module object can only be rebuilt in Python"):
        segmenter(build(tiny("vit")), 5)
    with pytest.raises(UserError, match="must have a class token, and no other special ones"):
        upernet(body("vit_small_patch14_reg4_dinov2"), 5)
