"""Attention distillation: where the class token looks, in the student and in the teacher.

Wang et al., "Attention Distillation: self-supervised vision transformer students need more guidance" (BMVC 2022). The
class token's row of a block's attention is compared by a KL divergence. Rows are held as logarithms (b, h, m), special
tokens first, so that columns can be left out, renormalised and aggregated without underflow. In the order of a step:

1. `class_log_attention`: rows of both networks;
2. `to_grid`: where the patch grids differ, the teacher's row to the student's grid, bicubic; with a masked teacher,
   whose map has holes, the student's row to the teacher's grid, bilinear;
3. `restrict`: with a masked teacher, the student's columns that the teacher has;
4. `aggregate`: where head counts differ, one row out of all heads, for both;
5. `attention_kl`.

Steps 2 and 4 are "interpolate" and "aggregation" in the authors' code. Everything is computed in at least float32, also
under autocast. The other half of the method, the distance of the class tokens' features, is `torch.nn.MSELoss`.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitdistill.tokens.gather import take
from vitdistill.tokens.grids import transfer
from vitdistill.types import TokenGrid

# The range to which the authors clamp attention before the KL.
FLOOR, CEILING = 1e-5, 0.996


def class_log_attention(q_cls: Float[Tensor, "b h d"], k: Float[Tensor, "b h m d"]) -> Float[Tensor, "b h m"]:
    """Logarithm of the class token's attention to every token, itself included; differentiable in both arguments.

    Costs one row of q against k per head: m*d multiply-adds, 1/m of the block's attention scores.

    Args:
        q_cls: queries of the class token.
        k: keys of all tokens.

    Example:
        >>> rows = class_log_attention(torch.randn(2, 3, 64), torch.randn(2, 3, 197, 64))
        >>> rows.shape, torch.allclose(rows.exp().sum(-1), torch.ones(2, 3))
        (torch.Size([2, 3, 197]), True)
    """
    with torch.autocast(k.device.type, enabled=False):
        q_cls, k = _wide(q_cls), _wide(k)
        return torch.einsum("bhd,bhmd->bhm", q_cls * q_cls.shape[-1] ** -0.5, k).log_softmax(dim=-1)


def to_grid(
    rows: Float[Tensor, "b h m"],
    source: TokenGrid,
    target: TokenGrid,
    *,
    special: int,
    mode: Literal["bilinear", "bicubic"],
) -> Float[Tensor, "b h m2"]:
    """Rows over another patch grid: the patches' share of the attention stays what it was. Equal grids pass.

    Attention is lifted to at least 1e-5, since bicubic interpolation may give negative values and the authors' code
    NaN. The special tokens' columns stay as they are.

    Args:
        rows: log attention over the special tokens, then over all patches of `source`.
        source: the grid on which the rows lie.
        target: the grid on which they are wanted.
        special: special tokens.
        mode: bicubic (without antialiasing) in the authors' code, for a teacher that is not masked; bilinear for a
            student's row.

    Raises:
        UserError: when the grids differ in time steps.

    Example:
        >>> rows = torch.randn(2, 3, 1 + 24 * 24).log_softmax(-1)
        >>> to_grid(rows, TokenGrid(1, 24, 24), TokenGrid(1, 14, 14), special=1, mode="bicubic").shape
        torch.Size([2, 3, 197])
    """
    if source == target:
        return rows
    rows = _wide(rows)
    patches = rows[..., special:].exp()
    moved = transfer(patches.flatten(0, 1), source, target, mode).unflatten(0, rows.shape[:2])
    # The sum is not positive where a coarse grid misses the only patch that is attended to.
    scale = patches.sum(dim=-1, keepdim=True) / moved.sum(dim=-1, keepdim=True).clamp_min(FLOOR)
    return torch.cat((rows[..., :special], (moved * scale).clamp(FLOOR, 1.0).log()), dim=-1)


def restrict(
    rows: Float[Tensor, "b h m"], keep: Int[Tensor, "b k"] | None, *, special: int, shared: int | None = None
) -> Float[Tensor, "b h m2"]:
    """Rows over fewer tokens, renormalised: as if the class token had seen only these. All tokens pass.

    Args:
        rows: log attention (or attention scores) over the special tokens, then over all patches.
        keep: patches that stay, in the order in which they are wanted; None keeps all.
        special: special tokens.
        shared: how many of the special tokens stay, the class token first; None keeps all. A student with a
            distillation token compares with a teacher without one over `shared=1`.

    Example:
        >>> rows = torch.tensor([[[0.2, 0.4, 0.3, 0.1]]]).log()  # class token and three patches
        >>> restrict(rows, torch.tensor([[2, 1]]), special=1).exp()
        tensor([[[0.3333, 0.1667, 0.5000]]])
    """
    if keep is None and shared in (None, special):
        return rows  # the authors do not renormalise what `to_grid` has lifted
    first, patches = _wide(rows[..., :special]), _wide(rows[..., special:])
    if keep is not None:
        # `take` moves vectors per patch; here a patch has one number per head.
        patches = take(patches.transpose(1, 2), keep).transpose(1, 2)
    return torch.cat((first[..., :shared], patches), dim=-1).log_softmax(dim=-1)


def aggregate(rows: Float[Tensor, "b h m"], temperature: float = 10.0) -> Float[Tensor, "b 1 m"]:
    """One row out of all heads, a product of experts: log softmax over tokens of their sum, divided by a temperature.

    Args:
        rows: log attention.
        temperature: 10 in the authors' script, 20 by default in their code.

    Example:
        >>> student, teacher = torch.randn(2, 3, 197).log_softmax(-1), torch.randn(2, 6, 197).log_softmax(-1)
        >>> aggregate(student).shape == aggregate(teacher).shape == (2, 1, 197)
        True
    """
    return (_wide(rows).sum(dim=1, keepdim=True) / temperature).log_softmax(dim=-1)


def attention_kl(student: Float[Tensor, "b h m"], teacher: Float[Tensor, "b h m"]) -> Float[Tensor, ""]:
    """KL(teacher's attention || student's attention), summed over heads and tokens, mean over the batch.

    Both are first clamped to [1e-5, 0.996] and renormalised; where the student's attention lies outside, it gets no
    gradient.

    Args:
        student: log attention; carries the gradient.
        teacher: log attention over the same tokens, of as many heads; taken as a constant.

    Example:
        >>> student = torch.randn(2, 3, 197, requires_grad=True)
        >>> attention_kl(student.log_softmax(-1), torch.randn(2, 3, 197).log_softmax(-1)).backward()
    """
    with torch.autocast(student.device.type, enabled=False):
        p_s, p_t = (
            F.normalize(_wide(rows).exp().clamp(FLOOR, CEILING), p=1, dim=-1) for rows in (student, teacher.detach())
        )
        return F.kl_div(p_s.log(), p_t.to(p_s.dtype), reduction="batchmean")


def _wide(values: Tensor) -> Tensor:
    """In at least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
