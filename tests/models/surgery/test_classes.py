"""Heads that go on with data whose classes come in another order, or are some of theirs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.models.network import Network
from vitdistill.models.record import record_of
from vitdistill.models.surgery.classes import match_head

NET: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
FAMILIES = {
    "mask": ("segmenter_tiny", {}),
    "linear": ("segmenter_tiny", {"decoder": "linear"}),
    "upernet": ("upernet_vit_tiny", {}),
    "yolos": ("yolos_tiny", {"det_tokens": 3}),
}


def trained(family: str) -> Network:
    """A network of the classes wall, sky and road, whose parameters are all random."""
    torch.manual_seed(0)
    name, args = FAMILIES[family]
    network = build(name, args={**NET, **args}, num_classes=3)
    with torch.no_grad():
        for parameter in network.net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    record_of(network.net).classes = ["wall", "sky", "road"]
    return network.eval()


@torch.no_grad()
def scores(network: Network) -> Tensor:
    return network(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))).prediction


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_put_into_the_order_of_the_data(family: str) -> None:
    network = trained(family)
    before, shapes = scores(network), {name: value.shape for name, value in network.net.state_dict().items()}
    assert match_head(network, ["road", "wall", "sky"], "streets") == "reordered"
    torch.testing.assert_close(scores(network), network.in_order(before, torch.tensor([2, 0, 1])), rtol=1e-4, atol=1e-5)
    assert record_of(network.net).classes == ["road", "wall", "sky"]
    assert {name: value.shape for name, value in network.net.state_dict().items()} == shapes
    if family == "upernet":  # what answers in training alone
        auxiliary = trained(family).net.decoder.auxiliary_head.classifier[1].weight
        assert torch.equal(network.net.decoder.auxiliary_head.classifier[1].weight, auxiliary[[2, 0, 1]])


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_classes_that_the_data_lacks_go(family: str) -> None:
    network = trained(family)
    before = scores(network)
    assert match_head(network, ["sky", "wall"], "streets") == "part" and network.num_classes == 2
    after, record = scores(network), record_of(network.net)
    if family in ("linear", "upernet"):  # whose classes do not see each other
        torch.testing.assert_close(after, before[:, [1, 0]], rtol=1e-4, atol=1e-5)
    if family == "yolos":
        torch.testing.assert_close(after, before[..., [1, 0, 3, 4, 5, 6, 7]], rtol=1e-4, atol=1e-5)
    again = build(record.architecture, args=record.args)
    again.net.load_state_dict(network.net.state_dict())
    torch.testing.assert_close(scores(again.eval()), after)


def test_other_classes_are_refused_where_the_head_must_fit() -> None:
    network = trained("mask")
    before = {name: value.clone() for name, value in network.net.state_dict().items()}
    with pytest.raises(
        UserError, match=r"labels pixels must be those of the data; .* has 'wall', .* and streets has 'mur'"
    ):
        match_head(network, ["mur", "ciel", "rue"], "streets", must_fit=True)
    assert all(torch.equal(value, before[name]) for name, value in network.net.state_dict().items())
    assert match_head(network, ["mur", "ciel", "rue"], "streets") == "different"
