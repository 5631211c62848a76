"""Distances between token features: masked feature modelling, TinyMIM's feature targets, MVD's."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


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
