"""A teacher over images that sees clips frame by frame; what every teacher does stands with the methods' contract."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.models.families import as_network
from vitdistill.models.teacher import FrameTeacher, Teacher, onto
from vitdistill.types import Capture, TokenGrid

STUDENT_MEAN, STUDENT_STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


@pytest.fixture
def clips() -> Tensor:
    """Three clips of six frames."""
    return torch.randn(3, 3, 6, 32, 32, generator=torch.Generator().manual_seed(7))


def teacher_of(family: str, **args: int) -> Teacher:
    """A teacher of another resolution and other statistics than the student's."""
    return Teacher(as_network(tiny(family, **args)), mean=STUDENT_MEAN, std=STUDENT_STD)


@pytest.mark.parametrize("family", ["deit", "registers", "no_class_token", "cait"])
@pytest.mark.parametrize("steps", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [32, 48])
def test_it_sees_the_first_frame_of_every_time_step(clips, family, steps, size):
    teacher = teacher_of(family, img_size=size)
    framewise = FrameTeacher.over(teacher, steps)
    capture = Capture(frozenset({(1, "output"), (-1, "output")}), head=False)
    output = framewise(clips, capture=capture)
    side = size // 8
    assert framewise.grid == output.grid == TokenGrid(steps, side, side) and framewise.passes == steps

    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (STUDENT_MEAN, STUDENT_STD))
    own_mean, own_std = (
        torch.tensor(values).view(-1, 1, 1) for values in (teacher.network.input.mean, teacher.network.input.std)
    )
    for point in capture.points:
        by_hand = []
        for step in range(steps):
            frame = clips[:, :, step * 6 // steps]
            frame = (frame * std + mean - own_mean) / own_std
            frame = frame if size == 32 else F.interpolate(frame, size=size, mode="bicubic", align_corners=False)
            by_hand.append(teacher.network(frame, capture=capture).captured[point].patches)
        tokens = output.tokens(*point)
        assert tokens.specials == 0 and tokens.all.shape[1] == framewise.grid.count
        torch.testing.assert_close(tokens.all, torch.cat(by_hand, dim=1), rtol=1e-4, atol=1e-4)


def test_the_teacher_itself_goes_on_seeing_images(clips):
    teacher = teacher_of("deit")
    framewise = FrameTeacher.over(teacher, 2)
    frames = clips[:, :, ::3].transpose(1, 2).flatten(0, 1)
    capture = Capture.at(-1, "output", head=False)
    alone = teacher(frames, capture=capture).tokens(-1)
    assert teacher.grid == TokenGrid(1, 4, 4) and teacher.passes == 1 and alone.specials == 1
    together = framewise(clips, capture=capture).tokens(-1).all
    assert torch.equal(together, alone.patches.reshape(3, 32, -1)) and framewise.network is teacher.network


def test_it_carries_no_gradient_and_stops_at_the_block_asked(clips):
    framewise = FrameTeacher.over(teacher_of("deit"), 3)
    ran: list[int] = []
    for index, block in enumerate(framewise.backbone.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    output = framewise(clips.requires_grad_(), capture=Capture.at(1, "output", head=False))
    assert ran == [0, 1] and not output.tokens(1).all.requires_grad and output.prediction is None


def test_frames_cannot_be_masked(clips):
    with pytest.raises(UserError, match=r"sees every patch.*--keep 1\.0"):
        FrameTeacher.over(teacher_of("deit"), 2)(clips, keep=torch.zeros(3, 1, dtype=torch.long))


@pytest.mark.parametrize(("name", "waits"), [("cpu", True), ("cuda:1", False)])
def test_copies_to_a_cpu_are_waited_for(name: str, waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(Tensor, "to", lambda self, device, non_blocking: asked.append(not non_blocking) or self)
    onto(torch.zeros(2), torch.device(name))
    assert asked == [waits]
