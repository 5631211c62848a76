"""Losses on class scores, against their definitions."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitdistill.losses.logits import (
    cross_entropy,
    hard_distillation,
    normalised_distillation,
    soft_distillation,
)


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 10, generator=generator), 3 * torch.randn(6, 10, generator=generator)


def test_cross_entropy_on_class_numbers_with_and_without_smoothing(logits):
    student, _ = logits
    labels = torch.arange(6)
    log_p = student.log_softmax(dim=-1)
    torch.testing.assert_close(cross_entropy(student, labels), -log_p[labels, labels].mean())
    smooth = 0.9 * F.one_hot(labels, 10) + 0.1 / 10
    torch.testing.assert_close(cross_entropy(student, labels, 0.1), -(smooth * log_p).sum(dim=-1).mean())


def test_soft_targets_are_taken_as_they_are(logits):
    student, teacher = logits
    targets = teacher.softmax(dim=-1)
    expected = -(targets * student.log_softmax(dim=-1)).sum(dim=-1).mean()
    torch.testing.assert_close(cross_entropy(student, targets, smoothing=0.3), expected)


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_soft_distillation_is_tau_squared_kl(logits, tau):
    student, teacher = (x.double() for x in logits)
    p, log_q = (teacher / tau).softmax(dim=-1), (student / tau).log_softmax(dim=-1)
    expected = tau**2 * (p * (p.log() - log_q)).sum(dim=-1).mean()
    torch.testing.assert_close(soft_distillation(*logits, tau), expected.float())
    official = F.kl_div(log_q, p, reduction="batchmean") * tau**2
    torch.testing.assert_close(soft_distillation(*logits, tau), official.float())


def test_hard_distillation_is_cross_entropy_with_the_teachers_decision(logits):
    student, teacher = logits
    torch.testing.assert_close(hard_distillation(student, teacher), F.cross_entropy(student, teacher.argmax(dim=-1)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.floats(0.5, 8), st.floats(-50, 50))
def test_properties_of_soft_distillation(seed, tau, shift):
    student, teacher = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(seed))
    loss = soft_distillation(student, teacher, tau)
    assert float(loss) > 0 and abs(float(soft_distillation(teacher, teacher, tau))) < 1e-5
    shifted = soft_distillation(student + shift, teacher - shift, tau)
    torch.testing.assert_close(shifted, loss, rtol=1e-3, atol=1e-4)  # a shift of all scores means nothing
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(soft_distillation(student[:, order], teacher[:, order], tau), loss)


def test_the_gradient_at_high_temperature_is_the_difference_of_centred_logits(logits):
    """Hinton et al., 2015, Eq. 4: tau^2 keeps its size independent of tau."""
    student, teacher = logits
    student.requires_grad_()
    soft_distillation(student, teacher, 1e3).backward()
    difference = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    torch.testing.assert_close(student.grad, difference.detach() / 10 / 6, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", ["labels", "smoothed", "soft targets", "soft", "hot", "hard"])
def test_extreme_scores_stay_finite_and_float32(dtype, loss):
    student = (1e4 * torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.5]])).to(dtype).requires_grad_()
    teacher = (1e4 * torch.tensor([[-1.0, 1.0, 0.0], [-1.0, 1.0, 0.5]])).to(dtype)
    labels = torch.tensor([1, 1])
    value = {
        "labels": lambda: cross_entropy(student, labels),
        "smoothed": lambda: cross_entropy(student, labels, 0.1),
        "soft targets": lambda: cross_entropy(student, F.one_hot(labels, 3).to(dtype)),
        "soft": lambda: soft_distillation(student, teacher),
        "hot": lambda: soft_distillation(student, teacher, 4.0),
        "hard": lambda: hard_distillation(student, teacher),
    }[loss]()
    value.backward()
    assert value.dtype == torch.float32 and value.shape == () and bool(value.isfinite()) and bool(value > 0)
    assert bool(student.grad.isfinite().all())


def test_autocast_does_not_lower_the_precision(logits):
    student, teacher = logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = soft_distillation(student, teacher, 2.0), cross_entropy(student, torch.arange(6))
    assert torch.equal(inside[0], soft_distillation(student, teacher, 2.0))
    assert torch.equal(inside[1], cross_entropy(student, torch.arange(6)))


@pytest.mark.parametrize("tau", [1.0, 2.5])
def test_normalised_distillation_is_its_formula(tau):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(5, 4, generator=generator), torch.randn(5, 4, generator=generator)
    labels = torch.tensor([0, 3, 1, 1, 2])
    total = 0.0
    for own, other, label in zip(student.double(), teacher.double(), labels.tolist(), strict=True):
        rest = [index for index in range(4) if index != label]
        total -= other.softmax(0)[label] * own.softmax(0)[label].log()
        expected, got = (other[rest] / tau).softmax(0), (own[rest] / tau).softmax(0)
        total -= tau**2 * sum(expected * got.log())
    loss = normalised_distillation(student, teacher, labels, tau)
    torch.testing.assert_close(loss.double(), total / 5)
    soft = torch.nn.functional.one_hot(labels, 4) * 0.6 + 0.1
    assert torch.equal(normalised_distillation(student, teacher, soft, tau), loss)


def test_normalised_distillation_gives_the_teacher_no_gradient_and_is_smallest_at_it():
    student, teacher = torch.randn(3, 6, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    labels = torch.tensor([5, 0, 2])
    normalised_distillation(student, teacher, labels).backward()
    assert teacher.grad is None and bool(student.grad.any())
    # Whatever the label's own score is, the others are best where the teacher's are.
    at_teacher = teacher.detach().clone().requires_grad_()
    normalised_distillation(at_teacher, teacher, labels).backward()
    others = at_teacher.grad.scatter(1, labels[:, None], 0)
    shares = teacher.detach().softmax(1)
    of_label = shares.gather(1, labels[:, None])
    torch.testing.assert_close(others, (of_label * shares / 3).scatter(1, labels[:, None], 0))
