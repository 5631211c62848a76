"""DINO: which patches the teacher sees, what moves after a step, what is watched, and what is refused."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.files import WEIGHTS
from vitdistill.losses.dino import dino_loss, dino_targets, entropy
from vitdistill.methods.dino import DINO, TRAINED, class_token
from vitdistill.methods.options import DinoHead
from vitdistill.models.build import build
from vitdistill.types import NOTHING, Capture

HEAD = DinoHead(outputs=24, hidden=16, bottleneck=8)


def dino(student: str | nn.Module = "vit", **options: Any) -> DINO:
    net = tiny(student, seed=1) if isinstance(student, str) else student
    return DINO(net, **{"locals": 3, "local_size": (16, 16), "head": HEAD, **options})


@pytest.fixture
def views() -> tuple[Any, ...]:
    """Two large and three small views of three images."""
    noise = torch.Generator().manual_seed(7)
    return tuple(torch.randn(3, 3, size, size, generator=noise) for size in (32, 32, 16, 16, 16))


def centred(method: DINO, large: Tensor, keep: Tensor | None = None) -> Tensor:
    output = method.average.backbone(large, keep=keep)
    return method.average.head(class_token(output)) - method.average.centre


# --- one step --------------------


def test_the_loss_is_over_all_pairs_of_two_views() -> None:
    scores, said = torch.randn(10, 24), dino_targets(torch.randn(4, 24), 0.04)
    logs = (scores / 0.1).log_softmax(-1).view(5, 2, 24)
    pairs = [-(said.view(2, 2, 24)[i] * logs[v]).sum(-1).mean() for i in range(2) for v in range(5) if v != i]
    assert len(pairs) == 8
    torch.testing.assert_close(dino_loss(scores, said, 5), torch.stack(pairs).mean())


def test_the_softmax_is_computed_in_float32_under_autocast() -> None:
    scores, outputs = torch.randn(10, 24), torch.randn(4, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        said = dino_targets(outputs.bfloat16(), 0.04)
        assert said.dtype == dino_loss(scores.bfloat16(), said, 5).dtype == torch.float32


@pytest.mark.parametrize("keep", [1.0, 16, "1.0->1.0"])
def test_keeping_all_is_bit_identical_to_the_unmasked_teacher(keep: Any, views: tuple[Any, ...]) -> None:
    method = dino(keep=keep).train()
    large = torch.cat(views[:2])
    scores = method.head(
        torch.cat((class_token(method.student(large)), class_token(method._small[0](torch.cat(views[2:])))))
    )
    expected = dino_loss(scores, dino_targets(centred(method, large), 0.04), 5)
    step = method(views)
    assert torch.equal(step.loss, expected) and step.kept is None and method.kept_patches(0.0) is None


def test_each_large_view_is_masked_by_its_own_pass_of_the_student(views: tuple[Any, ...]) -> None:
    method = dino(keep=5).train()
    with torch.no_grad():
        for parameter in method.average.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    expected = []
    for view in views[:2]:
        seen = method.student(view, capture=method.student.saliency_capture(-1) | NOTHING)
        expected.append(method.student.saliency(seen, -1).topk(5, dim=1).indices.sort(dim=1).values)
    said = [dino_targets(centred(method, view, keep), 0.04) for view, keep in zip(views[:2], expected, strict=True)]
    tokens = [class_token(method.student(view)) for view in views[:2]]
    tokens += [class_token(method._small[0](view)) for view in views[2:]]
    loss = dino_loss(method.head(torch.cat(tokens)), torch.cat(said), 5)
    step = method(views)
    assert torch.equal(step.kept, torch.cat(expected))
    torch.testing.assert_close(step.loss, loss)


def test_a_schedule_masks_more_and_more(views: tuple[Any, ...]) -> None:
    method = dino(keep="0:1.0,0.5:6")
    assert [method.kept_patches(at) for at in (0.0, 0.5, 1.0)] == [None, 6, 6]
    assert method(views, None, 0.2).kept is None and method(views, None, 0.7).kept.shape == (6, 6)


def test_patches_by_mass_and_by_agreement_go_by_the_teachers_outputs(views: tuple[Any, ...]) -> None:
    method = dino(keep="mass:0.5").train()
    assert method(views).kept.shape[0] == 6 and method(views).measured["keep"] < 16
    method = dino(keep="agree:0.9").train()
    for _ in range(3):
        method(views)
    assert 0 <= method.observations()["teacher/agreement"] <= 100


def test_any_network_with_a_class_token_will_do_without_small_views(views: tuple[Any, ...]) -> None:
    for name in ("cait", "dinov3", "eva02"):
        step = dino(name, locals=0, keep=7).train()(views[:2])
        step.loss.backward()
        assert step.kept.shape == (6, 7) and step.loss.isfinite()


def test_the_centre_moves_in_training_only_by_what_the_teacher_said(views: tuple[Any, ...]) -> None:
    method = dino(centre_momentum=0.75).train()
    first = centred(method, torch.cat(views[:2])).mean(dim=0, keepdim=True)
    method.eval()(views)
    assert not method.average.centre.any()
    loss = method.train()(views).loss
    torch.testing.assert_close(method.average.centre, 0.25 * first)
    assert not torch.equal(method(views).loss, loss)


# --- after it --------------------


def test_the_average_follows_along_a_cosine_and_gets_no_gradient(views: tuple[Any, ...]) -> None:
    method = dino(momentum=0.9).train()
    assert [round(method.momentum_at(at), 6) for at in (0.0, 0.5, 1.0)] == [0.9, 0.95, 1.0]
    assert all(
        torch.equal(a, b) for a, b in zip(method.average.head.parameters(), method.head.parameters(), strict=True)
    )
    method(views).loss.backward()
    before = copy.deepcopy(method.average)
    with torch.no_grad():
        for parameter in (*method.student.parameters(), *method.head.parameters()):
            parameter.add_(1.0)
    method.after_step(0.5)
    for role in ("backbone", "head"):
        pairs = zip(getattr(before, role).parameters(), getattr(method.average, role).parameters(), strict=True)
        for old, new in pairs:
            torch.testing.assert_close(new, old + 0.05, rtol=0, atol=1e-6)
            assert new.grad is None and not new.requires_grad


def test_prototypes_stay_for_their_share_of_the_training(views: tuple[Any, ...]) -> None:
    method = dino(freeze_last=0.25).train()
    for progress, frozen in ((0.0, True), (0.24, True), (0.25, False)):
        method(views).loss.backward()
        method.after_backward(progress)
        last = method.head.last_layer
        assert (last.weight_v.grad is None) == frozen and last.weight_g.grad is None
        assert method.head.mlp[0].weight.grad is not None


def test_the_teachers_temperature_goes_along_a_line() -> None:
    method = dino(first_teacher_temperature=0.04, teacher_temperature=0.07, temperature_warmup=0.3)
    found = [round(method.temperature_at(at), 6) for at in (0.0, 0.1, 0.3, 1.0)]
    assert found == [0.04, 0.05, 0.07, 0.07] and dino().temperature_at(0.0) == 0.04


def test_the_exported_network_is_the_average() -> None:
    method = dino()
    files = method.artifacts(method.state_dict())
    own, average = files[TRAINED], files[WEIGHTS]
    assert own.keys() == average.keys() == method.student.net.state_dict().keys()
    method.after_step(0.0)
    with torch.no_grad():
        method.student.net.norm.weight.add_(1)
    files = method.artifacts(method.state_dict())
    assert not torch.equal(files[TRAINED]["norm.weight"], files[WEIGHTS]["norm.weight"])


# --- what is watched --------------------


def test_entropy_and_the_distance_from_uniform_are_told(views: tuple[Any, ...]) -> None:
    method = dino().train()
    said = dino_targets(centred(method, torch.cat(views[:2])), 0.04)
    measured = method(views).measured
    torch.testing.assert_close(measured["teacher/entropy"], entropy(said).mean())
    mean = said.mean(dim=0)
    torch.testing.assert_close(measured["teacher/kl_uniform"], (mean * (mean * 24).log()).sum(), atol=1e-5, rtol=1e-5)
    assert method.eval()(views).measured == {}


@pytest.mark.parametrize(("collapsed", "words"), [("one", "one output: entropy"), ("uniform", "all outputs alike")])
def test_collapse_is_said(collapsed: str, words: str, views: tuple[Any, ...]) -> None:
    torch.manual_seed(0)  # of the head: some begin collapsed
    method = dino().train()
    assert method.doubt() is None  # nothing is known yet
    method(views)
    assert method.doubt() is None
    with torch.no_grad():
        method.average.head.last_layer.weight_g.zero_()
        if collapsed == "one":
            method.average.centre[0, 3] = -10.0
        else:
            method.average.centre.zero_()
    method(views)
    assert words in method.doubt() and "\n" not in method.doubt()
    most = math.log(24)
    assert method.watched.sum().item() == pytest.approx(most, abs=1e-3)


# --- cost --------------------


# MaskedKD, Table 4: PFLOPs of one view through the backbone, for 100 epochs of ImageNet.
@pytest.mark.parametrize(("kept", "pflops"), [(196, 589), (170, 507), (150, 446), (130, 384), (120, 354)])
def test_the_published_cost_is_that_of_one_view_and_a_step_has_two(kept: int, pflops: float) -> None:
    network = build("vit_small_patch16_224", num_classes=0, meta=True)
    assert network.macs(None if kept == 196 else kept).total * 1281167 * 100 / 1e15 == pytest.approx(pflops, rel=0.003)


def test_a_step_costs_two_views_of_the_teacher_and_all_of_the_student() -> None:
    method = dino(keep=5)
    large, small, teacher = method.passes(0.0)
    assert (large.role, large.times, large.kept) == ("student", 2, None)
    assert (small.role, small.times, small.network.grid.count) == ("student", 3, 4)
    assert (teacher.role, teacher.times, teacher.kept) == ("teacher", 2, 5)
    assert method.head.macs == 24 * 16 + 16 * 16 + 16 * 8 + 8 * 24
    whole = method.student.macs(capture=Capture()).total
    assert large.macs == 2 * whole and small.macs < whole and teacher.macs < 2 * whole


def test_what_was_spent_is_counted_by_image(views: tuple[Any, ...]) -> None:
    method = dino(keep=5).train()
    method(views)
    spent = method.spent(method.remembered())
    assert spent.inputs == 3 and spent.macs > 3 * method.passes(0.0)[-1].macs  # the whole teacher was asked as well


# --- bad input --------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"globals": 1, "locals": 0}, "needs at least two, one of them large; got --views.globals 1 and .*locals 0"),
        ({"globals": 0, "locals": 3}, "one of them large; got --views.globals 0"),
        ({"local_size": (15, 16)}, "must be whole patches of 8x8 pixels; got 15x16 pixels"),
        ({"local_size": (4, 4)}, "whole patches of 8x8 pixels; got 4x4.*--views.local_size 8"),
        ({"teacher_temperature": 0.0}, "teacher_temperature must be positive; got 0"),
        ({"first_teacher_temperature": -1.0}, "first_teacher_temperature must be positive"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"keep": 17}, "keep must lie between 1 and 16 patches"),
        ({"criterion": "network"}, "needs a third network"),
    ],
)
def test_impossible_options_are_refused_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        dino(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ("no_class_token", "DINO reads the class token; got .*has none"),
        ("swin", "DINO reads the class token|no class token"),
        ("mae_mean_pool", "final norm on the tokens"),
        ("eva02", r"Crops of another size need a ViT.*--views.locals 0"),
        ("cait", r"Crops of another size need a ViT"),
    ],
)
def test_networks_that_will_not_do_are_refused_in_one_line(student: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        dino(student)
    assert "\n" not in str(error.value)


def test_another_number_of_views_is_refused(views: tuple[Any, ...]) -> None:
    for given in (views[:4], views[0]):
        with pytest.raises(ValueError, match="2 large and 3 small views are needed"):
            dino()(given)
