"""Pooled features: what the network's own head reads, for every family."""

from typing import Any, Literal

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from tiny import FAMILIES, tiny
from vitdistill.data.images.augment import Augment
from vitdistill.data.images.samples import ImageSamples
from vitdistill.data.samples import ViewOptions
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.evaluation.features import extract, pooled, pooling_of
from vitdistill.evaluation.loading import Reader, Subject
from vitdistill.models.families import as_network

AUTO = {
    "vit": "cls",
    "deit": "cls",
    "deit3": "cls",
    "clip": "cls",
    "mae_mean_pool": "avg",
    "no_class_token": "avg",
    "registers": "cls",
    "qk_norm": "cls",
    "eva02": "cls",
    "dinov3": "cls",
    "rope_mixed": "cls",
    "sapiens": "cls",
    "beit": "cls",
    "cait": "cls",
    "swin": "avg",
}


@pytest.mark.parametrize("name", AUTO)
def test_auto_is_what_the_networks_own_classifier_reads(name: str, images: torch.Tensor) -> None:
    net = tiny(name)
    backbone = as_network(net)
    assert pooling_of(backbone, "auto") == AUTO[name]
    with torch.no_grad():
        own = net.forward_head(net.forward_features(images), pre_logits=True)
        torch.testing.assert_close(pooled(backbone, images, "auto"), own)


def test_mean_pooling_leaves_out_class_and_register_tokens(images: torch.Tensor) -> None:
    net = tiny("registers")  # 1 class token, 4 registers, 16 patches
    with torch.no_grad():
        tokens = net.forward_features(images)
        assert tokens.shape[1] == 21
        torch.testing.assert_close(pooled(as_network(net), images, "avg"), tokens[:, 5:].mean(dim=1))
        torch.testing.assert_close(pooled(as_network(net), images, "cls"), tokens[:, 0])


def test_mean_pooling_leaves_out_the_class_token_that_joins_late(images: torch.Tensor) -> None:
    net = tiny("cait")
    with torch.no_grad():
        tokens = net.forward_features(images)
        assert tokens.shape[1] == 17
        torch.testing.assert_close(pooled(as_network(net), images, "avg"), tokens[:, 1:].mean(dim=1))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_without_classifier_has_the_same_features(name: str, images: torch.Tensor) -> None:
    net = tiny(name)
    with torch.no_grad():
        before = pooled(as_network(net), images, "auto")
        net.reset_classifier(0)
        assert torch.equal(pooled(as_network(net), images, "auto"), before)


def test_a_cnn_gives_its_own_pooled_features(images: torch.Tensor) -> None:
    net = timm.create_model("resnet18", num_classes=10).eval()
    backbone = as_network(net)
    with torch.no_grad():
        features = pooled(backbone, images, "auto")
        assert features.shape == (3, 512)
        torch.testing.assert_close(backbone.net.fc(features), net(images))
    with pytest.raises(UserError, match=r"resnet18 hands out no tokens to pool; got pool cls. Use --pool auto"):
        pooling_of(backbone, "cls")


class LogitsOnly(nn.Module):
    num_classes = 10


def test_a_network_of_logits_alone_has_no_encoder() -> None:
    with pytest.raises(UserError, match="LogitsOnly has no encoder to probe"):
        pooling_of(as_network(LogitsOnly()), "auto")


@pytest.mark.parametrize("name", ["no_class_token", "swin"])
def test_a_missing_class_token_is_said(name: str) -> None:
    with pytest.raises(UserError, match=r"has no class token; got pool cls. Use --pool avg"):
        pooling_of(as_network(tiny(name)), "cls")


class Squares(ImageSamples):
    """Grey images, each of its own brightness; one of them may be broken."""

    def __init__(self, count: int, broken: int | None = None) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> tuple[Image.Image, int]:
        if index == self.broken:
            raise OSError
        return Image.new("RGB", (32, 32), (index, index, 255 - index)), index % 3

    def path(self, index: int) -> str:
        return f"square {index}"

    @property
    def labels(self) -> list[int]:
        return [index % 3 for index in range(self.count)]


def reader(net: nn.Module, batch_size: int, device: Literal["cpu"] = "cpu") -> Reader:
    source = DataSource("squares", Squares(3), Squares(3), ["a", "b", "c"])
    subject = Subject(as_network(net), source, ViewOptions(augment=Augment(recipe="none")))
    return Reader(subject, batch_size=batch_size, device=device, workers=0)


def test_features_are_of_every_image_in_order_without_gradient() -> None:
    net = tiny("vit").train()
    found = extract(reader(net, 4), Squares(10))
    assert not net.training and not found.values.requires_grad
    assert found.values.dtype == torch.float32 and found.values.shape == (10, 24)
    assert found.labels.tolist() == Squares(10).labels and found.unreadable == ()
    torch.testing.assert_close(extract(reader(net, 10), Squares(10)).values, found.values)
    assert len(found.values.unique(dim=0)) == 10


def test_an_unreadable_image_is_left_out_with_its_label() -> None:
    net = tiny("vit")
    whole, found = (extract(reader(net, 32), Squares(120, broken)) for broken in (None, 7))
    assert found.unreadable == ("square 7",)
    others = [index for index in range(120) if index != 7]
    assert found.labels.tolist() == [index % 3 for index in others]
    torch.testing.assert_close(found.values, whole.values[others])


def test_too_many_unreadable_images_stop() -> None:
    rule = r"At most 1% of the images may be unreadable; got 1 of 3: square 1 \(OSError\)"
    with pytest.raises(UserError, match=rule):
        extract(reader(tiny("vit"), 32), Squares(3, broken=1))


def test_features_that_are_not_finite_are_refused() -> None:
    net: Any = tiny("vit")
    with torch.no_grad():
        net.norm.bias.fill_(torch.nan)
    with pytest.raises(UserError, match="must be finite; got nan or inf"):
        extract(reader(net, 8), Squares(8))
