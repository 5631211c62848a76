"""Token relations: against the authors' values, against a plain implementation, and at the edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from golden_values import Golden
from vitdistill.losses.relations import relation, relation_kl
from vitdistill.models.build import build
from vitdistill.types import QKV, Capture


def plain(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """The definition, all relations at once."""
    log_s, log_t = (
        (a.double() @ b.double().transpose(-2, -1) / a.shape[-1] ** 0.5).log_softmax(-1) for a, b in (student, teacher)
    )
    return (log_t.exp() * (log_t - log_s)).sum(-1).mean()


def tensors(seed: int, b: int = 2, h: int = 3, m: int = 5, d: int = 4, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(b, h, m, d, generator=torch.Generator().manual_seed(seed))


@given(b=st.integers(1, 3), h=st.integers(1, 3), m=st.integers(1, 6), d=st.integers(1, 5), d2=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_value_and_gradient_equal_the_plain_form(b, h, m, d, d2):
    q, k = (tensors(seed, b, h, m, d).requires_grad_() for seed in (0, 1))
    teacher = (tensors(2, b, h, m, d2), tensors(3, b, h, m, d2))
    loss, reference = relation_kl((q, k), teacher), plain((q, k), teacher)
    torch.testing.assert_close(loss.double(), reference, rtol=1e-5, atol=1e-6)
    for got, expect in zip(
        torch.autograd.grad(3 * loss, (q, k)), torch.autograd.grad(3 * reference, (q, k)), strict=True
    ):
        torch.testing.assert_close(got, expect, rtol=1e-4, atol=1e-6)


def test_values_with_themselves_gather_both_gradients():
    v = tensors(0).requires_grad_()
    teacher = (tensors(1), tensors(1))
    (got,) = torch.autograd.grad(relation_kl((v, v), teacher), v)
    (expect,) = torch.autograd.grad(plain((v, v), teacher), v)
    torch.testing.assert_close(got, expect, rtol=1e-4, atol=1e-6)


def test_identical_relations_cost_nothing_and_a_permuted_teacher_costs_more():
    q, k = tensors(0).requires_grad_(), tensors(1).requires_grad_()
    same = relation_kl((q, k), (q, k))
    assert abs(same.item()) < 1e-6
    assert max(float(g.abs().max()) for g in torch.autograd.grad(same, (q, k))) < 1e-6
    order = torch.tensor([1, 2, 3, 4, 0])
    assert relation_kl((q, k), (q[:, :, order], k)) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_scores_stay_finite(dtype):
    q = tensors(0, scale=100.0).to(dtype).requires_grad_()
    k = tensors(1, scale=100.0).to(dtype).requires_grad_()  # scores of 1e4
    loss = relation_kl((q, k), (-q, k))
    assert torch.isfinite(loss) and loss > 100
    for gradient in torch.autograd.grad(loss, (q, k)):
        assert gradient.dtype == dtype and torch.isfinite(gradient).all()


def test_the_teacher_gets_no_gradient():
    teacher = tensors(1).requires_grad_()
    q = tensors(0).requires_grad_()
    relation_kl((q, q), (teacher, teacher)).backward()
    assert teacher.grad is None and q.grad is not None


def test_relations_are_distributions_over_keys():
    rows = relation(tensors(0), tensors(1)).sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


def test_tinymim_reference_values():
    """Both relations, both losses and the student's gradients, through the adapters' early stop."""
    case = Golden("tinymim_a")

    def qkv(role: str, block: int, image: Tensor, last_heads: int | None) -> tuple[QKV, VisionTransformer]:
        sizes = case.hyper[role]
        net = VisionTransformer(
            img_size=case.hyper["img_size"],
            patch_size=case.hyper["patch_size"],
            embed_dim=sizes["dim"],
            depth=sizes["depth"],
            num_heads=sizes["heads"],
            mlp_ratio=case.hyper["mlp_ratio"],
            num_classes=0,
        )
        net.load_state_dict(case.part(role), strict=False)
        if last_heads is not None:
            attention = net.blocks[-1].attn
            attention.num_heads, attention.head_dim = last_heads, sizes["dim"] // last_heads
            attention.scale = attention.head_dim**-0.5
        out = build(net)(image, capture=Capture.at(block, "qkv", head=False))
        return out.qkv(block), net

    target = case.hyper["teacher"]["intermediate"] - 1
    with torch.no_grad():
        teacher, _ = qkv("teacher", target, case.inputs["teacher_image"], None)
    student, net = qkv("student", -1, case.inputs["student_image"], case.hyper["student"]["last_heads"])
    for role, found in (("teacher", teacher), ("student", student)):
        case.check(f"{role}_relation_qk", relation(found.q, found.k))
        case.check(f"{role}_relation_vv", relation(found.v, found.v))
    loss_qk = relation_kl((student.q, student.k), (teacher.q, teacher.k))
    loss_vv = relation_kl((student.v, student.v), (teacher.v, teacher.v))
    case.check("loss_qk", loss_qk)
    case.check("loss_vv", loss_vv)
    case.check("loss", loss_qk + loss_vv)
    (loss_qk + loss_vv).backward()
    last = net.blocks[-1].attn.qkv.weight.grad
    case.check("grad_last_qkv_weight", last)
    case.check("grad_norm_last_qkv_weight", last.norm())
    case.check("grad_norm_patch_embed_weight", net.patch_embed.proj.weight.grad.norm())
    assert case.checked == set(case.expected)
