"""MaskedKD over spectrograms: one step, masks between different strides, and networks that hear something else."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.build import build
from vitdistill.tokens.grids import transfer
from vitdistill.tokens.select import top_k
from vitdistill.types import TokenGrid

LIKE_SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
LIKE_BASE: dict[str, Any] = {"embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}


def network(name: str, args: dict[str, Any], seed: int = 0, **more: Any) -> Backbone:
    torch.manual_seed(seed)
    built = with_tokens(build(name, args={**args, **more}))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(0.5 * parameter + 0.2 * torch.randn_like(parameter))
    return built.eval()


@pytest.fixture
def sound() -> tuple[Tensor, Tensor]:
    """Two clips as ESC-50's are heard, and their classes."""
    return torch.randn(2, 1, 128, 512, generator=torch.Generator().manual_seed(3)), torch.tensor([1, 4])


def test_one_step_with_half_of_the_patches(sound) -> None:
    student, teacher = network("ast_small", LIKE_SMALL), network("ast_base384", LIKE_BASE, 1)
    assert student.grid == teacher.grid == TokenGrid(1, 12, 50)
    method = MaskedKD(student, teacher, keep=0.5).train()
    step = method(*sound)
    step.loss.backward()
    assert bool(step.loss.isfinite()) and step.kept.shape == (2, 300)
    assert all(p.grad is not None for p in student.parameters()) and all(p.grad is None for p in teacher.parameters())
    # The student's own attention chose them, and the teacher saw no others.
    with torch.no_grad():
        output = student(sound[0], capture=student.saliency_capture())
        assert torch.equal(step.kept, top_k(student.saliency(output), 300))
        torch.testing.assert_close(step.teacher_prediction, teacher(sound[0], keep=step.kept).prediction)
        by_both = MaskedKD(student, teacher, keep=0.5, saliency="cls+dist")(*sound)
        assert torch.equal(by_both.kept, top_k(student.saliency(output, -1, "cls+dist"), 300))


def test_keeping_everything_is_the_plain_pass(sound) -> None:
    student, teacher = network("ast_small", LIKE_SMALL), network("ast_base384", LIKE_BASE, 1)
    with torch.no_grad():
        step = MaskedKD(student, teacher, keep=1.0)(*sound)
        assert step.kept is None and torch.equal(step.teacher_prediction, teacher.net(sound[0]))
        every = torch.arange(600).expand(2, -1)
        assert torch.equal(teacher(sound[0], keep=every).prediction, teacher.net(sound[0]))


def test_other_strides_move_the_ranking_along_frequency_and_time(sound) -> None:
    """A student without overlap ranks 8 x 32 patches for a teacher with 12 x 50."""
    student, teacher = network("ast_small", LIKE_SMALL, stride=16), network("ast_base384", LIKE_BASE, 1)
    assert student.grid == TokenGrid(1, 8, 32) and student.input.patch == (1, 16, 16)
    with torch.no_grad():
        step = MaskedKD(student, teacher, keep=300)(*sound)
        saliency = student.saliency(student(sound[0], capture=student.saliency_capture()))
    assert torch.equal(step.kept, top_k(transfer(saliency, student.grid, teacher.grid), 300))


def test_a_teacher_with_other_statistics_hears_what_it_was_trained_on() -> None:
    size = {"img_size": [48, 64]}
    student = network("ast_small", LIKE_SMALL, **size)
    teacher = network("ast_base", LIKE_BASE, 1, statistics="audioset", **size)
    energies = -5 + 4 * torch.randn(2, 1, 48, 64)
    with torch.no_grad():
        as_student, as_teacher = ((energies - n.input.mean[0]) / n.input.std[0] for n in (student, teacher))
        step = MaskedKD(student, teacher, keep=1.0)(as_student, torch.tensor([0, 1]))
        torch.testing.assert_close(step.teacher_prediction, teacher(as_teacher).prediction, rtol=1e-4, atol=1e-4)


def test_images_and_spectrograms_of_another_size_are_refused() -> None:
    student = network("ast_small", LIKE_SMALL, img_size=[48, 64])
    image = build("vit_tiny_patch16_224", args={**LIKE_BASE, "img_size": 64})
    for teacher, words in (
        (image, "ast_small sees spectrograms of 48 mel bins and 64 frames and vit_tiny_patch16_224 images"),
        (network("ast_base", LIKE_BASE, img_size=[48, 104]), "ast_base spectrograms of 48 mel bins and 104 frames"),
    ):
        with pytest.raises(UserError, match=words) as error:
            MaskedKD(student, teacher)
        assert "\n" not in str(error.value)
