"""The size and the channels that a network is fed: read where they are used, and refused with sizes that work."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tiny import SMALL, tiny
from vitdistill.errors import UserError
from vitdistill.methods.mae import MAE
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.methods.tinymim import TinyMIM
from vitdistill.models.build import build, rebuild
from vitdistill.models.families import as_network
from vitdistill.models.families.eva import RotaryViT
from vitdistill.models.families.vit import ViT
from vitdistill.models.network import Opaque
from vitdistill.models.record import record_of
from vitdistill.models.teacher import Teacher
from vitdistill.training.train import export_weights
from vitdistill.types import TokenGrid

SMALLER = {"embed_dim": 24, "depth": 2, "num_heads": 3}


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [
        ("test_resnet", {}, 32),
        ("test_resnet", {"img_size": [64, 32]}, (64, 32)),
        ("beit_base_patch16_224", SMALLER, 32),
        ("beit_base_patch16_224", {**SMALLER, "img_size": (48, 32)}, (48, 32)),
        ("swinv2_tiny_window8_256", {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}, 32),
        ("eva02_tiny_patch14_224", SMALLER, 28),
        ("xcit_nano_12_p8_224", {"depth": 1, "embed_dim": 32}, 32),
        ("levit_128s", {}, 64),
        ("test_vit", {}, 96),  # takes any size by itself
    ],
)
def test_a_network_sees_the_size_that_it_is_asked_for(name: str, args: dict[str, Any], size: Any) -> None:
    given = {} if "img_size" in args else {"image_size": size}
    network = build(name, args=args, num_classes=5, **given).eval()
    height, width = (size, size) if isinstance(size, int) else size
    assert network.input.size == (height, width)
    assert network(torch.zeros(1, 3, height, width)).prediction.shape == (1, 5)
    assert Teacher(network).resized(torch.zeros(1, 3, 40, 40)).shape[-2:] == (height, width)
    again = rebuild(record_of(network.net))
    assert isinstance(network, Opaque) or again.input == network.input


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("eva02_tiny_patch14_224", 32, "multiple of the patch size 14 .*; got 32. Use 28 or 42"),
        ("beit_base_patch16_224", 40, "multiple of the patch size 16 .*; got 40. Use 32 or 48"),
        ("efficientformer_l1", 32, r"cannot take images of this size .*; got 32. Use 224"),
        pytest.param(
            *("xcit_nano_12_p16_224", 40, "cannot take images of this size .*; got 40. Use 32 or 64"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_sizes_that_do_not_work_are_refused_with_some_that_do(name: str, size: int, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        build(name, image_size=size, meta=True)
    assert "\n" not in str(error.value)


def test_patches_that_do_not_fill_the_images_an_architecture_was_trained_on() -> None:
    """SigLIP at 384 pixels: 27 x 27 patches of 14, and 6 pixels that none of them sees."""
    siglip = build("vit_so400m_patch14_siglip_384", meta=True)
    assert siglip.grid == TokenGrid(1, 27, 27) and siglip.input.size == (384, 384)
    assert siglip.input.patch == (1, 14, 14)
    args = {"embed_dim": 24, "depth": 1, "num_heads": 3, "mlp_ratio": 2}
    network = build("vit_so400m_patch14_siglip_384", args=args).eval()
    images = torch.randn(1, 3, 384, 384)
    keep = torch.arange(100)[None]
    with torch.no_grad():
        assert torch.equal(network(images).prediction, network.net(images))
        unseen = images.clone()
        unseen[..., 378:, :] = 9.0
        assert torch.equal(network(unseen, keep=keep).prediction, network(images, keep=keep).prediction)


def test_pixels_that_no_patch_covers_are_not_reconstructed() -> None:
    net = timm.create_model("vit_tiny_patch16_224", **{**SMALL, "img_size": 35})
    method = MAE(net, decoder_width=16, decoder_depth=1, decoder_heads=2).eval()
    images = torch.randn(2, 3, 35, 35)
    kept, masked = torch.arange(4).expand(2, -1), torch.arange(4, 16).expand(2, -1)
    assert method(images).loss.isfinite() and method.student.input.patch == (1, 8, 8)
    result = method.reconstruct(images, kept, masked)
    assert result.shape == images.shape and torch.equal(result[..., 32:, :], images[..., 32:, :])
    torch.testing.assert_close(result[..., :8, :32], images[..., :8, :32])
    assert not torch.allclose(result[..., 8:32, :32], images[..., 8:32, :32])


@pytest.mark.parametrize(("name", "adapter"), [("test_vit", ViT), ("vit_small_patch16_dinov3", RotaryViT)])
def test_networks_of_any_size_are_built_for_one(name: str, adapter: type) -> None:
    """Theirs by default, with the weights that timm gives them: what it computes is what timm computes."""
    args = SMALLER if adapter is RotaryViT else {}
    network = build(name, args=args).eval()
    assert type(network) is adapter and network.input.size == tuple(network.net.pretrained_cfg["input_size"][1:])
    record = record_of(network.net)
    assert record.args["dynamic_img_size"] is False and rebuild(record).input == network.input
    timms = timm.create_model(name, **args).eval()
    timms.load_state_dict(network.net.state_dict())
    images = torch.randn(1, 3, *network.input.size)
    with torch.no_grad():
        assert torch.equal(network(images).prediction, timms(images))


# --- channels --------------------


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", SMALL),
        ("test_resnet", {}),
        ("beit_base_patch16_224", SMALLER),
        pytest.param("tresnet_m", {}, marks=pytest.mark.slow),  # folds pixels into channels
    ],
)
@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_other_channels(name: str, args: dict[str, Any], channels: int) -> None:
    network = build(name, args={**args, "in_chans": channels, "img_size": 32}, num_classes=3).eval()
    spec = network.input
    assert spec.shape == (channels, 32, 32) and len(spec.mean) == len(spec.std) == channels
    assert network(torch.zeros(1, *spec.shape)).prediction.shape == (1, 3)
    published = network.net.pretrained_cfg
    assert spec.mean == (sum(published["mean"]) / 3,) * channels
    assert rebuild(record_of(network.net)).input.mean == spec.mean


def test_modules_show_their_channels_themselves() -> None:
    grey = (
        timm.create_model("test_resnet", in_chans=1),
        tiny("deit", in_chans=1),
        tiny("swin", in_chans=1),
        tiny("cait", in_chans=1),
        tiny("dinov3", in_chans=1),
    )
    for net in grey:
        spec = as_network(net).input
        assert spec.shape[0] == len(spec.mean) == len(spec.std) == 1, type(net)


def test_a_colour_teacher_sees_grey_images_as_colours_that_are_all_the_same() -> None:
    student, teacher = tiny("deit", seed=1, in_chans=1), tiny("deit3", seed=2)
    grey = torch.rand(2, 1, 32, 32)
    spec = as_network(student).input
    normalised = (grey - spec.mean[0]) / spec.std[0]
    guide = Teacher.of(teacher, as_network(student))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (guide.network.input.mean, guide.network.input.std))
    with torch.no_grad():
        expected = teacher((grey.expand(-1, 3, -1, -1) - mean) / std)
    torch.testing.assert_close(guide(normalised).prediction, expected, rtol=1e-4, atol=1e-5)
    step = MaskedKD(student, teacher, keep=5)(normalised, torch.tensor([0, 1]))
    step.loss.backward()
    assert bool(step.loss.isfinite())


def test_a_teacher_of_other_channels_is_refused_with_a_remedy() -> None:
    with pytest.raises(UserError, match=r"got 3 channels, and 4 of the teacher .*--student_args.in_chans 4"):
        MaskedKD(tiny("deit", seed=1), tiny("deit3", seed=2, in_chans=4))


@pytest.mark.parametrize(
    "make", [lambda net: TinyMIM(net, tiny("vit", seed=2)), lambda net: MAE(net, decoder_width=16)]
)
def test_methods_without_labels_take_grey_images(make: Any) -> None:
    method = make(tiny("deit", seed=1, in_chans=1)).train()
    step = method(torch.randn(2, 1, 32, 32))
    step.loss.backward()
    assert bool(step.loss.isfinite())


def test_a_module_without_a_configuration_takes_what_it_is_given() -> None:
    class Plain(nn.Module):
        num_classes = 2

    network = as_network(Plain())
    assert network.input.shape == (3, 224, 224) and not network.sized


def test_a_size_that_is_given_wins_over_that_of_a_run_of_a_cnn(tmp_path: Path) -> None:
    network = build("test_resnet", num_classes=2, image_size=64)
    record = record_of(network.net)
    record.preprocessing = {
        **{"size": [64, 64], "channels": 3, "crop_pct": 1.0, "interpolation": "bicubic", "crop_mode": "center"},
        **{"mean": list(network.input.mean), "std": list(network.input.std)},
    }
    record.write(tmp_path)
    export_weights(network.net.state_dict(), tmp_path / "student.safetensors", record)
    assert build(str(tmp_path)).input.size == (64, 64)
    assert build(str(tmp_path), image_size=96).input.size == (96, 96)
    assert build(str(tmp_path), args={"img_size": [32, 96]}).input.size == (32, 96)
    assert rebuild(record, img_size=96).input.size == (96, 96)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("size", ["32", [32], [32, 32, 3], [32.5, 32]])
def test_a_size_is_one_number_or_two(size: Any) -> None:
    for name in ("vit_tiny_patch16_224", "test_resnet"):
        with pytest.raises(UserError, match="one number of pixels, or height and width"):
            build(name, args={"img_size": size})


def test_impossible_arguments_are_not_a_matter_of_weights() -> None:
    with pytest.raises(UserError, match="cannot be built with .*'num_heads': 0.*Check its arguments"):
        build("vit_tiny_patch16_224", args={"num_heads": 0})
