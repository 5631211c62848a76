"""Colour jitter of a batch on its device: brightness, contrast and saturation, different for every image.

TinyMIM jitters the student's view only (Ren et al., 2023; ColorJitter(.4, .4, .4) in the authors' code). Doing it
here, one image per sample crosses to the device and both views come from it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vitdistill.errors import UserError


class Jitter(NamedTuple):
    """What a batch is jittered with.

    Attributes:
        factors: per operation of `OPERATIONS` and image; 1 changes nothing.
        order: the operations, by their place in `OPERATIONS`, as they are applied.
    """

    factors: Float[Tensor, "3 b"]
    order: tuple[int, ...]


def color_jitter(images: Float[Tensor, "b ch height width"], strength: float) -> Float[Tensor, "b ch height width"]:
    """Jitter brightness, contrast and saturation, as torchvision's `ColorJitter(strength, strength, strength)`.

    Args:
        images: in 0..1, not normalised; left as they are.
        strength: half the width of the range of the factors, 0 to 1; 0 returns `images` itself and draws nothing.

    Raises:
        UserError: when the strength is out of range.
    """
    _check_strength(strength)
    return images if strength == 0 else apply_jitter(images, draw_jitter(images, strength))


def draw_jitter(images: Float[Tensor, "b ch height width"], strength: float) -> Jitter:
    """Draw a factor per image and operation from U[1 - strength, 1 + strength], and one order for the batch.

    The factors come from torch's global generator on the device of the images. The order decides what the host
    launches, so it comes from the CPU's: reading it back from a GPU would wait for the GPU.

    Args:
        images: gives the batch size, the device and the type of the factors.
        strength: 0 to 1.

    Raises:
        UserError: when the strength is out of range.
    """
    _check_strength(strength)
    factors = torch.empty(len(OPERATIONS), len(images), dtype=images.dtype, device=images.device)
    order = torch.randperm(len(OPERATIONS), device="cpu").tolist()
    return Jitter(factors.uniform_(1 - strength, 1 + strength), tuple(order))


def apply_jitter(images: Float[Tensor, "b ch height width"], jitter: Jitter) -> Float[Tensor, "b ch height width"]:
    """Apply drawn factors; the outcome of every operation is clamped to 0..1 before the next.

    Args:
        images: in 0..1.
        jitter: what to apply, in which order.
    """
    for number in jitter.order:
        images = OPERATIONS[number](images, jitter.factors[number].view(-1, 1, 1, 1)).clamp_(0, 1)
    return images


def _brightness(
    images: Float[Tensor, "b ch height width"], factors: Float[Tensor, "b 1 1 1"]
) -> Float[Tensor, "b ch height width"]:
    return images * factors


def _contrast(
    images: Float[Tensor, "b ch height width"], factors: Float[Tensor, "b 1 1 1"]
) -> Float[Tensor, "b ch height width"]:
    """Away from, or towards, the mean grey of the image."""
    return torch.lerp(_grey(images).mean((2, 3), keepdim=True), images, factors)


def _saturation(
    images: Float[Tensor, "b ch height width"], factors: Float[Tensor, "b 1 1 1"]
) -> Float[Tensor, "b ch height width"]:
    """Away from, or towards, the grey of each pixel."""
    return torch.lerp(_grey(images), images, factors)


def _grey(images: Float[Tensor, "b ch height width"]) -> Float[Tensor, "b 1 height width"]:
    """Luma (ITU-R BT.601), with torchvision's rounding of the weights."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _check_strength(strength: float) -> None:
    if not 0 <= strength <= 1:  # NaN fails this as well
        raise UserError("The strength of colour jitter must lie between 0 (off) and 1", strength)


OPERATIONS = (_brightness, _contrast, _saturation)
