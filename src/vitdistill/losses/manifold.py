"""Manifold distillation: how similar patches are to one another, in the student and in the teacher.

Hao et al., "Learning Efficient Vision Transformers via Fine-Grained Manifold Distillation" (NeurIPS 2022). Patch
features are scaled to unit length, so that their Gram matrices hold cosines, and the two networks' Gram matrices are
compared within an image, between images, and between patches drawn at random. Student and teacher may differ in
width. Everything is computed in at least float32, also under autocast.

One chunk of Gram matrices is live at a time, and the gradient with respect to the student's features is computed on
the way, so that nothing of their size waits for the backward pass.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

# Entries of the Gram matrices of one chunk: 16 MiB in float32.
_CHUNK_ENTRIES = 2**22
# F.normalize's, as in the authors' code.
_EPS = 1e-12


def intra_image(
    student: Float[Tensor, "b k d"], teacher: Float[Tensor, "b k d2"], chunk: int | None = None
) -> Float[Tensor, ""]:
    """Mean over (b, k, k) of the squared difference of the cosines between the patches of one image.

    Args:
        student: patch features, without special tokens; carries the gradient.
        teacher: features of the same patches in the same order; taken as a constant.
        chunk: images at a time; None takes as many as fill 16 MiB.

    Example:
        >>> student, teacher = torch.randn(8, 98, 192, requires_grad=True), torch.randn(8, 98, 384)
        >>> intra_image(student, teacher).backward()
    """
    return _gram_distance(student, teacher, chunk)


def inter_image(
    student: Float[Tensor, "b k d"], teacher: Float[Tensor, "b k d2"], chunk: int | None = None
) -> Float[Tensor, ""]:
    """Mean over (k, b, b) of the squared difference of the cosines between the images of a batch at one position.

    With a masked teacher, position j is the j-th kept patch, which lies in about the same part of every image as
    long as selections are ascending. The batch is that of one process; a single image gives 0, up to rounding.

    Args:
        student: patch features, without special tokens; carries the gradient.
        teacher: features of the same patches in the same order; taken as a constant.
        chunk: positions at a time; None takes as many as fill 16 MiB.

    Example:
        >>> student, teacher = torch.randn(8, 98, 192, requires_grad=True), torch.randn(8, 98, 384)
        >>> inter_image(student, teacher).backward()
    """
    return _gram_distance(student.transpose(0, 1), teacher.transpose(0, 1), chunk)


def random_sample(
    student: Float[Tensor, "b k d"], teacher: Float[Tensor, "b k d2"], rows: Int[Tensor, "r"]
) -> Float[Tensor, ""]:
    """Mean over (r, r) of the squared difference of the cosines between patches drawn from the whole batch.

    Args:
        student: patch features, without special tokens; carries the gradient.
        teacher: features of the same patches in the same order; taken as a constant.
        rows: the patches, numbered through the batch (image * k + position), from `draw_rows`.

    Example:
        >>> student, teacher = torch.randn(8, 98, 192, requires_grad=True), torch.randn(8, 98, 384)
        >>> random_sample(student, teacher, draw_rows(8 * 98)).backward()
    """
    a, b = (features.flatten(0, 1).index_select(0, rows)[None] for features in (student, teacher))
    return _gram_distance(a, b, None)


def draw_rows(
    count: int,
    limit: int = 192,
    *,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "r"]:
    """min(limit, count) different rows out of `count` at random, drawn on the device.

    The authors draw new rows for every pair of layers; student and teacher share them.

    Example:
        >>> draw_rows(8 * 98).shape, draw_rows(100).shape
        (torch.Size([192]), torch.Size([100]))
    """
    return torch.randperm(count, device=device, generator=generator)[:limit]


def _gram_distance(student: Tensor, teacher: Tensor, chunk: int | None) -> Tensor:
    """mean((T T^T - S S^T)^2), with S and T the unit rows of student (b, m, d) and teacher (b, m, d2)."""
    if chunk is None:
        chunk = max(1, _CHUNK_ENTRIES // student.shape[1] ** 2)
    return _GramDistance.apply(student, teacher.detach(), chunk)


class _GramDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, chunk: int) -> Tensor:
        b, m, _ = student.shape
        wide = torch.promote_types(student.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=student.device)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(student, dtype=wide) if wanted else None
        with torch.autocast(student.device.type, enabled=False):
            for start in range(0, b, chunk):
                part = slice(start, start + chunk)
                raw = student[part].to(wide)
                length = raw.norm(dim=-1, keepdim=True).clamp_min(_EPS)
                s, t = raw / length, F.normalize(teacher[part].to(wide), dim=-1, eps=_EPS)
                difference = (s @ s.transpose(-2, -1)).sub_(t @ t.transpose(-2, -1))
                if gradient is not None:
                    # The slope of the squared difference is 4 (S S^T - T T^T) S, of which scaling to unit length
                    # leaves what is orthogonal to each row.
                    slope = difference @ s
                    slope -= s * (s * slope).sum(dim=-1, keepdim=True)
                    gradient[part] = slope.mul_(4 / (b * m * m)).div_(length)
                total += difference.square_().sum()
                del difference  # before the next chunk's matrices are made
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.dtype = student.dtype
        return total / (b * m * m)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(ctx.dtype), None, None
