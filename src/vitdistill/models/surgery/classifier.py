"""From a pre-trained network to one that can be fine-tuned: a fresh classifier, mean pooling, drop path."""

from typing import Literal

import torch
from timm.models.deit import VisionTransformerDistilled as Distilled
from torch import nn

from vitdistill.errors import UserError
from vitdistill.models.build import rebuild
from vitdistill.models.families.linear_only import FrozenBody
from vitdistill.models.families.video_vit import VideoViT
from vitdistill.models.families.vit import ViT
from vitdistill.models.network import Network, check_names_inputs, to_its_task
from vitdistill.models.record import record_of
from vitdistill.models.surgery.classes import classifiers
from vitdistill.models.surgery.drop_path import set_drop_path
from vitdistill.models.weights.read import head_names

Pool = Literal["auto", "avg", "cls"]
_TIMM_POOL = {"avg": "avg", "cls": "token"}


def finetunable(
    body: Network,
    classes: int,
    *,
    pool: Pool = "auto",
    head_init: float = 0.001,
    new_head: bool = False,
    drop_path: float = 0.0,
) -> Network:
    """The network with a classifier for `classes`, everything else as it is in `body`.

    Args:
        body: pre-trained, with or without a classifier.
        classes: of the data.
        pool: avg pools the patches (with a fresh `fc_norm` in place of the final norm, as MAE fine-tunes), cls takes
            the class token; auto keeps the pooling of a network with a classifier, and is avg for a ViT without one.
        head_init: factor on the initial weights of a fresh classifier.
        new_head: replace a classifier that the network has.
        drop_path: stochastic depth rate, as `set_drop_path` spreads it over the blocks; 0 turns off what it has.

    Raises:
        UserError: when the network has a classifier for other classes or another pooling, and `new_head` is not set; or
            when a fresh classifier cannot be given to it, or drop path is asked for and it has none.
    """
    if isinstance(body, FrozenBody):
        if not new_head:
            rule = "Fine-tuning trains the whole network, and a linear-only student is a frozen body with a classifier"
            raise UserError(rule, body.name, "Fine-tune its body with --new_head")
        body = body.body
    check_names_inputs(body, "A classifier of images is put on a ViT", to_its_task(body))
    if pool != "auto" and not isinstance(body, ViT):
        raise UserError(f"Only a ViT's pooling can be chosen, and {body.name} is none", pool, "Leave --pool out")
    own_pool = body.net.global_pool if isinstance(body, ViT) else None
    wanted = _TIMM_POOL.get(pool, own_pool)
    if own_pool == "map" and wanted != own_pool:
        raise UserError(f"{body.name} pools by attention, which cannot be exchanged", repr(pool), "Leave --pool out")
    if body.num_classes and not new_head:
        _check_head(body, classes, own_pool, wanted)
        network = body
    else:
        # Two tokens that were trained to be read are read on (distilled DeiT, AST).
        if pool == "auto" and not body.num_classes and own_pool == "token" and not isinstance(body.net, Distilled):
            wanted = "avg"
        network = _with_new_head(body, classes, wanted, head_init)
    network.requires_grad_(True)
    if isinstance(network, VideoViT):
        network.net.pos_embed.requires_grad_(False)  # fixed in VideoMAE's and MVD's fine-tuning, too
    set_drop_path(network, drop_path)
    return network


def _check_head(body: Network, classes: int, own_pool: str | None, wanted: str | None) -> None:
    if body.num_classes != classes:
        raise UserError(
            f"The stored classifier must have the classes of the data; {body.name} has {body.num_classes} and the data "
            f"{classes}",
            remedy="Replace it with --new_head, or choose the data it was trained on",
        )
    if wanted != own_pool:
        raise UserError(
            f"The classifier of {body.name} belongs to its pooling {own_pool!r}",
            repr(wanted),
            "Leave --pool out, or replace the classifier with --new_head",
        )


def _with_new_head(body: Network, classes: int, pool: str | None, head_init: float) -> Network:
    if record_of(body.net).architecture is None:
        _reset(body, classes, pool)
        _shrink(body.net, head_init)
        return body
    options: dict[str, str | int | bool] = {"num_classes": classes} | ({} if pool is None else {"global_pool": pool})
    if pool == "avg":
        options["fc_norm"] = True
    network = rebuild(record_of(body.net), **options)
    own, heads = network.net.state_dict(), set(head_names(network.net))
    old_heads = set(head_names(body.net))
    weights = {name: value for name, value in body.net.state_dict().items() if name not in old_heads}
    # Mean pooling normalises after pooling and not before: `norm` goes, `fc_norm` comes fresh (MAE, App. A.1).
    weights = {
        name: value for name, value in weights.items() if name in own or not name.startswith(("norm.", "fc_norm."))
    }
    result = network.net.load_state_dict(weights, strict=False)
    missing = [name for name in result.missing_keys if name not in heads and not name.startswith(("norm.", "fc_norm."))]
    assert not missing and not result.unexpected_keys, (missing, result.unexpected_keys)
    _shrink(network.net, head_init)
    return network


def _reset(body: Network, classes: int, pool: str | None) -> None:
    """A fresh classifier, and the norm where the pooling needs it, for a module that cannot be built again: in place.

    Raises:
        UserError: when the module has no `reset_classifier`, which every network of timm has.
    """
    net = body.net
    if not hasattr(net, "reset_classifier"):
        raise UserError(
            f"The module must have a classifier for the {classes} classes of the data",
            f"{type(net).__name__} with {body.num_classes or 'none'}",
            "Give it one, or a method reset_classifier(num_classes) as timm's networks have",
        )
    if pool is None:
        net.reset_classifier(classes)
    else:
        net.reset_classifier(classes, pool)
        norm = net.fc_norm if isinstance(net.norm, nn.Identity) else net.norm
        if isinstance(norm, nn.LayerNorm) and (norm is net.norm) == (pool == "avg"):
            fresh = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
            net.norm, net.fc_norm = (nn.Identity(), fresh) if pool == "avg" else (fresh, nn.Identity())
    for head in classifiers(net):
        for name, parameter in head.named_parameters():
            nn.init.zeros_(parameter) if name == "bias" else nn.init.trunc_normal_(parameter, std=0.02)


def _shrink(net: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for head in classifiers(net):
            for parameter in head.parameters():
                parameter.mul_(factor)
