"""Manifold distillation: against the authors' values, against a plain implementation, and at the edges."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from golden_values import Golden
from vitdistill.costing.measure import peak_memory_bytes
from vitdistill.losses.logits import cross_entropy, soft_distillation
from vitdistill.losses.manifold import draw_rows, inter_image, intra_image, random_sample

Loss = Callable[[Tensor, Tensor], Tensor]


def some_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """The random loss on every second patch of the batch, the last first."""
    count = student.shape[0] * student.shape[1]
    return random_sample(student, teacher, torch.arange(count - 1, -1, -2))


LOSSES: dict[str, Loss] = {"intra": intra_image, "inter": inter_image, "random": some_rows}
every_loss = pytest.mark.parametrize("name", LOSSES)


def plain(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    """The definition in float64, all Gram matrices at once."""
    s, t = (F.normalize(features.double(), dim=-1) for features in (student, teacher))
    match name:
        case "inter":
            s, t = s.transpose(0, 1), t.transpose(0, 1)
        case "random":
            s, t = (features.flatten(0, 1).flip(0)[::2] for features in (s, t))
    return (t @ t.transpose(-2, -1) - s @ s.transpose(-2, -1)).square().mean()


def features(seed: int, b: int = 3, k: int = 5, d: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(b, k, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_reference_values():
    """Every term of four pairs of layers, the weighted sums, and the gradient of the first pair's student features."""
    case = Golden("manifold_a")
    hyper, inputs = case.hyper, case.inputs
    students = inputs["student_features"].requires_grad_()
    sums = dict.fromkeys(("patch", "sample", "rand"), torch.zeros(()))
    for pair, (s_id, t_id) in enumerate(zip(hyper["s_id"], hyper["t_id"], strict=True)):
        student, teacher = students[s_id][:, hyper["student_extra_tokens"] :], inputs["teacher_features"][t_id]
        terms = {
            "patch": intra_image(student, teacher),
            "sample": inter_image(student, teacher),
            "rand": random_sample(student, teacher, inputs["permutations"][pair][: hyper["K_effective"]]),
        }
        for name, term in terms.items():
            case.check(f"pair{pair}_{name}", term)
            sums[name] = sums[name] + term / len(hyper["s_id"])
    logits = inputs["student_logits"], inputs["teacher_logits"]
    base = (1 - hyper["alpha"]) * cross_entropy(logits[0], inputs["labels"])
    distilled = hyper["alpha"] * soft_distillation(*logits, tau=hyper["tau"])
    weighted = {name: hyper["beta"] * hyper[f"w_{name}"] * total for name, total in sums.items()}
    case.check("loss_base", base)
    case.check("loss_dist", distilled)
    for name, value in weighted.items():
        case.check(f"loss_mf_{name}", value)
    total = base + distilled + sum(weighted.values())
    case.check("loss_total", total)
    total.backward()
    gradient = students.grad[hyper["s_id"][0]]
    case.check("grad_student_features_first_pair", gradient)
    assert torch.count_nonzero(gradient[:, : hyper["student_extra_tokens"]]) == 0
    assert case.checked == set(case.expected)


@every_loss
@given(b=st.integers(1, 4), k=st.integers(1, 5), d=st.integers(1, 5), d2=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_value_and_gradient_equal_the_plain_form(name, b, k, d, d2):
    student, teacher = features(0, b, k, d).requires_grad_(), features(1, b, k, d2)
    loss, reference = LOSSES[name](student, teacher), plain(name, student, teacher)
    torch.testing.assert_close(loss.double(), reference, rtol=1e-5, atol=1e-7)
    (got,), (expect,) = (torch.autograd.grad(3 * value, student) for value in (loss, reference))
    torch.testing.assert_close(got, expect, rtol=1e-4, atol=1e-6)


@every_loss
def test_the_gradient_is_that_of_finite_differences(name):
    student, teacher = features(0, dtype=torch.float64).requires_grad_(), features(1, d=6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, teacher), student)


@pytest.mark.parametrize("loss", [intra_image, inter_image])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_chunks_change_nothing_but_rounding(loss, chunk):
    student, teacher = features(0, b=7, k=7).requires_grad_(), features(1, b=7, k=7, d=6)
    at_once, parts = loss(student, teacher), loss(student, teacher, chunk)
    torch.testing.assert_close(parts, at_once)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (parts, at_once)))


@every_loss
def test_the_teacher_itself_costs_nothing_and_permuted_channels_nothing_more(name):
    """The losses see angles only: neither the length of features nor their axes."""
    teacher = features(0)
    student = teacher.clone().requires_grad_()
    same = LOSSES[name](student, teacher)
    assert same == 0 and torch.count_nonzero(torch.autograd.grad(same, student)[0]) == 0
    assert LOSSES[name](7 * teacher.flip(-1), teacher) < 1e-10
    assert LOSSES[name](features(1), teacher) > 0.01


def test_only_the_inter_image_loss_sees_the_order_of_patches_within_an_image():
    student, teacher = features(0), features(1)
    order = torch.tensor([[1, 0, 2, 3, 4], [4, 3, 2, 1, 0], [2, 3, 4, 0, 1]])[..., None]
    moved = [torch.take_along_dim(x, order, dim=1) for x in (student, teacher)]
    torch.testing.assert_close(intra_image(*moved), intra_image(student, teacher))
    assert abs(inter_image(*moved) - inter_image(student, teacher)) > 1e-3


@every_loss
@pytest.mark.parametrize(("b", "k"), [(1, 5), (3, 1), (1, 1)])
def test_a_last_batch_of_one_is_finite(name, b, k):
    student, teacher = features(0, b, k).requires_grad_(), features(1, b, k)
    loss = LOSSES[name](student, teacher)
    loss.backward()
    assert torch.isfinite(loss) and bool(student.grad.isfinite().all())
    if name == "inter" and b == 1:
        assert loss < 1e-12


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_features_stay_finite(name, dtype):
    student, teacher = (1e4 * features(0)).to(dtype), (1e4 * features(1)).to(dtype)
    student.requires_grad_()
    loss = LOSSES[name](student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert student.grad.dtype == dtype and bool(student.grad.isfinite().all())


@every_loss
def test_autocast_rounds_nothing(name):
    student, teacher = features(0), features(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = LOSSES[name](student, teacher)
    assert torch.equal(inside, LOSSES[name](student, teacher))


@every_loss
def test_the_teacher_gets_no_gradient(name):
    student, teacher = features(0).requires_grad_(), features(1).requires_grad_()
    LOSSES[name](student, teacher).backward()
    assert teacher.grad is None and student.grad is not None


def test_a_second_derivative_is_refused_and_not_wrong():
    student = features(0).requires_grad_()
    (gradient,) = torch.autograd.grad(intra_image(student, features(1)).square(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(("loss", "shape"), [(intra_image, (16, 128)), (inter_image, (128, 16))])
def test_two_gram_matrices_of_one_chunk_are_live_at_a_time(loss, shape):
    """Of 16 matrices of 128 x 128 in all, beside which the features are small."""
    student, teacher = features(0, *shape).requires_grad_(), features(1, *shape)
    for chunk in (1, 4, 16):
        peak = peak_memory_bytes(lambda chunk=chunk: loss(student, teacher, chunk).backward())
        grams = 2 * chunk * 128**2 * 4
        assert grams < peak < grams + 6 * student.numel() * 4


@every_loss
def test_nothing_of_a_gram_matrix_waits_for_the_backward_pass(name):
    student, teacher = features(0, b=6, k=64).requires_grad_(), features(1, b=6, k=64)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        LOSSES[name](student, teacher)
    assert kept and all(x.numel() <= student.numel() for x in kept)


def test_rows_are_drawn_without_repeats_from_the_whole_batch():
    assert draw_rows(48).sort().values.tolist() == list(range(48))
    rows = draw_rows(1000, generator=torch.Generator().manual_seed(0))
    assert len(rows) == len(rows.unique()) == 192 and int(rows.max()) < 1000
    assert len(draw_rows(1000, 20)) == 20
    assert not torch.equal(draw_rows(1000), draw_rows(1000))
    means = torch.stack([draw_rows(100, 10).float().mean() for _ in range(300)])
    assert math.isclose(float(means.mean()), 49.5, abs_tol=2.5)
