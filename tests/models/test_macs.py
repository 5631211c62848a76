"""The analytic count against the paper's published columns and against torch's own counter."""

from functools import lru_cache
from itertools import pairwise

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import VisionTransformer
from torch.utils.flop_counter import FlopCounterMode

from vitdistill.errors import UserError
from vitdistill.models.families.cait import CaiT
from vitdistill.models.families.swin import Swin, window_macs
from vitdistill.models.families.vit import ViT
from vitdistill.models.macs import self_attention_macs, traced_macs
from vitdistill.models.network import Network, Opaque

IMAGES = 1_281_167  # ImageNet-1K, training set


@lru_cache
def adapter(name: str, **options: object) -> Network:
    with torch.device("meta"):
        net = timm.create_model(name, pretrained=False, **options).eval().requires_grad_(False)
    kinds = {"cait": CaiT, "swin": Swin, "resn": Opaque, "conv": Opaque}
    return kinds.get(name[:4], ViT)(net)


def published(setting: str) -> dict[int, float]:
    """Kept patches -> PFLOPs, as in the paper's tables: "196: 1770, 144: 1282"."""
    return {int(kept): float(value) for kept, value in (cell.split(":") for cell in setting.split(","))}


SMALL = "196: 1770, 144: 1282, 98: 866, 80: 707, 49: 439"
BASE = "196: 6757, 144: 4932, 98: 3349, 49: 1696"
ROWS = [
    ("deit_small_patch16_224", {}, 300, SMALL),
    ("deit3_small_patch16_224", {}, 300, SMALL),
    ("deit_base_patch16_224", {}, 300, BASE),
    ("deit3_base_patch16_224", {}, 300, BASE),
    # The paper's CLIP-B/16 cell counts a 1000-class head.
    ("vit_base_patch16_clip_quickgelu_224", {"num_classes": 1000}, 300, BASE),
    ("cait_s24_224", {}, 300, "196: 3591, 144: 2583, 98: 1728"),
    ("deit3_large_patch16_224", {}, 300, "196: 23677, 144: 17301, 98: 11744"),
    (
        "vit_base_patch16_224",
        {"num_classes": 1000, "class_token": True, "global_pool": "avg", "fc_norm": True},
        200,
        "196: 4505, 144: 3287",
    ),
    ("deit3_huge_patch14_224", {}, 50, "256: 10723, 192: 7991, 128: 5301"),
    (
        "vit_small_patch16_224",
        {"num_classes": 0},
        100,
        "196: 589, 170: 507, 150: 446, 130: 384, 120: 354",
    ),
    # The paper prints 5694 for the full 384-pixel teacher: digits swapped, 5964 fits its other cells.
    ("deit3_small_patch16_384", {}, 300, "576: 5964, 432: 4270, 288: 2725, 196: 1814"),
    ("deit_base_patch16_224", {}, 100, "196: 2252, 144: 1644, 98: 1116"),
    ("deit3_large_patch16_224", {}, 100, "196: 7892, 144: 5767, 98: 3914"),
]
CELLS = [
    pytest.param(name, options, epochs, kept, value, id=f"{name}-{epochs}-{kept}")
    for name, options, epochs, cells in ROWS
    for kept, value in published(cells).items()
]


@pytest.mark.parametrize(("name", "options", "epochs", "kept", "pflops"), CELLS)
def test_published_teacher_cost(name: str, options: dict, epochs: int, kept: int, pflops: float) -> None:
    total = adapter(name, **options).macs(kept).total * epochs * IMAGES / 1e15
    assert total == pytest.approx(pflops, rel=0.003)


@pytest.mark.parametrize(
    ("name", "full", "half"),
    [
        ("deit3_small_patch16_384", 15.3, 6.9),
        ("deit_base_patch16_224", 17.5, 8.6),
        ("deit_small_patch16_224", 4.5, 2.2),
    ],
)
def test_published_cost_of_blocks(name: str, full: float, half: float) -> None:
    """Table 10, GFLOPs of the blocks alone, to the printed digit."""
    backbone = adapter(name)
    assert backbone.macs().blocks / 1e9 == pytest.approx(full, abs=0.06)
    assert backbone.macs(backbone.grid.count // 2).blocks / 1e9 == pytest.approx(half, abs=0.06)


def torch_macs(net: torch.nn.Module, size: tuple[int, int]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(
    "name",
    [
        "deit_small_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_384",
        "deit3_huge_patch14_224",
        "vit_base_patch16_clip_quickgelu_224",
        "vit_small_patch14_reg4_dinov2",  # register tokens, no head
        "vit_giant_patch14_reg4_dinov2",  # gated MLP
        "vit_base_patch16_siglip_224",  # attention pooling
    ],
)
def test_without_layernorm_equals_torch_counter(name: str) -> None:
    backbone = adapter(name)
    assert backbone.macs(layernorm=False).total == torch_macs(backbone.net, backbone.input.size)


@pytest.mark.parametrize("name", ["cait_xxs24_224", "swin_tiny_patch4_window7_224", "deit_tiny_distilled_patch16_224"])
def test_equals_tracing_with_norms(name: str) -> None:
    backbone = adapter(name)
    traced = traced_macs(backbone, backbone.input.shape)
    counted = backbone.macs()
    assert counted.other == 0
    assert counted.layernorm == traced.layernorm
    assert counted.total == traced.total


@pytest.mark.parametrize("name", ["cait_xxs24_224", "deit3_small_patch16_384", "vit_base_patch16_clip_quickgelu_224"])
def test_masked_pass_equals_tracing_the_adapter(name: str) -> None:
    backbone = adapter(name)
    assert backbone.macs(77).total == traced_macs(backbone, backbone.input.shape, 77).total


def test_formula_of_the_spec_for_a_small_vit() -> None:
    """F = P d 3p^2 + L (12 n d^2 + 2 n^2 d) + 5 n d (2L + 1) + c d, computed by hand for one configuration."""
    with torch.device("meta"):
        net = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, num_classes=10)
    n, d, depth = 5 + 1, 48, 3
    macs = ViT(net).macs(5)
    assert macs.patch_embed == 16 * d * 3 * 64
    assert macs.projections == depth * 4 * n * d**2
    assert macs.mlp == depth * 8 * n * d**2
    assert macs.attention == depth * 2 * n**2 * d
    assert macs.layernorm == 5 * n * d * (2 * depth + 1)
    assert macs.head == 10 * d
    assert macs.total == sum(macs.parts().values())


def test_qk_norms_count_every_head() -> None:
    with torch.device("meta"):
        net = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=4, qk_norm=True)
    assert ViT(net).macs().layernorm == traced_macs(net, (3, 32, 32)).layernorm


def test_keeping_every_patch_costs_the_full_pass() -> None:
    backbone = adapter("deit_small_patch16_224")
    assert backbone.macs(196) == backbone.macs()


def test_cost_is_increasing_and_superlinear_in_kept_patches() -> None:
    backbone = adapter("deit_small_patch16_224")
    totals = [backbone.macs(kept).total for kept in (49, 98, 147, 196)]
    steps = [after - before for before, after in pairwise(totals)]
    assert all(step > 0 for step in steps)
    assert steps == sorted(steps)


def test_blocks_add_up() -> None:
    """What a teacher that stops early costs is a sum over its blocks."""
    backbone = adapter("deit_small_patch16_224")
    one, whole = self_attention_macs(backbone.blocks[0], 197), backbone.macs()
    assert (one * 12).attention == whole.attention
    assert (one + one).mlp == 2 * one.mlp
    assert (one * 12).total == 12 * one.total
    assert whole.blocks == 12 * one.total + 5 * 197 * 384  # and the final norm


def test_window_block() -> None:
    block = adapter("swin_tiny_patch4_window7_224").net.layers[0].blocks[0]
    assert window_macs(block).attention == 2 * 64 * 49**2 * 96  # 64 windows of 49 positions


def test_windows_over_the_edge_are_computed_whole() -> None:
    block = SwinTransformerBlock(dim=32, input_resolution=(12, 10), num_heads=2, window_size=7, shift_size=3)
    assert window_macs(block).total == traced_macs(block, (12, 10, 32)).total


@pytest.mark.parametrize(("name", "gmacs"), [("resnet50", 4.09), ("convnext_tiny", 4.46)])
def test_other_networks_are_traced(name: str, gmacs: float) -> None:
    backbone = adapter(name)
    macs = backbone.macs(layernorm=False)
    assert macs.total == macs.other
    assert macs.total / 1e9 == pytest.approx(gmacs, rel=0.002)


def test_tracing_leaves_the_network_alone() -> None:
    net = timm.create_model("resnet18", num_classes=10).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    Opaque(net).macs()
    assert net.training and net.layer1[0].bn1.training
    for name, tensor in net.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("keep", [0, -1, 197])
def test_keep_outside_the_grid(keep: int) -> None:
    with pytest.raises(UserError, match="between 1 and 196"):
        adapter("deit_small_patch16_224").macs(keep)


def test_keep_for_a_network_that_cannot_mask() -> None:
    with pytest.raises(UserError, match="cannot leave out patches"):
        adapter("swin_tiny_patch4_window7_224").macs(10)


def test_unknown_block() -> None:
    with pytest.raises(TypeError, match="traced_macs"):
        self_attention_macs(torch.nn.Linear(3, 3), 10)
