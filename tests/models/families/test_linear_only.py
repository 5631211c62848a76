"""A classifier on a frozen body: DINO's features, and nothing of the body in what a training touches."""

import copy
from pathlib import Path

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from tiny import SMALL, tiny
from vitdistill.errors import UserError
from vitdistill.models.build import build, rebuild
from vitdistill.models.families import as_network
from vitdistill.models.families.linear_only import FrozenBody, linear_only
from vitdistill.models.network import Network
from vitdistill.models.record import ModelRecord, record_of
from vitdistill.models.surgery.linear_head import as_one_network
from vitdistill.models.teacher import Teacher
from vitdistill.training.train import export_weights
from vitdistill.types import Capture

NAME, ARGS = "vit_tiny_patch16_224", {**SMALL, "depth": 5}


def student(features: str = "auto", family: str = "vit", **args: object) -> FrozenBody:
    torch.manual_seed(0)
    return linear_only(build(tiny(family, seed=1, depth=5, **args)), 10, features)


@pytest.mark.parametrize(("features", "width"), [("cls", 24), ("cls4", 96), ("cls+mean", 48)])
@pytest.mark.parametrize("family", ["vit", "deit_distilled", "registers", "dinov3", "clip"])
def test_the_classifier_reads_the_features_of_dinos_protocol(images, family, features, width) -> None:
    """Of timm: normed tokens of intermediate layers, the class token being the first special one."""
    network = student(features, family)
    net = tiny(family, seed=1, depth=5)
    layers = net.forward_intermediates(
        images, indices=[1, 2, 3, 4], norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    tokens = [layers[-1][1][:, 0]]
    if features == "cls4":
        tokens = [special[:, 0] for _, special in layers]
    elif features == "cls+mean":
        tokens.append(layers[-1][0].mean(dim=1))
    head = network.net.head
    assert head.in_features == width
    output = network(images)
    torch.testing.assert_close(output.prediction, head(torch.cat(tokens, dim=-1)))
    assert not output.captured and torch.equal(network.net(images), output.prediction)
    torch.testing.assert_close(output.final.patches, layers[-1][0])


def test_dino_s_reads_four_blocks_and_b_the_last_one() -> None:
    small, base = (build(f"vit_{size}_patch16_224.dino", meta=True) for size in ("small", "base"))
    for body, features, width in ((small, "cls4", 4 * 384), (base, "cls+mean", 2 * 768)):
        net = linear_only(body, 1000).net
        assert (net.features, net.head.in_features) == (features, width)
    head = student().net.head
    assert abs(float(head.weight.detach().std()) - 0.01) < 0.001 and not head.bias.any()


def test_the_body_is_a_guest(images: Tensor) -> None:
    network = student().train()
    assert set(network.state_dict()) == {"net.head.weight", "net.head.bias"} == set(dict(network.named_parameters()))
    before = {name: value.clone() for name, value in network.fixed().items()}
    assert not network.body.training and len(before) == len(tiny("vit", depth=5).state_dict()) - 2
    network(images).prediction.sum().backward()
    assert all(parameter.grad is None for parameter in network.body.parameters())
    assert network.net.head.weight.grad is not None
    average = ModelEmaV3(network.net, decay=0.5)
    assert average.module.body is network.body and set(average.module.state_dict()) == {"head.weight", "head.bias"}
    assert torch.equal(as_network(average.module)(images).prediction, network(images).prediction)
    assert all(torch.equal(value, before[name]) for name, value in network.fixed().items())


def test_keeping_all_patches_is_bit_identical(images: Tensor) -> None:
    network = student()
    everything = torch.arange(16).expand(3, -1)
    assert torch.equal(network(images, keep=everything).prediction, network(images).prediction)
    assert not torch.equal(network(images, keep=everything[:, :8]).prediction, network(images).prediction)


def test_saliency_and_captures_are_the_bodys(images: Tensor) -> None:
    network, body = student(), build(tiny("vit", seed=1, depth=5))
    asked = network.saliency_capture() | Capture.at(3, "output")
    output, own = network(images, capture=asked), body(images, capture=asked)
    assert torch.equal(network.saliency(output), body.saliency(own)) and set(output.captured) == asked.points
    assert torch.equal(output.tokens(3).all, own.tokens(3).all)
    assert network(images, capture=Capture.at(0, "output", head=False)).prediction is None


def test_a_student_can_teach_in_another_number_format(images: Tensor) -> None:
    network = student()
    exact = network(images).prediction.detach()
    teacher = Teacher(copy.deepcopy(network), dtype=torch.bfloat16)
    scores = teacher(images).prediction
    assert scores.dtype == torch.float32 and float((scores - exact).abs().max() / exact.abs().max()) < 0.05


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, images: Tensor) -> Path:
    """A run directory's files of a linear-only student."""
    torch.manual_seed(1)
    network = linear_only(build(NAME, args=ARGS), 10, "cls4")
    record = record_of(network.net)
    record.classes = [f"class {number}" for number in range(10)]
    record.write(tmp_path)
    weights = {**network.fixed(), **network.net.state_dict()}
    export_weights(weights, tmp_path / "student.safetensors", record)
    torch.save(network(images).prediction.detach(), tmp_path / "scores")
    return tmp_path


def test_a_file_says_by_itself_what_it_holds(folder: Path, images: Tensor) -> None:
    expected = torch.load(folder / "scores")
    for spec in (str(folder), f"{NAME}@{folder / 'student.safetensors'}"):
        network = build(spec)
        assert isinstance(network, FrozenBody) and network.net.features == "cls4" and network.num_classes == 10
        assert torch.equal(network(images).prediction, expected)
        assert record_of(network.net).classes[3] == "class 3"
    assert record_of(network.net) == ModelRecord.read(folder)
    empty = rebuild(ModelRecord.read(folder))
    assert isinstance(empty, FrozenBody) and empty.fixed().keys() == network.fixed().keys()
    assert build(str(folder), meta=True).macs().total == network.macs().total


def test_other_classes_and_sizes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    body: Network = build(str(folder), num_classes=0)
    assert not isinstance(body, FrozenBody) and body.num_classes == 0
    other = build(str(folder), num_classes=4)
    assert isinstance(other, FrozenBody) and other.num_classes == 4 and not record_of(other.net).classes
    assert "a new classifier for 4 classes (the file has 10)" in caplog.text
    assert build(str(folder), image_size=64).grid.count == 64


def test_a_file_with_a_classifier_gives_its_body_alone_where_no_classes_are_wanted(tmp_path: Path) -> None:
    net = build(NAME, args=ARGS).net
    export_weights(net.state_dict(), tmp_path / "net.safetensors")
    body = build(f"{NAME}@{tmp_path / 'net.safetensors'}", args=ARGS, num_classes=0)
    assert body.num_classes == 0 and torch.equal(body.net.norm.weight, net.norm.weight)


def test_the_last_class_token_alone_makes_a_network_of_timm(images: Tensor) -> None:
    torch.manual_seed(0)
    network = linear_only(build(NAME, args=ARGS), 7, "cls")
    plain = as_one_network(network)
    torch.testing.assert_close(plain.net(images), network(images).prediction)
    with pytest.raises(UserError, match=r"is no network of timm, so it cannot be kept; got pool cls4"):
        as_one_network(linear_only(build(NAME, args=ARGS), 7, "cls4"))


def test_the_body_of_another_network_is_refused() -> None:
    with pytest.raises(UserError, match="The body in body.safetensors must be that of"):
        student().load_fixed(student(embed_dim=12).fixed(), "body.safetensors")


# --- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("swin", {}, "reads the class token of a ViT; got swin.*Choose a ViT with a class token"),
        ("cait", {}, "reads the class token of a ViT; got cait"),
        ("no_class_token", {}, "reads the class token of a ViT; got vit_base"),
        ("mae_mean_pool", {}, "behind the final norm; got vit_base_patch16_224, which has none there"),
        (
            "vit",
            {"features": "cls4"},
            "The features cls4 need four blocks; got vit_tiny_patch16_224 with 3. Use --linear_features cls",
        ),
    ],
)
def test_bodies_without_these_features_are_refused(family, options, words) -> None:
    with pytest.raises(UserError, match=words) as error:
        linear_only(build(tiny(family)), 10, **options)
    assert "\n" not in str(error.value)


def test_few_blocks_are_read_as_those_of_large_networks_are() -> None:
    assert linear_only(build(tiny("vit")), 10).net.features == "cls+mean"


def test_unknown_features_are_refused() -> None:
    with pytest.raises(UserError, match=r"linear_features must be one of auto, cls, cls4, cls\+mean; got 'cls5'"):
        student("cls5")
