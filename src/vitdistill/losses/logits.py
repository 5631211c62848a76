"""Losses on class scores: cross-entropy on hard or soft targets, and distillation of logits (MaskedKD, Eq. 1)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def cross_entropy(
    logits: Float[Tensor, "b c"], targets: Int[Tensor, "b"] | Float[Tensor, "b c"], smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Cross-entropy, mean over the batch, on class numbers or on soft targets (mixup, cutmix).

    Args:
        logits: the student's class scores.
        targets: class numbers, or one distribution per sample.
        smoothing: label smoothing for class numbers; soft targets bring their own.
    """
    if targets.is_floating_point():
        return F.cross_entropy(logits.float(), targets.float())
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)


def soft_distillation(
    student: Float[Tensor, "b c"], teacher: Float[Tensor, "b c"], tau: float = 1.0
) -> Float[Tensor, ""]:
    """tau^2 * KL(softmax(teacher / tau) || softmax(student / tau)), mean over the batch (Hinton et al., 2015)."""
    log_s = F.log_softmax(student.float() / tau, dim=-1)
    log_t = F.log_softmax(teacher.detach().float() / tau, dim=-1)
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * tau**2


def hard_distillation(student: Float[Tensor, "b c"], teacher: Float[Tensor, "b c"]) -> Float[Tensor, ""]:
    """Cross-entropy with the teacher's decision as the label (DeiT, Eq. 3)."""
    return F.cross_entropy(student.float(), teacher.argmax(dim=-1))


def normalised_distillation(
    student: Float[Tensor, "b c"],
    teacher: Float[Tensor, "b c"],
    targets: Int[Tensor, "b"] | Float[Tensor, "b c"],
    tau: float = 1.0,
) -> Float[Tensor, ""]:
    """Normalised knowledge distillation, mean over the batch (NKD, Yang et al., ICCV 2023, without its cross-entropy).

    The label's class counts as much as the teacher believes in it, -p_t(label) log p_s(label); of the other classes
    the distributions are compared as if there were no label, -tau^2 sum p_t log p_s at temperature tau.

    Args:
        student: the student's class scores.
        teacher: the teacher's; taken as constants.
        targets: class numbers; of soft targets the highest is the label.
        tau: temperature of the other classes.
    """
    own, other = student.float(), teacher.detach().float()
    label = (targets.argmax(dim=-1) if targets.is_floating_point() else targets).unsqueeze(1)
    of_label = other.softmax(dim=-1).gather(1, label) * own.log_softmax(dim=-1).gather(1, label)
    # The columns of all classes but the label: those behind it move up by one.
    others = torch.arange(own.shape[1] - 1, device=own.device).expand(len(own), -1)
    others = others + (others >= label).to(others.dtype)
    expected = (other.gather(1, others) / tau).softmax(dim=-1)
    got = (own.gather(1, others) / tau).log_softmax(dim=-1)
    return -of_label.mean() - tau**2 * (expected * got).sum(dim=-1).mean()
