"""What a pass that stops early trains: `ViT.reached` against autograd."""

from itertools import combinations

import pytest
import torch

from tiny import tiny
from vitdistill.models.families import as_network
from vitdistill.models.families.vit import ViT
from vitdistill.types import QKV, Capture

POINTS = ("qkv", "attention", "attention_residual", "ffn", "output")
PLACES = [(block, point) for block in range(3) for point in POINTS]


def network(**options: object) -> ViT:
    net = as_network(tiny("vit", depth=3, **options))
    assert isinstance(net, ViT)
    return net


def with_gradient(net: ViT, images: torch.Tensor, capture: Capture, roles: str = "qkv") -> set[torch.nn.Parameter]:
    """The parameters to which autograd gives a gradient from everything that the pass hands out."""
    net.zero_grad(set_to_none=True)
    total = torch.zeros(())
    for tokens in net(images, capture=capture).captured.values():
        parts = [getattr(tokens, role) for role in roles] if isinstance(tokens, QKV) else [tokens.all]
        total = total + torch.stack([part.square().sum() for part in parts]).sum()
    total.backward()
    return {parameter for parameter in net.net.parameters() if parameter.grad is not None}


@pytest.mark.parametrize("places", [*((place,) for place in PLACES), *combinations(PLACES, 2)], ids=str)
def test_the_parameters_reached_are_those_with_a_gradient(places, images):
    net = network()
    capture = Capture(frozenset(places), head=False)
    assert net.reached(capture) == with_gradient(net, images, capture)


@pytest.mark.parametrize("roles", ["q", "k", "v", "qk", "qkv"])
def test_norms_of_queries_and_keys_are_reached_where_they_are_read(roles, images):
    net = network(qk_norm=True)
    capture = Capture.at(-1, "qkv", head=False)
    assert net.reached(capture, frozenset(roles)) == with_gradient(net, images, capture, roles)
