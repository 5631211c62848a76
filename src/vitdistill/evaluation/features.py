"""Pooled features of a frozen network, computed once."""

from dataclasses import dataclass
from inspect import signature
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vitdistill.data.loader import CorruptLog
from vitdistill.data.samples import Samples
from vitdistill.errors import UserError
from vitdistill.evaluation.loading import Reader
from vitdistill.models.backbone import Backbone
from vitdistill.models.network import Network

Pool = Literal["auto", "cls", "avg"]
# "own": a network without tokens pools in the way it always does before its classifier.
Pooling = Literal["cls", "avg", "own"]


@dataclass(frozen=True)
class Features:
    """One set of images as a frozen network sees it.

    Attributes:
        values: features, float32 on the CPU.
        labels: class numbers.
        unreadable: paths of the images that were left out.
    """

    values: Float[Tensor, "b d"]
    labels: Int64[Tensor, "b"]
    unreadable: tuple[str, ...] = ()

    def to(self, place: torch.device) -> tuple[Tensor, Tensor]:
        """Features and class numbers on a device."""
        return self.values.to(place), self.labels.to(place)


def pooling_of(network: Network, pool: Pool) -> Pooling:
    """How the tokens of a network become one feature vector.

    Args:
        network: the network.
        pool: `cls` takes the class token, `avg` the mean over the patches, `auto` the class token where the network's
            own head reads it, and the mean elsewhere.

    Raises:
        UserError: when the network has no encoder apart from its logits, or not what `pool` asks for.
    """
    net = network.net
    if not isinstance(network, Backbone):
        _check_encoder(network)
        if pool != "auto":
            raise UserError(f"{network.name} hands out no tokens to pool", f"pool {pool}", "Use --pool auto")
        return "own"
    has_class_token = getattr(net, "cls_token", None) is not None
    if pool == "cls" and not has_class_token:
        raise UserError(f"{network.name} has no class token", "pool cls", "Use --pool avg")
    if pool != "auto":
        return pool
    return "cls" if has_class_token and net.global_pool in ("token", "") else "avg"


def _check_encoder(network: Network) -> None:
    head = getattr(network.net, "forward_head", None)
    if not hasattr(network.net, "forward_features") or head is None or "pre_logits" not in signature(head).parameters:
        raise UserError(
            f"{network.name} has no encoder to probe, only logits",
            remedy="Choose a network of timm that has forward_features and forward_head(pre_logits=True)",
        )


def pooled(network: Network, inputs: Float[Tensor, "b ch *pixels"], pool: Pool) -> Float[Tensor, "b d"]:
    """Features of one batch, behind the network's final norm and before its classifier.

    Args:
        network: in eval mode.
        inputs: normalised with the network's statistics.
        pool: see `pooling_of`.

    Raises:
        UserError: as `pooling_of`.
    """
    pooling = pooling_of(network, pool)
    if pooling == "own":
        net = network.net
        return net.forward_head(net.forward_features(inputs), pre_logits=True).flatten(1)
    tokens = network(inputs).final
    features = tokens.special[:, 0] if pooling == "cls" else tokens.patches.mean(dim=1)
    # Networks that mean-pool have their final norm behind the pooling, and none on the tokens (MAE, BEiT).
    norm = getattr(network.net, "fc_norm", None)
    return features if norm is None else norm(features)


@torch.no_grad()  # not inference_mode, whose tensors cannot be inputs of a classifier that is trained
def extract(reader: Reader, images: Samples, pool: Pool = "auto", text: str = "features") -> Features:
    """Features of a whole set, without gradient and without augmentation.

    Args:
        reader: hands the images to its network, which is moved to the reader's device and put into eval mode.
        images: the set.
        pool: see `pooling_of`.
        text: shown before the progress bar.

    Raises:
        UserError: as `pooling_of`; when more than 1% of the images are unreadable; when features are not finite.
    """
    backbone = reader.subject.backbone
    pooling_of(backbone, pool)  # refuses before any image is read
    backbone.eval().to(reader.place)
    corrupt, count = CorruptLog.of(images), 0
    # Filled in place: a list of batches would need twice the memory when it is put together.
    values, labels = torch.empty(0, 0), torch.empty(len(images), dtype=torch.int64)
    for batch, targets in reader.batches(images, corrupt, text):
        assert targets is not None  # labelled data was opened
        features = pooled(backbone, batch, pool).float().cpu()
        if not count:
            values = features.new_empty(len(images), features.shape[1])
        stop = count + len(targets)
        values[count:stop], labels[count:stop] = features, targets
        count = stop
    values, labels = values[:count], labels[:count]
    if not values.isfinite().all():
        raise UserError(f"The features of {backbone.name} must be finite", "nan or inf", "Its training has diverged")
    return Features(values, labels, tuple(corrupt.paths))
