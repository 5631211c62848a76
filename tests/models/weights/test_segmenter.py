"""Segmenter's published files: {"model": encoder.*, decoder.*}."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from golden_values import Golden
from vitdistill.errors import UserError
from vitdistill.models.build import build

ARGS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "decoder_heads": 4,
}


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Of the reference values, as the authors save them: the encoder's unused classifier included."""
    return Golden("segmenter_a").part("model")


def saved(weights: dict[str, Tensor], folder: Path) -> str:
    torch.save({"model": weights, "epoch": 63}, folder / "checkpoint.pth")
    return f"segmenter_tiny@{folder / 'checkpoint.pth'}"


def test_a_published_file_is_a_model(weights: dict[str, Tensor], tmp_path: Path) -> None:
    case = Golden("segmenter_a")
    network = build(saved(weights, tmp_path), args=dict(ARGS)).eval()
    assert network.num_classes == 5 and network.input.mean == (0.5, 0.5, 0.5)
    with torch.no_grad():
        case.check("output_masks", network(case.inputs["image"]).prediction)


def test_other_classes_get_new_embeddings(weights: dict[str, Tensor], tmp_path: Path) -> None:
    net = build(saved(weights, tmp_path), args=dict(ARGS), num_classes=7).net
    assert net.decoder.cls_emb.shape == (1, 7, 24) and net.decoder.mask_norm.weight.shape == (7,)
    assert torch.equal(net.decoder.blocks[1].attn.qkv.weight, weights["decoder.blocks.1.attn.qkv.weight"])
    assert torch.equal(net.encoder.norm.bias, weights["encoder.norm.bias"])


def test_positions_go_to_the_grid_bilinearly(weights: dict[str, Tensor], tmp_path: Path) -> None:
    net = build(saved(weights, tmp_path), args={**ARGS, "img_size": (48, 40)}).net
    image = weights["encoder.pos_embed"][:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(6, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(net.encoder.pos_embed[:, 1:], image.permute(0, 2, 3, 1).flatten(1, 2))


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("segmenter_tiny", {"decoder": "linear"}, "mask in the file, linear asked for. Set decoder to mask"),
        ("segmenter_tiny", {"depth": 3}, r"12 missing \(encoder.blocks.2"),
        ("segmenter_tiny", {"img_size": 24, "patch_size": 6, "embed_dim": 48}, "of another shape"),
        ("vit_tiny_patch16_224", {"decoder_heads": None}, "a file that looks like Segmenter"),
    ],
    ids=["decoder", "depth", "width", "ViT"],
)
def test_what_does_not_fit(
    weights: dict[str, Tensor], tmp_path: Path, name: str, args: dict[str, Any], words: str
) -> None:
    args = {key: value for key, value in {**ARGS, **args}.items() if value is not None}
    spec = saved(weights, tmp_path).replace("segmenter_tiny", name)
    with pytest.raises(UserError, match=words) as caught:
        build(spec, args=args)
    assert "\n" not in str(caught.value)


def test_a_file_with_the_linear_decoder(weights: dict[str, Tensor], tmp_path: Path) -> None:
    linear = {name: value for name, value in weights.items() if name.startswith("encoder.")}
    linear |= {f"decoder.{name}": value for name, value in Golden("segmenter_a").part("linear").items()}
    args = {key: value for key, value in ARGS.items() if key != "decoder_heads"}
    spec = saved(linear, tmp_path)
    net = build(spec, args={**args, "decoder": "linear"}).net
    assert torch.equal(net.decoder.head.weight, linear["decoder.head.weight"])
    with pytest.raises(UserError, match="linear in the file, mask asked for"):
        build(spec, args=dict(ARGS))
