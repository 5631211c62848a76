"""DINO: a student's views predict what the teacher says of other views of the same image.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (ICCV 2021). Rows are view-major: all images
in view 0, then all in view 1, ...; the teacher's are the first of the student's. Everything is computed in at least
float32, also under autocast: a softmax over tens of thousands of outputs at a temperature of 0.04 needs it.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def dino_targets(centred: Float[Tensor, "gb k"], temperature: float) -> Float[Tensor, "gb k"]:
    """softmax(centred / temperature): centring and sharpening, each of which keeps the other from collapsing.

    Args:
        centred: outputs of the teacher's head less their centre, a moving average; taken as constants.
        temperature: of the teacher.
    """
    return F.softmax(centred.detach().float() / temperature, dim=-1)


def dino_loss(
    student: Float[Tensor, "vb k"], targets: Float[Tensor, "gb k"], views: int, temperature: float = 0.1
) -> Float[Tensor, ""]:
    """Cross-entropy, mean over the batch and over all pairs of a teacher's view and another view of the student.

    Each view's log-softmax is computed once and meets the sum of the targets: with 2 teacher's views of 10 that is 10
    in place of 18.

    Args:
        student: outputs of the student's head for all views; carries the gradient.
        targets: of `dino_targets`, for the first views.
        views: of each image that the student saw.
        temperature: of the student.

    Example:
        >>> student, teacher = torch.randn(80, 32, requires_grad=True), torch.randn(16, 32)  # 10, 2 views of 8
        >>> targets = dino_targets(teacher - teacher.mean(dim=0), temperature=0.04)
        >>> dino_loss(student, targets, views=10).backward()
    """
    logs = F.log_softmax(student.float() / temperature, dim=-1).unflatten(0, (views, -1))
    seen = targets.unflatten(0, (-1, logs.shape[1]))
    pairs = len(seen) * (views - 1)
    # Over all pairs, less those of a view with itself.
    same = (seen * logs[: len(seen)]).sum()
    return (same - (seen.sum(dim=0) * logs.sum(dim=0)).sum()) / (pairs * logs.shape[1])


def moved_centre(centre: Float[Tensor, "1 k"], mean: Float[Tensor, "k"], momentum: float = 0.9) -> Float[Tensor, "1 k"]:
    """The centre after a step, whose loss used the one before.

    Args:
        centre: before it.
        mean: of the teacher's outputs over all rows of all processes.
        momentum: share of the old one.
    """
    return momentum * centre + (1 - momentum) * mean


def entropy(shares: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows"]:
    """Entropy of distributions in nats; outputs of share 0 count nothing."""
    return torch.special.entr(shares).sum(dim=-1)
