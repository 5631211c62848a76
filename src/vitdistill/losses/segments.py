"""The loss of networks that label pixels: cross-entropy over those pixels that have a label."""

import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

IGNORED = 255  # the label of pixels that count for nothing


def pixel_cross_entropy(
    logits: Float[Tensor, "b c height width"],
    labels: UInt8[Tensor, "b height width"] | Int[Tensor, "b height width"],
    ignored: int = IGNORED,
) -> Float[Tensor, ""]:
    """Mean over the pixels that have a label; 0, with a gradient of 0, where none has one.

    The count stays on the device.

    Args:
        logits: at the size of the labels.
        labels: class numbers from 0.
        ignored: the label of pixels that are left out.

    Example:
        >>> pixel_cross_entropy(torch.zeros(1, 4, 2, 2), torch.tensor([[[0, 3], [255, 255]]]))
        tensor(1.3863)
    """
    labels = labels.long()
    total = F.cross_entropy(logits.float(), labels, ignore_index=ignored, reduction="sum")
    return total / (labels != ignored).sum().clamp_min(1)


def segmentation_terms(
    logits: Float[Tensor, "b c height width"],
    auxiliary: Float[Tensor, "b c height width"] | None,
    labels: UInt8[Tensor, "b height width"] | Int[Tensor, "b height width"],
    *,
    auxiliary_weight: float = 0.4,
    ignored: int = IGNORED,
) -> dict[str, Float[Tensor, ""]]:
    """The named parts of the loss, which is their sum.

    Args:
        logits: of the head.
        auxiliary: of the auxiliary head, where the network has one and trains.
        labels: class numbers from 0.
        auxiliary_weight: of the auxiliary head's cross-entropy.
        ignored: the label of pixels that are left out.
    """
    terms = {"ce": pixel_cross_entropy(logits, labels, ignored)}
    if auxiliary is not None:
        terms["auxiliary"] = auxiliary_weight * pixel_cross_entropy(auxiliary, labels, ignored)
    return terms
