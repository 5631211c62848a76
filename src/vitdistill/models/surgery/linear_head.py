"""A frozen network with a linear classifier that was fitted to its pooled features, as one network of timm."""

from inspect import signature
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.build import rebuild
from vitdistill.models.families.ast import AST
from vitdistill.models.families.linear_only import FrozenBody
from vitdistill.models.network import Network, check_names_inputs
from vitdistill.models.record import record_of
from vitdistill.models.weights.read import head_names

_TIMM_POOL = {"cls": "token", "avg": "avg"}


def with_linear_head(
    body: Network, pooling: Literal["cls", "avg", "own"], weight: Float[Tensor, "c d"], bias: Float[Tensor, "c"]
) -> Network:
    """A copy of a network that pools its tokens as it was probed, and has a given classifier in place of its own.

    Args:
        body: the frozen network, in eval mode; left as it is. Of a linear-only student its body is taken.
        pooling: class token, mean over the patches, or what the network does by itself.
        weight: of the classifier, on the pooled features behind the network's final norm.
        bias: goes with `weight`.

    Raises:
        UserError: when the network's own parts cannot be put together like this.
    """
    body = body.body if isinstance(body, FrozenBody) else body
    record, own = record_of(body.net), body.net
    if isinstance(own, AST):
        rule = f"The classifier of {body.name} reads two tokens behind a norm of its own, so one on the features"
        raise UserError(f"{rule} that were probed cannot be kept", f"pool {pooling}", "Leave --out out")
    check_names_inputs(body, "A classifier on features that were probed is put on a ViT")
    if record.architecture is None:
        raise _not_kept(body, pooling)
    options: dict[str, object] = {"num_classes": len(weight)}
    if getattr(own, "global_pool", None) in ("token", "avg", "", "map") and pooling in _TIMM_POOL:
        options |= _pooled(own, _TIMM_POOL[pooling])
    try:
        network = rebuild(record, **options).eval()
    except UserError as error:  # an architecture without this pooling
        raise _not_kept(body, pooling) from error
    old, new = set(head_names(own)), set(head_names(network.net))
    tensors = {name: value for name, value in own.state_dict().items() if name not in old}
    # Attention pooling that is not used any more is left behind.
    tensors = {name: value for name, value in tensors.items() if not name.startswith("attn_pool.")}
    result = network.net.load_state_dict(tensors, strict=False)
    if set(result.missing_keys) - new or result.unexpected_keys:
        raise _not_kept(body, pooling)
    _set_classifier(network, body, pooling, weight.cpu(), bias.cpu())
    return network


def as_one_network(student: FrozenBody) -> Network:
    """A linear-only student whose classifier reads the class token of the last block, as a plain network of timm.

    Args:
        student: left as it is.

    Raises:
        UserError: when its classifier reads anything else.
    """
    head, record = student.net.head, record_of(student.net)
    if student.net.features != "cls":
        raise _not_kept(student, student.net.features)
    network = with_linear_head(student.body, "cls", head.weight.detach(), head.bias.detach())
    found = record_of(network.net)
    found.classes, found.preprocessing = list(record.classes), dict(record.preprocessing)
    return network


def _pooled(net: nn.Module, wanted: str) -> dict[str, object]:
    """Arguments that change the pooling, and leave the final norm where it is: before the pooling, or behind it."""
    if net.global_pool == wanted:
        return {}
    behind = not isinstance(getattr(net, "fc_norm", nn.Identity()), nn.Identity)
    parameters = signature(type(net).__init__).parameters
    return {"global_pool": wanted, **{name: behind for name in ("fc_norm", "use_fc_norm") if name in parameters}}


@torch.no_grad()
def _set_classifier(network: Network, body: Network, pooling: str, weight: Tensor, bias: Tensor) -> None:
    found = network.net.get_classifier()
    first, *others = found if isinstance(found, tuple) else (found,)
    # Two heads (distilled DeiT) give their mean: twice the classifier, and nothing.
    factor = 1 + len(others)
    for head in (first, *others):
        if getattr(head, "bias", None) is None or head.weight.numel() != weight.numel():
            raise _not_kept(body, pooling)
        for parameter in head.parameters():
            parameter.zero_()
    first.weight.copy_((factor * weight).view_as(first.weight))
    first.bias.copy_(factor * bias)


def _not_kept(body: Network, pooling: str) -> UserError:
    return UserError(
        f"{body.name} with a linear classifier on the features that were probed is no network of timm, so it cannot "
        "be kept",
        f"pool {pooling}",
        "Use --pool auto, or leave --out out",
    )
