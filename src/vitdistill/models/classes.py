"""Which classes a network tells apart."""

from typing import Any

from torch import nn

from vitdistill.models.network import Network
from vitdistill.models.record import record_of


def class_names(network: Network) -> list[str]:
    """Names of the classes of a network's scores, in their order; empty where they are not known.

    Example:
        >>> class_names(build("runs/pets"))[:2]
        ['Abyssinian', 'Bengal']
    """
    recorded = record_of(network.net).classes
    if recorded and len(recorded) == network.num_classes:
        return list(recorded)
    return published_classes(network.net)


def published_classes(net: nn.Module) -> list[str]:
    """Class names of the weights that timm publishes under a network's name: the hub's, or ImageNet's; else none."""
    config: Any = getattr(net, "pretrained_cfg", None) or {}
    count = getattr(net, "num_classes", None)
    if not count or config.get("num_classes") != count:
        return []
    names = config.get("label_names")
    if names and len(names) == count:
        return [str(name) for name in (names.values() if isinstance(names, dict) else names)]
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(net)
    return list(ImageNetInfo(subset).label_names()) if subset else []
