"""A detector made of a ViT: what is kept, what is new, and that its record builds it again."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build, rebuild
from vitdistill.models.families.narrow import add_waves
from vitdistill.models.families.yolos import resize_patches
from vitdistill.models.record import has_new_head, record_of
from vitdistill.models.surgery.detector import detector

IMAGES = torch.randn(2, 3, 40, 24, generator=torch.Generator().manual_seed(0))
NAMES = {
    "vit": "vit_tiny_patch16_224",
    "deit_distilled": "deit_tiny_distilled_patch16_224",
    "deit3": "deit3_small_patch16_224",
    "clip": "vit_base_patch16_clip_quickgelu_224",
    "mae_mean_pool": "vit_base_patch16_224",
    "no_class_token": "vit_base_patch16_224",
    "registers": "vit_small_patch14_reg4_dinov2",
    "qk_norm": "vit_tiny_patch16_224",
}


def body_of(family: str) -> Backbone:
    """With a record, as from a run."""
    from tiny import FAMILIES

    name, args = FAMILIES[family]
    body = build(name, args=dict(args))
    body.net.load_state_dict(tiny(family).state_dict())
    return body  # type: ignore[return-value]


@pytest.mark.parametrize("family", NAMES)
def test_blocks_stay_and_the_record_builds_it_again(family: str) -> None:
    body = body_of(family)
    made = detector(body, 3, image_size=(40, 24), det_tokens=5)
    own, before = made.net.state_dict(), body.net.state_dict()
    kept = [name for name in before if name.startswith(("blocks.", "patch_embed.", "cls_token", "norm_pre."))]
    assert all(torch.equal(own[name], before[name]) for name in kept)
    norm = "fc_norm" if "norm.weight" not in before else "norm"
    assert torch.equal(own["norm.weight"], before[f"{norm}.weight"])
    assert made(IMAGES).prediction.shape == (2, 5, 8) and made.num_classes == 3
    again = rebuild(record_of(made.net))
    again.net.load_state_dict(own)
    assert torch.equal(again.eval()(IMAGES).prediction, made.eval()(IMAGES).prediction)
    assert again.input == made.input and made.input.mean == body.input.mean


def with_waves(patches: Tensor) -> Tensor:
    """Positions on a grid of 5 x 3, as those of narrow networks begin."""
    table = patches.detach().clone()
    add_waves(table, (5, 3), first=0)
    return table


def test_positions_of_a_wide_body_get_no_waves() -> None:
    body = build("vit_tiny_patch16_224", args={"img_size": 32, "patch_size": 8, "depth": 1})
    made = detector(body, 3, image_size=(40, 24), det_tokens=5)
    assert torch.equal(made.net.pos_embed[:, 1:16], resize_patches(body.net.pos_embed[:, 1:], (4, 4), (5, 3)))


@pytest.mark.parametrize(("family", "slot"), [("vit", 0), ("deit_distilled", 1), ("deit3", None), ("registers", None)])
def test_positions_are_moved_and_the_distillation_tokens_becomes_the_class_tokens(
    family: str, slot: int | None
) -> None:
    body = body_of(family)
    made = detector(body, 3, image_size=(40, 24), det_tokens=5)
    table, old = made.net.pos_embed, body.net.pos_embed
    special = old.shape[1] - 16
    expected = torch.zeros(24) if slot is None else old[0, slot]
    assert torch.equal(table[0, 0], expected)
    assert torch.equal(table[:, 1:16], with_waves(resize_patches(old[:, special:], (4, 4), (5, 3))))
    assert 0 < float(table[:, 16:].std()) < 0.1


def test_a_register_with_a_position_is_no_distillation_token() -> None:
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "reg_tokens": 1}
    body = build("vit_tiny_patch16_224", args=args)
    assert body.net.pos_embed.shape[1] == 2 + 16
    assert torch.equal(detector(body, 3).net.pos_embed[0, 0], body.net.pos_embed[0, 0])


def test_its_size_and_positions_between_blocks_by_default() -> None:
    small, wide = detector(body_of("vit"), 3), detector(body_of("vit"), 3, mid_positions=True)
    assert small.input.size == (32, 32) and small.net.mid_pos_embed is None and wide.net.mid_pos_embed is not None
    assert small.detections == 100
    large = build("vit_small_patch16_224", args={"img_size": 32, "depth": 2})
    assert detector(large, 3).net.mid_pos_embed is not None


def test_a_detector_stays_what_it_is_or_gets_a_new_class_head() -> None:
    args: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "det_tokens": 5}
    body = build("yolos_tiny", args=args, num_classes=3)
    assert detector(body, 3) is body and not has_new_head(body.net)
    with pytest.raises(UserError, match="yolos_tiny has 3 and the data 7.*--new_head"):
        detector(body, 7)
    before = {name: value.clone() for name, value in body.net.state_dict().items()}
    made = detector(body, 7, new_head=True)
    changed = [name for name, value in made.net.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["class_embed.layers.2.weight", "class_embed.layers.2.bias"]
    assert has_new_head(made.net) and made(IMAGES).prediction.shape == (2, 5, 12)
    assert rebuild(record_of(made.net)).num_classes == 7


@pytest.mark.parametrize("family", ["cait", "swin", "eva02", "beit", "dist_token"])
def test_other_networks_are_refused_in_one_line(family: str) -> None:
    body = build(tiny(family))
    if family == "dist_token":  # a plain ViT but for its token, which is left out
        assert detector(body, 3).num_classes == 3
        return
    with pytest.raises(UserError, match="A detector is made of a plain ViT or DeiT with positions") as error:
        detector(body, 3)
    assert "\n" not in str(error.value)


def test_a_segmenter_gives_its_encoder() -> None:
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    body = build("segmenter_tiny", args=args, num_classes=4)
    made = detector(body, 3, image_size=(40, 24), det_tokens=5)
    own, encoder = made.net.state_dict(), body.net.encoder.state_dict()
    kept = [name for name in encoder if name.startswith(("blocks.", "patch_embed.", "cls_token", "norm."))]
    assert len(kept) > 20 and all(torch.equal(own[name], encoder[name]) for name in kept)
    moved = resize_patches(encoder["pos_embed"][:, 1:], (4, 4), (5, 3))
    assert torch.equal(made.net.pos_embed[:, 1:16], with_waves(moved))
    assert made.net.blocks[0].norm1.eps == body.net.encoder.blocks[0].norm1.eps and made.input.mean == body.input.mean
    again = rebuild(record_of(made.net))
    again.net.load_state_dict(own)
    assert torch.equal(again.eval()(IMAGES).prediction, made.eval()(IMAGES).prediction)
