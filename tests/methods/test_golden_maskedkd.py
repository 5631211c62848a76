"""MaskedKD against the authors' implementation: every expected value of the three reference cases."""

from typing import Any

import pytest
import torch
from timm.models.cait import Cait
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from golden_values import Golden
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.methods.supervised import Supervised
from vitdistill.models.build import build
from vitdistill.tokens.select import top_k
from vitdistill.types import Step

# --- logit distillation: DeiT teacher, DeiT student --------------------


@pytest.fixture(scope="module")
def case() -> Golden:
    return Golden("maskedkd_logit_a")


def network(case: Golden, role: str) -> nn.Module:
    sizes = case.hyper[role]
    net = VisionTransformer(
        img_size=case.hyper["img_size"],
        patch_size=case.hyper["patch_size"],
        num_classes=case.hyper["num_classes"],
        embed_dim=sizes["dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
    )
    return case.load(net, role)


def step(case: Golden, targets: str = "soft_targets", **options: Any) -> tuple[Step, MaskedKD]:
    # Both networks saw the same tensor, as they do here: their statistics are the same.
    method = MaskedKD(
        network(case, "student"), network(case, "teacher"), **{"keep": case.hyper["len_num_keep"], **options}
    )
    return method(case.inputs["image"], case.inputs[targets]), method


@pytest.mark.parametrize("training", [False, True])
def test_saliency_selection_and_class_scores(case, training):
    out, method = step(case)
    student = method.student.train(training)
    image = case.inputs["image"]
    case.check("student_logits", out.prediction)
    case.check("teacher_logits_masked", out.teacher_prediction)
    case.check("keep_indices_sorted", out.kept)
    output = student(image, capture=student.saliency_capture())
    saliency = student.saliency(output)
    case.check("saliency", saliency)
    case.check("keep_indices", saliency.topk(8, dim=1).indices)
    case.check("keep_indices_sorted", top_k(saliency, 8))
    q, k, _, _ = output.qkv(-1)
    case.check("last_attention", (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1))
    unsorted = method.teacher(image, keep=case.expected["keep_indices"])
    case.check("teacher_logits_masked", unsorted.prediction)
    case.check("teacher_logits_full", method.teacher(image).prediction)


@pytest.mark.parametrize("tau", [1, 4])
def test_loss_and_gradients(case, tau):
    out, method = step(case, tau=float(tau))
    out.loss.backward()
    case.check(f"loss_soft_targets_alpha0.5_tau{tau}", out.loss)
    qkv = method.student.net.blocks[-1].attn.qkv
    case.check(f"grad_last_qkv_weight_tau{tau}", qkv.weight.grad)
    case.check(f"grad_norm_last_qkv_weight_tau{tau}", qkv.weight.grad.norm())
    case.check(f"grad_norm_last_qkv_bias_tau{tau}", qkv.bias.grad.norm())
    case.check(f"grad_norm_all_tau{tau}", torch.cat([p.grad.flatten() for p in method.parameters()]).norm())
    case.check(f"kd_only_tau{tau}", out.terms["kd"])
    case.check(f"kd_only_tau{tau}", step(case, tau=float(tau), alpha=1.0)[0].loss)
    case.check(f"loss_unmasked_soft_targets_alpha0.5_tau{tau}", step(case, tau=float(tau), keep=1.0)[0].loss)


def test_other_losses(case):
    case.check("base_soft_target_ce", step(case)[0].terms["ce"])
    case.check("base_soft_target_ce", step(case, alpha=0.0)[0].loss)
    supervised = Supervised(network(case, "student"))
    case.check("base_soft_target_ce", supervised(case.inputs["image"], case.inputs["soft_targets"]).loss)
    case.check("loss_labels_ce_alpha0.5_tau1", step(case, "labels")[0].loss)
    case.check("loss_labels_smoothing0.1_alpha0.5_tau1", step(case, "labels", smoothing=0.1)[0].loss)
    case.check("loss_hard_alpha0.5", step(case, distillation="hard")[0].loss)


def test_every_expected_value_is_compared(golden):
    case = golden("maskedkd_logit_a")
    test_saliency_selection_and_class_scores(case, False)
    test_other_losses(case)
    for tau in (1, 4):
        test_loss_and_gradients(case, tau)
    assert case.checked == set(case.expected)


# --- other teachers --------------------


def deit3(case: Golden) -> nn.Module:
    hyper = case.hyper
    net = VisionTransformer(
        img_size=hyper["img_size"],
        patch_size=hyper["patch_size"],
        num_classes=hyper["num_classes"],
        embed_dim=hyper["embed_dim"],
        depth=hyper["depth"],
        num_heads=hyper["num_heads"],
        no_embed_class=True,
        init_values=1e-6,
    )
    return case.load(net, "teacher")


def cait(case: Golden) -> nn.Module:
    hyper = case.hyper
    net = Cait(
        img_size=hyper["img_size"],
        patch_size=hyper["patch_size"],
        num_classes=hyper["num_classes"],
        embed_dim=hyper["embed_dim"],
        depth=hyper["depth"],
        num_heads=hyper["num_heads"],
        depth_token_only=hyper["depth_token_only"],
    )
    return case.load(net, "teacher")


@pytest.mark.parametrize(("name", "make"), [("maskedkd_deit3_a", deit3), ("maskedkd_cait_a", cait)])
def test_masked_teachers(golden, name, make):
    case = golden(name)
    teacher = build(make(case))
    image, keep = case.inputs["image"], case.inputs["keep_indices"]
    masked = teacher(image, keep=keep)
    case.check("teacher_logits_masked", masked.prediction)
    case.check("teacher_features_masked", masked.final.special[:, 0])
    case.check("teacher_logits_masked_sorted_order", teacher(image, keep=keep.sort(dim=1).values).prediction)
    case.check("teacher_logits_full", teacher(image).prediction)
    every: Tensor = torch.arange(case.hyper["num_patches"]).expand(len(image), -1)
    case.check("teacher_logits_full", teacher(image, keep=every).prediction)
    assert case.checked == set(case.expected)
