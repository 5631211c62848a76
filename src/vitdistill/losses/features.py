"""Distances between token features: masked feature modelling, TinyMIM's feature targets, MVD's."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FeatureLoss = Literal["smooth_l1", "l1", "l2"]


def smooth_l1(
    prediction: Float[Tensor, "b m d"], target: Float[Tensor, "b m d"], *, beta: float, normalise: bool
) -> Float[Tensor, ""]:
    """Smooth-L1 in float32, mean over everything.

    Args:
        prediction: carries the gradient.
        target: taken as a constant.
        beta: where it turns from quadratic to linear (TinyMIM 2, MVD 1).
        normalise: apply LayerNorm without affine parameters to every target token first.
    """
    target = target.detach().float()
    if normalise:
        target = F.layer_norm(target, target.shape[-1:])
    return F.smooth_l1_loss(prediction.float(), target, beta=beta)


def mean_squared(prediction: Float[Tensor, "b m d"], target: Float[Tensor, "b m d"]) -> Float[Tensor, ""]:
    """Mean squared error in float32, mean over everything (MAE, VideoMAE)."""
    with torch.autocast(prediction.device.type, enabled=False):
        return F.mse_loss(prediction.float(), target.detach().float())


def feature_distance(
    prediction: Float[Tensor, "b r d"], target: Float[Tensor, "b r d"], *, loss: FeatureLoss, normalise: bool
) -> Float[Tensor, ""]:
    """Distance between predicted and true features in float32, mean over everything (MVD, Sec. 3.2).

    Args:
        prediction: carries the gradient.
        target: taken as a constant.
        loss: smooth_l1 (beta 1), l1 or l2.
        normalise: LayerNorm without affine parameters on every target token first.
    """
    losses = {"smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss, "l2": F.mse_loss}
    target = target.detach().float()
    if normalise:
        target = F.layer_norm(target, target.shape[-1:], eps=1e-6)
    with torch.autocast(prediction.device.type, enabled=False):
        return losses[loss](prediction.float(), target)
