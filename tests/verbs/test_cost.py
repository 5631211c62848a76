"""`vitdistill cost`: the paper's figures, schedules, and what it does without weights."""

import json
from pathlib import Path

import pytest
import torch

from tiny import SMALL as SMALL_ARGS
from vitdistill.errors import UserError
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.models.build import build
from vitdistill.models.record import record_of
from vitdistill.training.summary import cost_of
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


@pytest.mark.parametrize(("keep", "published"), [(1.0, 92.8), (500, 75.9), (300, 44.0)])
def test_published_teraflops_of_sound(keep: float, published: float, capsys: pytest.CaptureFixture) -> None:
    """MaskedKD, Table 3: one epoch of the four folds of ESC-50 that train."""
    result = cost(teacher="ast_base384", student="ast_small", keep=keep, epochs=1, images=1600)
    assert 1000 * result["teacher_pflops"] == pytest.approx(published, rel=0.003)
    assert result["student_gmacs_per_image"]["forward"] == pytest.approx(16.21, abs=0.005)
    text = " ".join(capsys.readouterr().out.split())
    row = text.partition("teacher, TFLOPs")[2].split("│")[1:3]
    assert [float(cell) for cell in row] == pytest.approx([92.8, published], rel=0.003)
    assert "1 epoch of 1,600 clips" in text and "128x512 mel bins x frames" in text


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


LINEAR = {
    ("deit_base_patch16_224", "vit_small_patch16_224.dino"): {1.0: 2252, 144: 1644, 98: 1116},
    ("deit3_large_patch16_224", "vit_base_patch16_224.dino"): {1.0: 7892, 144: 5767, 98: 3914},
}


DEIT_B, DEIT3_L = LINEAR


@pytest.mark.parametrize("networks", [DEIT_B, pytest.param(DEIT3_L, marks=pytest.mark.slow)], ids=["deit_b", "deit3_l"])
def test_a_linear_only_student_costs_its_forward_pass(networks: tuple[str, str]) -> None:
    """MaskedKD, Table 8; the student's own training is not in it."""
    teacher, student = networks
    for keep, pflops in LINEAR[networks].items():
        result = cost(teacher=teacher, student=student, linear_only=True, keep=keep, epochs=100, json=True)
        assert result["teacher_pflops"] == pytest.approx(pflops, rel=0.001)
    macs = result["student_gmacs_per_image"]
    assert macs["training"] == macs["forward"] and result["student_pflops"] < result["teacher_pflops"]
    whole = cost(teacher=teacher, student=student, keep=98, epochs=100, gpu_tflops=100, json=True)
    linear = cost(teacher=teacher, student=student, linear_only=True, keep=98, epochs=100, gpu_tflops=100, json=True)
    for group, name in (("student_gmacs_per_image", "training"), ("gpu_hours", "student")):
        assert whole[group][name] == pytest.approx(3 * linear[group][name], rel=1e-3)


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
    cost(teacher="vit_large_patch16_224.mae", student="resnet50", keep=49, criterion="random", json=True)
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


# --- what ranks the patches --------------------------------------------------------------------------------------


def ranked(**options: object) -> dict:
    shallow = {"teacher_args": {"depth": 4}, "student_args": {"depth": 4}}
    return cost(**{"teacher": BASE, "student": SMALL, **shallow, "keep": 98, "json": True, **options})


def test_the_student_and_chance_rank_for_nothing() -> None:
    for criterion in ("student+random", "random"):
        result = ranked(criterion=criterion)
        assert result["ranking_gmacs_per_image"] == result["ranking_pflops"] == 0
        assert result["saved_fraction"] > 0.49


@pytest.mark.parametrize("criterion", ["teacher", "teacher+random"])
def test_a_teacher_that_ranks_runs_nearly_twice(criterion: str) -> None:
    result, alone = ranked(criterion=criterion, gpu_tflops=100), ranked(student=None, student_args=None)
    full = result["teacher_gmacs_per_image"]["full"]["total"]
    ranking = result["ranking_gmacs_per_image"]
    assert 0.8 * full < ranking < 0.85 * full  # it ends at the attention of the last block
    assert result["teacher_pflops"] == alone["teacher_pflops"]  # the paper's convention knows no ranking
    assert result["ranking_pflops"] == pytest.approx(ranking * 300 * 1281167 / 1e6)
    paid = result["teacher_gmacs_per_image"]["kept"]["total"] + ranking
    assert result["saved_fraction"] == pytest.approx(1 - paid / full) and result["saved_fraction"] < 0
    assert result["teacher_speedup_limit"] == pytest.approx(full / paid)
    training = result["student_gmacs_per_image"]["training"]
    assert result["step_speedup_limit"] == pytest.approx((full + training) / (paid + training))
    assert result["teacher_share_of_step"]["kept"] == pytest.approx(paid / (paid + training))
    assert result["gpu_hours"]["ranking"] == pytest.approx(2 * result["ranking_pflops"] / 0.1 / 3600)


def test_an_earlier_block_costs_less() -> None:
    first, last = (ranked(criterion="teacher", saliency_layer=n)["ranking_gmacs_per_image"] for n in (0, "last"))
    assert first < 0.1 * last


def test_a_third_network_is_counted_at_its_own_size() -> None:
    result = ranked(criterion="network", network="deit_tiny_patch16_224", image_size=384, keep=288)
    assert 0.9 * 1.26 < result["ranking_gmacs_per_image"] < 1.26  # DeiT-Ti's GMACs at 224


def test_nothing_is_ranked_while_all_patches_are_kept() -> None:
    half, later = (ranked(criterion="teacher", keep=keep, epochs=10) for keep in (0.5, "0:1.0,0.5:0.5"))
    assert later["ranking_gmacs_per_image"] == pytest.approx(half["ranking_gmacs_per_image"] / 2)


def test_a_masked_student_ranks_by_a_pass_of_its_own() -> None:
    result = ranked(mask="student", keep=49, gpu_tflops=100)
    gmacs = result["student_gmacs_per_image"]
    assert result["student_patches"] == 196 and result["kept_patches"] == 49
    assert result["saved_fraction"] == 0 and result["teacher_pflops"] == result["teacher_full_pflops"]
    assert 0.8 * gmacs["forward"] < result["ranking_gmacs_per_image"] < gmacs["forward"]
    assert gmacs["forward_kept"] < gmacs["forward"] / 3 and gmacs["training_kept"] == pytest.approx(
        3 * gmacs["forward_kept"]
    )
    assert result["student_full_pflops"] == pytest.approx(gmacs["training"] * 300 * 1281167 / 1e6)
    assert result["gpu_hours"]["student_full"] > 3 * result["gpu_hours"]["student"]
    teacher = result["teacher_gmacs_per_image"]["full"]["total"]
    after = teacher + result["ranking_gmacs_per_image"] + gmacs["training_kept"]
    assert result["step_speedup_limit"] == pytest.approx((teacher + gmacs["training"]) / after)
    assert ranked(mask="student", criterion="random")["ranking_gmacs_per_image"] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"criterion": "teacher"},
        {"criterion": "teacher+random", "saliency_layer": 1},
        {"criterion": "network"},
        {"mask": "student"},
        {"mask": "student", "criterion": "teacher"},
    ],
    ids=["teacher", "an earlier block", "network", "masked student", "masked student by teacher"],
)
def test_training_and_this_verb_count_ranking_alike(
    options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitdistill.verbs.cost.STEPS_PER_EPOCH", 20)
    name, student = "vit_tiny_patch16_224", "deit_tiny_patch16_224"
    networks = {}
    if options.get("criterion") == "network":
        networks = {"network": build(student, args=dict(SMALL_ARGS))}
    method = MaskedKD(
        build(student, args=dict(SMALL_ARGS)), build(name, args=dict(SMALL_ARGS)), keep="1.0->4", **networks, **options
    )
    trained = cost_of(method, epochs=2, steps_per_epoch=20, images_per_epoch=50, epochs_done=2)["cost"]
    network = {}
    if networks:
        record_of(networks["network"].net).write(tmp_path)
        network = {"network": str(tmp_path)}
    asked = cost(
        teacher=name,
        student=student,
        teacher_args=dict(SMALL_ARGS),
        student_args=dict(SMALL_ARGS),
        keep="1.0->4",
        epochs=2,
        images=50,
        json=True,
        **network,
        **options,
    )
    assert asked["saved_fraction"] == pytest.approx(trained["saved_fraction"], abs=1e-6)
    of_frozen = asked["teacher_pflops"] + (asked["ranking_pflops"] if options.get("criterion") else 0)
    assert of_frozen * 1e6 == pytest.approx(trained["teacher_gmacs_total"])


def test_tables_have_a_row_for_ranking(capsys: pytest.CaptureFixture) -> None:
    ranked(criterion="teacher", gpu_tflops=50, json=False)
    text = capsys.readouterr().out
    for words in ("ranking (teacher)", "ranking, PFLOPs", "all, PFLOPs"):
        assert words in text
    ranked(mask="student", json=False)
    text = capsys.readouterr().out
    for words in ("ranking (student)", "masked student", "whole student"):
        assert words in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": SMALL}, "--network has no effect unless --criterion is network or network.random"),
        ({"saliency_layer": 3}, "--saliency_layer has no effect unless --criterion is teacher or .* --mask is student"),
        ({"mask": "student", "student": None, "student_args": None}, "--mask has no effect unless --student is given"),
        ({"criterion": "network"}, "needs a third network. Name it with --network"),
        ({"criterion": "teachr"}, "Did you mean 'teacher'"),
        ({"criterion": "teacher", "saliency_layer": 4}, "4"),
        ({"student": "resnet10t", "student_args": None}, "Use --criterion random"),
        ({"criterion": "network", "network": "resnet10t"}, "no attention to take saliency from"),
        (
            {"mask": "student", "student": "resnet10t", "criterion": "random", "student_args": None},
            "resnet10t cannot leave out patches",
        ),
    ],
)
def test_options_that_change_nothing_or_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ranked(**{"keep": 0.5, **options})
    assert "\n" not in str(caught.value)


def test_a_masked_teacher_that_labels_pixels_is_its_encoder() -> None:
    result = cost(teacher="segmenter_small", keep=768, images=20_210, epochs=64)
    full, kept = (result["teacher_gmacs_per_image"][which] for which in ("full", "kept"))
    assert full["total"] == pytest.approx(31.80 + 6.67, rel=1e-3) and kept["total"] == pytest.approx(22.12, rel=1e-3)
    assert kept["head"] == 0 and "never runs its decoder" in result["note"]
    assert result["teacher_pflops"] == pytest.approx(22.116 * 64 * 20_210 / 1e6, rel=1e-3)
