"""Token relations: how every token of a block relates to every other, per head, and the distance between two of them.

TinyMIM (Ren et al., CVPR 2023) distils R_QK = softmax(Q K^T / sqrt(d)) and R_VV = softmax(V V^T / sqrt(d)).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Pair = tuple[Float[Tensor, "b h m d"], Float[Tensor, "b h m d"]]
OtherPair = tuple[Float[Tensor, "b h m d2"], Float[Tensor, "b h m d2"]]


def relation(a: Float[Tensor, "b h m d"], b: Float[Tensor, "b h m d"]) -> Float[Tensor, "b h m m"]:
    """softmax(a b^T / sqrt(d)), each model with its own head width d; for pictures and tests, not for training."""
    return _scores(a, b).softmax(dim=-1)


def relation_kl(student: Pair, teacher: OtherPair) -> Float[Tensor, ""]:
    """KL(teacher's relation || student's relation): summed over keys, mean over batch, heads and queries.

    No relation of all heads is ever held: one head's scores are live at a time, and the gradient with respect to the
    student's tensors is computed on the way, so that nothing of size m x m waits for the backward pass.

    Args:
        student: (queries, keys) for Q-K, (values, values) for V-V, and so on; carries the gradient.
        teacher: as the student, with as many heads and tokens, of any head width; taken as a constant.
    """
    a = student[0]
    return _distance(student, teacher, _kl, a.shape[0] * a.shape[1] * a.shape[2])


def relation_smooth_l1(student: Pair, teacher: OtherPair) -> Float[Tensor, ""]:
    """Smooth-L1 (beta 2) between the scaled scores before any softmax, mean over everything.

    TinyMIM's relations "without softmax"; KL needs distributions, so they are compared as features are. Memory as in
    `relation_kl`.

    Args:
        student: see `relation_kl`.
        teacher: see `relation_kl`.
    """
    a = student[0]
    return _distance(student, teacher, _smooth_l1, a.shape[0] * a.shape[1] * a.shape[2] ** 2)


def _scores(a: Tensor, b: Tensor) -> Tensor:
    """a b^T / sqrt(d) in at least float32."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return (a.to(wide) * a.shape[-1] ** -0.5) @ b.to(wide).transpose(-2, -1)


# (student's scores, teacher's scores), both of which it may overwrite -> (sum of distances, d sum / d student's scores)
_Distance = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _kl(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """With log_softmax, since the logarithm of a softmax would underflow."""
    log_s, log_t = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
    p_t = log_t.exp()
    total = torch.sum(log_t.sub_(log_s).mul_(p_t))
    # The slope is student's relation - teacher's relation, since the teacher's rows sum to one.
    return total, log_s.exp_().sub_(p_t)


def _smooth_l1(student: Tensor, teacher: Tensor, beta: float = 2.0) -> tuple[Tensor, Tensor]:
    total = F.smooth_l1_loss(student, teacher, beta=beta, reduction="sum")
    return total, student.sub_(teacher).div_(beta).clamp_(-1, 1)


def _distance(student: Pair, teacher: OtherPair, distance: _Distance, terms: int) -> Tensor:
    for role, (a, b) in (("student", student), ("teacher", teacher)):
        assert a.shape[:3] == b.shape[:3] == student[0].shape[:3], f"the {role}'s heads or tokens differ"
    return _RelationDistance.apply(*student, *(part.detach() for part in teacher), distance, terms)


class _RelationDistance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, teacher_a: Tensor, teacher_b: Tensor, distance: _Distance, terms: int
    ) -> Tensor:
        wide = torch.promote_types(a.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=a.device)
        grad_a, grad_b = torch.empty_like(a, dtype=wide), torch.empty_like(b, dtype=wide)
        scale = a.shape[-1] ** -0.5
        with torch.autocast(a.device.type, enabled=False):
            for head in range(a.shape[1]):
                part, slope = distance(
                    _scores(a[:, head], b[:, head]), _scores(teacher_a[:, head], teacher_b[:, head]).to(wide)
                )
                total += part
                slope.mul_(scale)
                grad_a[:, head] = slope @ b[:, head].to(wide)
                grad_b[:, head] = slope.transpose(-2, -1) @ a[:, head].to(wide)
        ctx.save_for_backward(grad_a, grad_b)
        ctx.terms, ctx.dtypes = terms, (a.dtype, b.dtype)
        return total / terms

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        grad_a, grad_b = ctx.saved_tensors
        factor = upstream / ctx.terms
        return (grad_a * factor).to(ctx.dtypes[0]), (grad_b * factor).to(ctx.dtypes[1]), None, None, None, None
