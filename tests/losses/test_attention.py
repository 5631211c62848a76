"""Attention distillation: against the authors' values, against plain attention, and at the edges."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from golden_values import Golden
from vitdistill.errors import UserError
from vitdistill.losses.attention import aggregate, attention_kl, class_log_attention, restrict, to_grid
from vitdistill.types import TokenGrid


def grid(side: int, t: int = 1) -> TokenGrid:
    return TokenGrid(t, side, side)


def log_rows(seed: int, b: int = 2, h: int = 3, m: int = 17, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(b, h, m, generator=torch.Generator().manual_seed(seed))).log_softmax(dim=-1)


# --- the authors' values ------------------------------------------------------------------------------------------


def last_block(case: Golden, role: str) -> tuple[VisionTransformer, Tensor, Tensor]:
    """A network without a head, its last block's tokens, and the class token's log attention in that block."""
    sizes = case.hyper[role]
    net = VisionTransformer(
        img_size=case.hyper["img_size"],
        patch_size=sizes["patch"],
        embed_dim=sizes["dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        mlp_ratio=case.hyper["mlp_ratio"],
        num_classes=0,
    )
    assert net.norm.eps == case.hyper["layernorm_eps"]
    weights = {name: value for name, value in case.part(role).items() if name.startswith(tuple(net.state_dict()))}
    if role == "student":  # its final norm stands behind the projector and has the teacher's width
        weights = {name: value for name, value in weights.items() if not name.startswith("norm.")}
    missing, unexpected = net.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("norm.") for name in missing)
    captured: dict[str, Tensor] = {}
    net.blocks[-1].attn.qkv.register_forward_hook(lambda _m, _i, out: captured.update(qkv=out))
    net.blocks[-1].register_forward_hook(lambda _m, _i, out: captured.update(tokens=out))
    net.eval()(case.inputs["image"])
    q, k, _ = captured["qkv"].unflatten(-1, (3, sizes["heads"], -1)).permute(2, 0, 3, 1, 4)
    return net, captured["tokens"], class_log_attention(q[:, :, 0], k)


def projector(case: Golden) -> nn.Module:
    """The student's projector and the norm behind it."""
    *widths, last = case.hyper["projector_dims"]
    eps = case.hyper["layernorm_eps"]
    layers: list[nn.Module] = [nn.LayerNorm(widths[0], eps=eps)]
    for width, following in zip(widths, [*widths[1:], last], strict=True):
        layers += [nn.Linear(width, following), nn.GELU()]
    net = nn.ModuleDict({"proj": nn.Sequential(*layers[:-1]), "norm": nn.LayerNorm(last, eps=eps)})
    net.load_state_dict({n: v for n, v in case.part("student").items() if n.partition(".")[0] in ("proj", "norm")})
    return nn.Sequential(*net.values())


@pytest.mark.parametrize(
    ("name", "mode"), [("attention_distill_a", "interpolate"), ("attention_distill_heads_a", "aggregation")]
)
def test_reference_values(name, mode):
    """Attention, class tokens, both losses and the gradients that reach the student's first and last weights."""
    case = Golden(name)
    student_net, student_tokens, student = last_block(case, "student")
    teacher_net, teacher_tokens, teacher = last_block(case, "teacher")
    case.check("student_cls_attention", student.exp())
    case.check("teacher_cls_attention", teacher.exp())
    teacher_cls = teacher_net.norm(teacher_tokens)[:, 0].detach()
    student_cls = projector(case)(student_tokens)[:, 0]
    case.check("teacher_cls", teacher_cls)
    case.check("student_cls_projected", student_cls)

    teacher_grid, student_grid = (grid(case.hyper[f"{role}_grid"]) for role in ("teacher", "student"))
    teacher = to_grid(teacher, teacher_grid, student_grid, special=1, mode="bicubic")
    if mode == "aggregation":
        student, teacher = (aggregate(rows, case.hyper["attn_T"]) for rows in (student, teacher))
    loss_cls, kl = F.mse_loss(student_cls, teacher_cls), attention_kl(student, teacher)
    total = case.hyper["weight_cls"] * loss_cls + case.hyper["weight_attn"] * kl
    case.check("loss_cls_mse", loss_cls)
    case.check(f"kl_{mode}", kl)
    case.check(f"loss_total_{mode}", total)
    total.backward()
    case.check(f"grad_norm_last_qkv_weight_{mode}", student_net.blocks[-1].attn.qkv.weight.grad.norm())
    case.check(f"grad_norm_patch_embed_weight_{mode}", student_net.patch_embed.proj.weight.grad.norm())
    assert all(parameter.grad is None for parameter in teacher_net.parameters())
    assert case.checked == set(case.expected)


# --- rows ---------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 8))
def test_rows_are_the_logarithm_of_explicit_attention(b, h, m, d):
    q, k = torch.randn(2, b, h, m, d)
    expected = (q @ k.transpose(-2, -1) / d**0.5).softmax(dim=-1)[:, :, 0]
    torch.testing.assert_close(class_log_attention(q[:, :, 0], k).exp(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_extreme_queries_and_keys_stay_finite_with_their_gradients(dtype):
    q, k = ((100 * torch.randn(2, 3, 6, 8)).to(dtype).requires_grad_() for _ in range(2))
    rows = class_log_attention(q[:, :, 0], k)
    loss = attention_kl(aggregate(rows), aggregate(rows.flip(-1)))
    loss.backward()
    assert rows.dtype == torch.float32 and bool(rows.isfinite().all()) and bool(loss.isfinite())
    for part in (q, k):
        assert part.grad.dtype == dtype and bool(part.grad.isfinite().all())


def test_autocast_rounds_nothing():
    q, k = torch.randn(2, 2, 3, 26, 16)
    keep = torch.tensor([[0, 3, 7], [2, 4, 8]])

    def loss() -> Tensor:
        rows = class_log_attention(q[:, :, 0], k)
        moved = to_grid(rows, grid(5), grid(3), special=1, mode="bilinear")
        student = aggregate(restrict(moved, keep, special=1))
        return attention_kl(student, student.flip(-1))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss()
    assert torch.equal(inside, loss())


# --- other grids --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("source", "target", "special", "t"), [(8, 4, 1, 1), (4, 6, 2, 1), (14, 16, 1, 1), (3, 5, 1, 2)]
)
def test_the_patches_keep_their_share_of_the_attention(mode, source, target, special, t):
    rows = log_rows(0, m=special + t * source**2, scale=0.3)
    moved = to_grid(rows, grid(source, t), grid(target, t), special=special, mode=mode)
    assert moved.shape[-1] == special + t * target**2
    assert torch.equal(moved[..., :special], rows[..., :special])
    torch.testing.assert_close(moved.exp().sum(dim=-1), torch.ones(2, 3))
    if t == 1:
        patches = rows[..., special:].exp().view(2, 3, source, source)
        plain = F.interpolate(patches, size=(target, target), mode=mode, align_corners=False).flatten(2)
        torch.testing.assert_close(
            F.normalize(moved[..., special:].exp(), p=1, dim=-1), F.normalize(plain, p=1, dim=-1)
        )


def test_equal_grids_pass_unchanged_and_other_lengths_are_refused():
    rows = log_rows(0)
    assert to_grid(rows, grid(4), grid(4), special=1, mode="bicubic") is rows
    with pytest.raises(UserError, match="time steps; got 2x2x2 and 4x2x2"):
        to_grid(log_rows(0, m=9), grid(2, t=2), grid(2, t=4), special=1, mode="bilinear")


@pytest.mark.parametrize("patch", range(0, 256, 15))
@pytest.mark.parametrize(("side", "target"), [(8, 4), (16, 4), (16, 14)])
def test_sharp_attention_stays_finite_when_interpolated_and_aggregated(side, target, patch):
    """Bicubic values are negative there, whose logarithm is NaN in the authors' code, which skips such steps."""
    scores = torch.zeros(2, 6, 1 + side**2)
    scores[..., 1 + patch % side**2] = 200.0
    teacher = aggregate(to_grid(scores.log_softmax(-1), grid(side), grid(target), special=1, mode="bicubic"))
    scores = torch.randn(2, 3, 1 + target**2, requires_grad=True)
    loss = attention_kl(aggregate(scores.log_softmax(-1)), teacher)
    loss.backward()
    assert bool(teacher.isfinite().all()) and bool(loss.isfinite()) and bool(scores.grad.isfinite().all())
    torch.testing.assert_close(teacher.exp().sum(-1), torch.ones(2, 1))


def test_a_sharp_student_on_another_grid_gets_a_finite_gradient():
    scores = torch.zeros(1, 2, 17)
    scores[..., 6] = 200.0
    scores.requires_grad_()
    student = to_grid(scores.log_softmax(-1), grid(4), grid(6), special=1, mode="bilinear")
    loss = attention_kl(restrict(student, torch.arange(10)[None], special=1), log_rows(1, 1, 2, 11))
    loss.backward()
    assert bool(loss.isfinite()) and bool(scores.grad.isfinite().all())


# --- fewer tokens -------------------------------------------------------------------------------------------------


def test_restricted_rows_are_those_of_a_block_that_saw_only_these_tokens():
    q, k = torch.randn(2, 2, 3, 18, 4)
    keep = torch.tensor([[1, 5, 9], [15, 0, 3]])
    rows = restrict(class_log_attention(q[:, :, 0], k), keep, special=2)
    index = torch.cat((torch.tensor([[0, 1], [0, 1]]), keep + 2), dim=1)[:, None, :, None]
    torch.testing.assert_close(rows, class_log_attention(q[:, :, 0], torch.take_along_dim(k, index, dim=2)))


@pytest.mark.parametrize("special", [0, 1, 2])
def test_keeping_every_patch_in_order_changes_nothing(special):
    rows = log_rows(0, m=special + 16)
    every = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(restrict(rows, every, special=special), rows)
    lifted = rows + 0.1  # as `to_grid` leaves them: the authors do not renormalise before the distance does
    assert restrict(lifted, None, special=special) is lifted
    assert restrict(lifted, None, special=special, shared=special) is lifted


def test_a_distillation_token_can_be_left_out():
    rows = torch.tensor([[[0.2, 0.5, 0.2, 0.1]]]).log()
    shared = restrict(rows, None, special=2, shared=1)
    torch.testing.assert_close(shared.exp(), torch.tensor([[[0.4, 0.4, 0.2]]]))
    kept = restrict(rows, torch.tensor([[1]]), special=2, shared=1)
    torch.testing.assert_close(kept.exp(), torch.tensor([[[2 / 3, 1 / 3]]]))


def test_aggregating_before_or_after_leaving_out_columns_is_the_same():
    rows, keep = log_rows(0), torch.tensor([[1, 5, 9], [15, 0, 3]])
    before, after = restrict(aggregate(rows), keep, special=1), aggregate(restrict(rows, keep, special=1))
    torch.testing.assert_close(before, after)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(16)), st.integers(1, 16))
def test_the_order_of_kept_patches_does_not_matter(order, k):
    student, teacher = log_rows(0), log_rows(1)
    losses = [
        attention_kl(*(restrict(rows, keep.expand(2, -1), special=1) for rows in (student, teacher)))
        for keep in (torch.tensor(order[:k]), torch.tensor(sorted(order[:k])))
    ]
    torch.testing.assert_close(*losses)


# --- heads and distance -------------------------------------------------------------------------------------------


def test_aggregation_is_a_product_of_experts():
    rows = torch.tensor([[[0.1, 0.9], [0.5, 0.5]]]).log()
    expected = torch.tensor([0.05, 0.45]) / 0.5
    torch.testing.assert_close(aggregate(rows, temperature=1.0).exp(), expected.view(1, 1, 2))
    softened = expected.pow(1 / 10) / expected.pow(1 / 10).sum()
    torch.testing.assert_close(aggregate(rows).exp(), softened.view(1, 1, 2))


def test_the_distance_written_out_for_one_row():
    """The teacher's second token is lifted to 1e-5, its first lowered to 0.996."""
    student, teacher = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[1.0, 1e-9]]]).log()
    total = 0.996 + 1e-5
    p = torch.tensor([0.996 / total, 1e-5 / total], dtype=torch.float64)
    torch.testing.assert_close(attention_kl(student, teacher).double(), (p * (p / 0.5).log()).sum(), rtol=1e-6, atol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.sampled_from([0.1, 1.0, 30.0]))
def test_the_distance_is_not_negative_and_zero_for_equal_rows(b, h, m, scale):
    student, teacher = log_rows(0, b, h, m, scale), log_rows(1, b, h, m, scale)
    assert attention_kl(student, teacher) >= -1e-6
    assert abs(attention_kl(teacher, teacher)) < 1e-6


def test_the_distance_is_a_sum_over_heads_and_a_mean_over_the_batch():
    student, teacher = log_rows(0), log_rows(1)
    single = [
        attention_kl(student[i : i + 1, j : j + 1], teacher[i : i + 1, j : j + 1]) for i in range(2) for j in range(3)
    ]
    torch.testing.assert_close(attention_kl(student, teacher), sum(single) / 2)


def test_the_gradient_is_that_of_finite_differences():
    scores = torch.randn(2, 2, 10, dtype=torch.float64, requires_grad=True)
    teacher, keep = log_rows(1, h=4, m=6).double(), torch.tensor([[0, 3, 7, 12, 13], [1, 2, 9, 10, 15]])

    def loss(scores: Tensor) -> Tensor:
        moved = to_grid(scores.log_softmax(-1), grid(3), grid(4), special=1, mode="bilinear")
        return attention_kl(aggregate(restrict(moved, keep, special=1)), aggregate(teacher))

    assert torch.autograd.gradcheck(loss, scores)


def test_the_teacher_gets_no_gradient():
    student, teacher = (torch.randn(2, 3, 17, requires_grad=True) for _ in range(2))
    attention_kl(student.log_softmax(-1), teacher.log_softmax(-1)).backward()
    assert teacher.grad is None and student.grad is not None
