"""Token relations: how every token of a block relates to every other, per head, and the distance between two of them.

TinyMIM (Ren et al., CVPR 2023) distils R_QK = softmax(Q K^T / sqrt(d)) and R_VV = softmax(V V^T / sqrt(d)).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def relation(a: Float[Tensor, "b h m d"], b: Float[Tensor, "b h m d"]) -> Float[Tensor, "b h m m"]:
    """softmax(a b^T / sqrt(d)), each model with its own head width d; for pictures and tests, not for training."""
    return _log_relation(a, b).exp()


def relation_kl(
    student: tuple[Float[Tensor, "b h m d"], Float[Tensor, "b h m d"]],
    teacher: tuple[Float[Tensor, "b h m d2"], Float[Tensor, "b h m d2"]],
) -> Float[Tensor, ""]:
    """KL(teacher's relation || student's relation): summed over keys, mean over batch, heads and queries.

    No relation of all heads is ever held: one head's scores are live at a time, and the gradient with respect to the
    student's tensors is computed on the way, so that nothing of size m x m waits for the backward pass.

    Args:
        student: (queries, keys) for Q-K, (values, values) for V-V, and so on; carries the gradient.
        teacher: likewise, with as many heads and tokens, of any head width; taken as a constant.
    """
    for role, (a, b) in (("student", student), ("teacher", teacher)):
        assert a.shape[:3] == b.shape[:3] == student[0].shape[:3], f"the {role}'s heads or tokens differ"
    return _RelationKL.apply(*student, *(part.detach() for part in teacher))


def _log_relation(a: Tensor, b: Tensor) -> Tensor:
    """log softmax(a b^T / sqrt(d)) in at least float32: the logarithm of a softmax would underflow."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return ((a.to(wide) * a.shape[-1] ** -0.5) @ b.to(wide).transpose(-2, -1)).log_softmax(dim=-1)


class _RelationKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, teacher_a: Tensor, teacher_b: Tensor) -> Tensor:
        wide = torch.promote_types(a.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=a.device)
        grad_a, grad_b = torch.empty_like(a, dtype=wide), torch.empty_like(b, dtype=wide)
        scale = a.shape[-1] ** -0.5
        with torch.autocast(a.device.type, enabled=False):
            for head in range(a.shape[1]):
                log_t = _log_relation(teacher_a[:, head], teacher_b[:, head])
                log_s = _log_relation(a[:, head], b[:, head])
                p_t = log_t.exp()
                total += torch.sum(p_t * log_t.sub_(log_s))
                # d KL / d scores = student's relation - teacher's relation, since the teacher's rows sum to one.
                slope = log_s.exp_().sub_(p_t).mul_(scale)
                grad_a[:, head] = slope @ b[:, head].to(wide)
                grad_b[:, head] = slope.transpose(-2, -1) @ a[:, head].to(wide)
        ctx.save_for_backward(grad_a, grad_b)
        ctx.rows, ctx.dtypes = a.shape[0] * a.shape[1] * a.shape[2], (a.dtype, b.dtype)
        return total / ctx.rows

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_a, grad_b = ctx.saved_tensors
        factor = upstream / ctx.rows
        return (grad_a * factor).to(ctx.dtypes[0]), (grad_b * factor).to(ctx.dtypes[1]), None, None
