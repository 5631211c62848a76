"""The classifier of a network that starts a training: its rows in the order of the data's classes, or new weights."""

from collections.abc import Sequence

import torch
from torch import nn

from vitdistill.errors import UserError
from vitdistill.models.classes import Kind, compare, tell
from vitdistill.models.network import ClassParameter, Network
from vitdistill.models.record import has_new_head, mark_new_head, record_of


def match_head(network: Network, classes: Sequence[str], data: str, *, must_fit: bool = False) -> Kind:
    """Put the rows of a trained classifier into the order of the data's classes, by name and in place.

    Rows of classes that the data lacks are left out. A classifier for other classes stays as it is.

    Args:
        network: that will be trained.
        classes: names of the data's classes.
        data: what the data is called in messages.
        must_fit: whether a classifier for other classes is refused.

    Returns:
        How its classes and those of the data belong together; see `models.classes.Comparison`.

    Raises:
        UserError: when it must fit and does not, or its rows cannot be exchanged.

    Example:
        >>> network = build("runs/colours")  # red, green, blue
        >>> match_head(network, ["blue", "green", "red"], "colours2")
        'reordered'
    """
    found = compare(network, classes, data)
    if must_fit and found.kind == "different":
        raise UserError(
            f"The classes of a network that labels pixels must be those of the data; {found.words}",
            remedy="Rename the data's classes where they mean the same, or use `vitdistill finetune`, which gives it a "
            "new head",
        )
    tell(found, network, classes, data)
    if found.order is not None:
        _take_rows(network, found.order)
    if found.kind not in ("different", "other count"):
        record_of(network.net).classes = list(classes)
    return found.kind


def renew_head(network: Network) -> None:
    """Give the classifier new random weights, in place, as it was trained for other classes than the data's."""
    for head in _linear(network):
        nn.init.trunc_normal_(head.weight, std=0.02)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    record_of(network.net).classes = []
    mark_new_head(network.net)


def classifiers(net: nn.Module) -> tuple[nn.Module, ...]:
    """The classifier of a network of timm; both of a distilled DeiT; none where it does not say."""
    if not hasattr(net, "get_classifier"):
        return ()
    classifier = net.get_classifier()  # type: ignore[operator]
    return classifier if isinstance(classifier, tuple) else (classifier,)


def starts_trained(network: Network, *, loaded: bool) -> bool:
    """Whether a network that will be trained has a classifier with weights from an earlier training.

    Args:
        network: with a classifier.
        loaded: whether weights were loaded into it.
    """
    return not has_new_head(network.net) and (loaded or bool(record_of(network.net).classes))


def _take_rows(network: Network, order: tuple[int, ...]) -> None:
    for module, name, dim in _class_parameters(network):
        if (parameter := getattr(module, name)) is None:
            continue
        beside = range(network.num_classes, parameter.shape[dim])  # rows behind the classes: a detector's "no object"
        rows = torch.tensor((*order, *beside), device=parameter.device)
        taken = parameter.detach().index_select(dim, rows)
        setattr(module, name, nn.Parameter(taken, requires_grad=parameter.requires_grad))
        for size in ("out_features", "out_channels"):
            if hasattr(module, size):
                setattr(module, size, len(rows))
        if isinstance(module, nn.LayerNorm):
            module.normalized_shape = (len(rows),)
    network.net.num_classes = len(order)
    if "num_classes" in record_of(network.net).args:
        record_of(network.net).args["num_classes"] = len(order)


def _class_parameters(network: Network) -> list[ClassParameter]:
    """As the network tells, else the weights and biases of its classifier."""
    if hasattr(network.net, "class_parameters"):
        return network.net.class_parameters()
    return [(head, name, 0) for head in _linear(network) for name in ("weight", "bias")]


def _linear(network: Network) -> list[nn.Linear]:
    found = classifiers(network.net)
    heads = [head for head in found if isinstance(head, nn.Linear)]
    if not heads or len(heads) < len(found):
        raise UserError(
            f"The classes of {network.name} are not those of the data in its order, and its classifier is no linear "
            "layer whose rows could be exchanged",
            remedy="Give the network without its classifier",
        )
    return heads
