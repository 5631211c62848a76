"""`vitdistill cost`: the paper's figures, schedules, and what it does without weights."""

import json

import pytest
import torch

from vitdistill.errors import UserError
from vitdistill.verbs.cost import cost

SMALL, BASE = "deit_small_patch16_224", "deit_base_patch16_224"


def test_published_figure_as_json(capsys: pytest.CaptureFixture) -> None:
    returned = cost(teacher=SMALL, keep=98, epochs=300, images=1281167, json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == returned
    assert printed["teacher_pflops"] == pytest.approx(866, rel=0.003)
    assert printed["teacher_full_pflops"] == pytest.approx(1770, rel=0.003)
    assert printed["kept_patches"] == 98 and printed["teacher_patches"] == 196
    assert printed["teacher_speedup_limit"] == pytest.approx(2.04, abs=0.005)
    assert "multiply-accumulates" in printed["convention"]


def test_parts_add_up_and_saving_is_consistent() -> None:
    result = cost(teacher="cait_xxs24_224", keep=0.5, epochs=7, images=1000, json=True)
    full, kept = (dict(result["teacher_gmacs_per_image"][key]) for key in ("full", "kept"))
    assert "talking_heads" in full and "class_attention" in full
    for parts in (full, kept):
        assert parts.pop("total") == pytest.approx(sum(parts.values()))
    assert full["patch_embed"] == kept["patch_embed"]
    assert result["saved_pflops"] == pytest.approx(result["teacher_full_pflops"] - result["teacher_pflops"])
    assert result["saved_fraction"] == pytest.approx(1 - 1 / result["teacher_speedup_limit"])


def test_student_training_is_three_forward_passes() -> None:
    """DeiT-B -> DeiT-S, the paper's main setting: masking half saves 28% of a step, so at most 1.39x."""
    result = cost(teacher=BASE, student=SMALL, keep=98, json=True)
    passes = 300 * 1281167
    forward = result["student_gmacs_per_image"]["forward"]
    assert forward == pytest.approx(4.608, rel=1e-3)
    assert result["student_gmacs_per_image"]["training"] == pytest.approx(3 * forward)
    assert result["student_pflops"] == pytest.approx(3 * forward * 1e9 * passes / 1e15)
    before, after = 17.583 + 3 * forward, 8.715 + 3 * forward
    assert result["step_speedup_limit"] == pytest.approx(before / after, rel=1e-3)
    assert result["teacher_share_of_step"]["full"] == pytest.approx(17.583 / before, rel=1e-3)
    assert result["teacher_share_of_step"]["kept"] == pytest.approx(8.715 / after, rel=1e-3)


def test_gpu_hours_take_two_flop_per_mac() -> None:
    result = cost(teacher=SMALL, student=SMALL, keep=98, gpu_tflops=100, json=True)
    assert result["gpu_hours"]["teacher_kept"] == pytest.approx(2 * result["teacher_pflops"] / 0.1 / 3600)
    assert result["gpu_hours"]["student"] == pytest.approx(3 * result["gpu_hours"]["teacher_full"])
    assert cost(teacher=SMALL, gpu_tflops=100, json=True)["gpu_hours"]["student"] is None


def test_higher_resolution_teacher_by_either_route() -> None:
    by_size = cost(teacher="deit3_small_patch16_224", keep=288, image_size=384, json=True)
    by_args = cost(
        teacher="deit3_small_patch16_224",
        student="deit_tiny_patch16_224",
        keep=288,
        image_size=224,
        teacher_args={"img_size": 384},
        json=True,
    )
    for result in (by_size, by_args):
        assert result["image_size"] == [384, 384] and result["teacher_patches"] == 576
        assert result["teacher_pflops"] == pytest.approx(2725, rel=0.003)
    assert by_args["student_gmacs_per_image"]["forward"] == pytest.approx(1.258, rel=0.01)  # stays at 224


def test_keep_refers_to_the_teachers_grid() -> None:
    """A 14x14 student with a 16x16 teacher: a half is 128 patches."""
    result = cost(teacher="deit3_huge_patch14_224", student=SMALL, keep=0.5, epochs=50, json=True)
    assert result["kept_patches"] == 128
    assert result["teacher_pflops"] == pytest.approx(5301, rel=0.003)


def test_schedule_is_averaged_over_training() -> None:
    steps = cost(teacher=SMALL, keep="0:1.0,0.5:0.5", epochs=10, json=True)
    ends = [cost(teacher=SMALL, keep=keep, epochs=10, json=True)["teacher_pflops"] for keep in (1.0, 0.5)]
    assert steps["teacher_pflops"] == pytest.approx(sum(ends) / 2)
    assert steps["kept_patches"] == pytest.approx(147)
    ramp = cost(teacher=SMALL, keep="1.0->0.5", epochs=300, json=True)
    assert ramp["kept_patches"] == pytest.approx(147, abs=0.5)
    # The cost is convex in the number kept, so a ramp costs less than the mean of its ends.
    assert ends[1] * 30 < ramp["teacher_pflops"] < sum(ends) / 2 * 30


def test_keeping_all_saves_nothing() -> None:
    result = cost(teacher=SMALL, keep=1.0, json=True)
    assert result["saved_pflops"] == 0 and result["teacher_speedup_limit"] == 1


def test_no_weights_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: seen.append((create(*a, **k), k)) or seen[-1][0])
    cost(teacher="vit_large_patch16_224.mae", student="resnet50", keep=49, json=True)
    assert len(seen) == 2
    for net, options in seen:
        assert not options["pretrained"]
        assert {tensor.device for tensor in net.parameters()} == {torch.device("meta")}


def test_cnn_teacher_at_its_image_size() -> None:
    small, large = (cost(teacher="resnet50", keep=1.0, image_size=size, json=True) for size in (224, 448))
    assert small["teacher_gmacs_per_image"]["full"]["total"] == pytest.approx(4.09, rel=0.002)
    assert large["teacher_full_pflops"] == pytest.approx(4 * small["teacher_full_pflops"], rel=0.002)


def test_tables_name_what_is_saved(capsys: pytest.CaptureFixture) -> None:
    cost(teacher=BASE, student=SMALL, keep=98, gpu_tflops=50)
    text = capsys.readouterr().out
    for word in ("98 kept", "attention", "teacher, PFLOPs", "3,350", "at most 2.02x", "GPU-hours at 50 TFLOP/s"):
        assert word in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "keep must lie between 1 and 196"),
        ({"keep": 197}, "keep must lie between 1 and 196"),
        ({"keep": float("nan")}, "finite"),
        ({"epochs": 0}, "epochs must be positive; got 0"),
        ({"images": -5}, "images must be positive; got -5"),
        ({"gpu_tflops": 0.0}, "gpu_tflops must be positive"),
        ({"teacher": "deit_smal_patch16_224"}, "deit_small_patch16_224"),
        ({"teacher": "resnet50"}, "cannot leave out patches"),
        ({"image_size": 230}, "multiple of the patch size 16"),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        cost(**{"teacher": SMALL, "json": True, **options})
    assert "\n" not in str(caught.value)
