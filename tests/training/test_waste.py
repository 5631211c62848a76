"""What a training would waste is said before its first step, and kept among the run's notes."""

import logging
from dataclasses import replace

import pytest

from tiny import tiny
from vitdistill.data.bundled.digits import digits
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.methods.supervised import Supervised
from vitdistill.models.build import build
from vitdistill.training.waste import enlarged_pictures, say_waste, waste


def pictures_of(side: int) -> object:
    return replace(digits(), image_size=side)


def test_small_pictures_before_a_large_student() -> None:
    student = build("deit_tiny_patch16_224", meta=True)
    (line,) = enlarged_pictures(student, 28, "image")
    assert line == (
        "Images of 28 pixels feed the student deit_tiny_patch16_224 of 224: 64 times the compute, and nothing more to "
        "see. Give --image_size 28 and patches of 4 (patch_size among its arguments), unless its weights were trained "
        "at 224"
    )
    assert "--image_size 112, unless" in enlarged_pictures(student, 101, "image")[0]  # a grid of 7 rows will do
    assert enlarged_pictures(student, 113, "image") == []  # less than four times the pixels


def test_a_network_without_patches_gets_the_size_alone() -> None:
    (line,) = enlarged_pictures(build("resnet18", meta=True), 32, "video")
    assert line.startswith("Videos of 32 pixels feed the student resnet18 of 224: 49 times") and "patch" not in line


def test_a_teacher_that_sees_enlarged_pictures() -> None:
    large = MaskedKD(tiny("vit"), tiny("vit", img_size=64), keep=1.0)
    (line,) = waste(large, pictures_of(32))
    assert "of 64 pixels sees the student's input of 32 enlarged: 25.0% of its pixels" in line
    assert "--teacher_args.img_size" in line
    # DeiT at 384 over a student at 224 is what the paper does.
    assert waste(MaskedKD(tiny("vit"), tiny("vit", img_size=56), keep=1.0), pictures_of(32)) == []


def test_both_and_a_third_network_are_lines_of_their_own() -> None:
    third = tiny("deit", img_size=64)
    method = MaskedKD(tiny("vit"), tiny("vit", img_size=64), keep=0.5, criterion="network", network=third)
    lines = waste(method, pictures_of(8))
    assert [line.split()[0] for line in lines] == ["Images", "The", "The"]


def test_a_teacher_that_takes_any_size_sees_what_the_student_sees() -> None:
    method = MaskedKD(tiny("vit"), build("resnet10t", num_classes=10), keep=1.0)
    method.teachers[0].network.sized = False
    assert waste(method, pictures_of(32)) == []


def test_each_is_said_once_and_earlier_notes_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    method, before = Supervised(tiny("vit")), {"notes": ["something else"]}
    with caplog.at_level(logging.WARNING):
        notes = say_waste(method, pictures_of(8), before)
    assert notes[0] == "something else" and len(notes) == 2 and caplog.messages == notes[1:]
    assert say_waste(method, pictures_of(8), {"notes": notes}) == notes  # after a resume


def test_the_first_process_speaks_for_all(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert say_waste(Supervised(tiny("vit")), pictures_of(8), {}) == [] and not caplog.messages
