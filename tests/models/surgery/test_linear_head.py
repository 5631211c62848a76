"""A linear classifier on pooled features becomes a network of timm with the same scores."""

from typing import Any

import pytest
import torch

from tiny import FAMILIES
from vitdistill.errors import UserError
from vitdistill.evaluation.features import pooled, pooling_of
from vitdistill.models.build import build
from vitdistill.models.network import Network
from vitdistill.models.record import record_of
from vitdistill.models.surgery.attention_heads import set_heads
from vitdistill.models.surgery.linear_head import with_linear_head

CNNS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("test_resnet", {"num_classes": 10}),
    "convnext": ("test_convnext", {"num_classes": 10}),
    "no classifier": ("test_resnet", {"num_classes": 0}),
}
# Heads that read two tokens; AST's has a norm in front of it as well.
NOT_KEPT = {("deit_distilled", "avg"), ("dist_token", "avg"), ("ast", "auto"), ("ast", "avg"), ("ast", "cls")}


def random(name: str, args: dict[str, Any]) -> Network:
    network = build(name, args=args).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * parameter + 0.2 * torch.randn(parameter.shape))
    return network


@pytest.mark.parametrize("pool", ["auto", "avg", "cls"])
@pytest.mark.parametrize("name", [*FAMILIES, *CNNS])
def test_the_scores_are_those_of_the_features(name: str, pool: Any) -> None:
    torch.manual_seed(0)
    body = random(*(FAMILIES | CNNS)[name])
    try:
        pooling = pooling_of(body, pool)
    except UserError:  # no class token, or nothing to choose
        return
    images = torch.randn(2, *body.input.shape)
    with torch.no_grad():
        features = pooled(body, images, pool)
        weight, bias = torch.randn(7, features.shape[1]), torch.randn(7)
        if (name, pool) in NOT_KEPT:
            with pytest.raises(UserError, match=f"cannot be kept; got pool {pooling}"):
                with_linear_head(body, pooling, weight, bias)
            return
        network = with_linear_head(body, pooling, weight, bias)
        torch.testing.assert_close(network(images).prediction, features @ weight.T + bias, rtol=1e-3, atol=1e-3)
    assert network.num_classes == 7 and body.num_classes == FAMILIES.get(name, CNNS.get(name))[1]["num_classes"]  # type: ignore[index]


def test_heads_of_single_blocks_stay() -> None:
    body = random(*FAMILIES["vit"])
    set_heads(body, {-1: 6})  # type: ignore[arg-type]
    network = with_linear_head(body, "cls", torch.randn(4, 24), torch.randn(4))
    assert record_of(network.net).heads == {2: 6}


def test_a_module_object_cannot_be_kept() -> None:
    import timm

    body = build(timm.create_model("vit_tiny_patch16_224", **FAMILIES["vit"][1]))
    with pytest.raises(UserError, match="cannot be kept"):
        with_linear_head(body, "cls", torch.randn(4, 24), torch.randn(4))
