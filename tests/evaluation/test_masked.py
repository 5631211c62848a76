"""Accuracy under masks: the passes, who ranks the patches, what is counted, and what it means."""

from typing import Any

import pytest
import torch

from tiny import tiny
from vitdistill import MaskedAccuracy, MaskedKD, build
from vitdistill.errors import UserError
from vitdistill.evaluation.classifier import averaged, class_scores
from vitdistill.evaluation.masked import meaning
from vitdistill.models.families import as_network
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([0, 1, 2, 3, 4, 5])


def answers(network: Any, images: torch.Tensor = IMAGES, **options: Any) -> list[torch.Tensor]:
    return MaskedAccuracy(network, **options).update(images, TARGETS[: len(images)])


def rows(network: Any, *batches: torch.Tensor, **options: Any) -> list[dict[str, Any]]:
    masked, first = MaskedAccuracy(network, **options), 0
    for images in batches or (IMAGES,):
        masked.update(images, TARGETS[first : first + len(images)])
        first += len(images)
    return masked.compute()


# --- the rows --------------------


def test_a_row_for_each_criterion_and_number_and_one_for_all_patches() -> None:
    found = rows(tiny("vit"), keep="1.0,0.5,4,8,16", criterion="random,teacher")  # 0.5 and 8 are 8 of 16
    assert [(row["criterion"], row["keep"], row["kept"]) for row in found] == [
        *[("random", 4, 4), ("random", 0.5, 8), ("teacher", 4, 4), ("teacher", 0.5, 8)],
        (None, 1.0, 16),
    ]
    assert all(row["patches"] == 16 for row in found)
    assert found[-1]["agreement"] == found[-1]["cost"] == 1 and found[-1]["ranking_gmacs"] == 0


@pytest.mark.parametrize("criterion", ["teacher", "random", "student", "teacher+random", "student+random"])
def test_all_patches_agree_whoever_ranks_them(criterion: str) -> None:
    student = tiny("vit", seed=3) if "student" in criterion else None
    (row,) = rows(tiny("deit"), keep=[16], criterion=criterion, student=student)
    assert row["agreement"] == 1 and row["cost"] == 1 and row["criterion"] is None
    whole, all_patches = answers(tiny("deit"), keep=[16], criterion=criterion, student=student)
    assert torch.equal(whole, all_patches) and torch.equal(whole, tiny("deit")(IMAGES).log_softmax(dim=1))


def test_what_is_counted() -> None:
    """Agreement is with the whole network's answers and accuracy with the labels, over all batches."""
    masked = MaskedAccuracy(tiny("vit"), keep=5)
    found = [masked.update(images, labels) for images, labels in zip(IMAGES.split(4), TARGETS.split(4), strict=True)]
    whole, kept = (torch.cat(parts) for parts in zip(*found, strict=True))
    (row,) = masked.compute()
    assert row["agreement"] == pytest.approx((whole.argmax(1) == kept.argmax(1)).double().mean().item(), abs=1e-6)
    assert row["top1"] == pytest.approx(100 * (kept.argmax(1) == TARGETS).double().mean().item(), abs=1e-3)
    right = (kept.topk(5, dim=1).indices == TARGETS[:, None]).any(dim=1)
    assert row["top5"] == pytest.approx(100 * right.double().mean().item(), abs=1e-3)


def test_cost_is_the_masked_pass_and_the_rankers() -> None:
    network = as_network(tiny("vit"))
    found = rows(network, keep="4,1.0", criterion="random,teacher,student+random", student=tiny("vit", seed=1))
    whole, masked = network.macs().total, network.macs(4).total
    assert [row["gmacs"] for row in found] == [masked / 1e9] * 3 + [whole / 1e9]
    # A student's pass is part of its training; only the teacher's ranking comes on top.
    chance, own, student, _ = (row["ranking_gmacs"] for row in found)
    assert chance == student == 0 and 0 < own < whole / 1e9
    assert found[1]["cost"] == pytest.approx((masked / 1e9 + own) / (whole / 1e9), abs=1e-6)


def test_each_network_ranks_once_for_all_numbers_of_patches() -> None:
    passes: list[str] = []

    network, student = tiny("vit"), tiny("vit", seed=1)
    for name, net in (("network", network), ("student", student)):
        net.patch_embed.register_forward_hook(lambda *_, name=name: passes.append(name))
    given = {"criterion": "teacher,teacher+random,student,student+random,random", "student": student}
    answers(network, keep="2,4,8", **given)
    assert passes.count("student") == 1
    assert passes.count("network") == 1 + 1 + 5 * 3  # whole, ranking, a pass for each row


# --- who ranks --------------------


def test_by_default_the_network_ranks_its_patches_itself() -> None:
    network = as_network(tiny("deit"))
    expected = class_scores(network, IMAGES, 5).log_softmax(dim=1)
    assert torch.equal(answers(network, keep=5)[1], expected)


def test_a_student_ranks_as_in_training() -> None:
    """Carried from its grid to the network's."""
    student, teacher = tiny("vit", seed=1, patch_size=4), as_network(tiny("vit"))
    kept = MaskedKD(student, teacher, keep=5, criterion="student")(IMAGES, TARGETS).kept
    expected = teacher(IMAGES, keep=kept).prediction.log_softmax(dim=1)
    assert torch.equal(answers(teacher, keep=5, criterion="student", student=student)[1], expected)


def test_a_student_sees_its_own_statistics_and_size() -> None:
    student = tiny("vit", seed=1, img_size=48)
    student.pretrained_cfg = {**student.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    seen: list[torch.Tensor] = []
    student.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network = as_network(tiny("vit"))
    answers(network, keep=5, criterion="student", student=student)
    spec = network.input
    raw = IMAGES * torch.tensor(spec.std).view(3, 1, 1) + torch.tensor(spec.mean).view(3, 1, 1)
    expected = (raw.mean(dim=(0, 2, 3)) - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.4, 0.5, 0.6])
    assert seen[0].shape == (6, 3, 48, 48)
    torch.testing.assert_close(seen[0].mean(dim=(0, 2, 3)), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("criterion", ["random", "teacher+random"])
def test_random_masks_go_by_the_seed_and_by_no_batch_size(criterion: str) -> None:
    def of(*batches: torch.Tensor, seed: int = 0) -> torch.Tensor:
        masked = MaskedAccuracy(tiny("vit"), keep="4,8", criterion=criterion, seed=seed)
        return torch.cat([torch.stack(masked.update(each, TARGETS[: len(each)])[1:], dim=1) for each in batches])

    whole = of(IMAGES)
    torch.testing.assert_close(of(*IMAGES.split((1, 3, 2))), whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(of(IMAGES), whole) and not torch.allclose(of(IMAGES, seed=1), whole)


def test_random_masks_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    answers(tiny("vit"), keep=4, criterion="random,teacher+random")
    assert torch.equal(torch.get_rng_state(), before)


# --- samples of several views, classes in another order --------------------


def test_probabilities_of_views_are_averaged() -> None:
    network = as_network(tiny("vit"))
    masked = MaskedAccuracy(network, keep=5, views=3)
    whole, kept = masked.update(IMAGES, TARGETS[:2])
    torch.testing.assert_close(whole, averaged(network(IMAGES).prediction, 3))
    torch.testing.assert_close(kept, averaged(class_scores(network, IMAGES, 5), 3))
    assert masked.samples == 2


def test_clips_are_masked_as_images_are() -> None:
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 4, "frames": 4}
    networks = [build("video_vit_small_patch16_224", args=args) for _ in range(2)]
    clips = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    found = rows(networks[0], clips, keep="4,1.0", criterion="student,random", student=networks[1])
    assert [row["kept"] for row in found] == [4, 4, 8]
    with pytest.raises(UserError, match="must see the same kind of inputs"):
        MaskedAccuracy(tiny("vit"), keep=4, criterion="student", student=networks[1])


def test_classes_go_by_the_teachers_order() -> None:
    teacher = Teacher(as_network(tiny("vit")))
    plain = answers(teacher, keep=5)
    teacher.order = torch.arange(9, -1, -1)
    torch.testing.assert_close([each.flip(1) for each in plain], answers(teacher, keep=5))


# --- refusals --------------------


def test_networks_that_cannot_leave_out_patches() -> None:
    for network in (tiny("swin"), build("resnet10t")):
        with pytest.raises(UserError, match=r"cannot leave out patches .*choose a ViT"):
            MaskedAccuracy(network, keep=0.5, criterion="random")


def test_what_is_impossible_is_refused_before_the_first_batch() -> None:
    with pytest.raises(UserError, match="has no classifier"):
        MaskedAccuracy(tiny("vit", num_classes=0), keep=0.5)
    with pytest.raises(UserError, match="keep must lie between 1 and 16 patches"):
        MaskedAccuracy(tiny("vit"), keep="0.5,17")
    with pytest.raises(UserError, match="The criterion student needs a student"):
        MaskedAccuracy(tiny("vit"), keep=0.5, criterion="student")
    opaque: Network = build("resnet10t")
    with pytest.raises(UserError, match="resnet10t has no attention to take saliency from"):
        MaskedAccuracy(tiny("vit"), keep=0.5, criterion="student", student=opaque)


# --- what it means --------------------


def row(criterion: str | None, kept: int, agreement: float) -> dict[str, Any]:
    return {"criterion": criterion, "keep": kept / 40, "kept": kept, "patches": 40, "agreement": agreement}


WHOLE = row(None, 40, 1.0)


def test_a_teacher_that_is_ready_is_said_to_be() -> None:
    words = meaning([row("teacher", 10, 0.3), row("teacher", 20, 0.8), WHOLE])  # judged at half the patches
    assert words == (
        "On 20 of 40 patches the model names the class that it names on all of them for 80% (teacher) of the samples: "
        "it can teach under such masks."
    )
    assert meaning([WHOLE]) is None


def test_remedies_stand_in_the_order_of_their_cost() -> None:
    words = meaning([row("teacher", 20, 0.6), row("teacher", 30, 0.7), WHOLE])
    assert words is not None and words.endswith(
        "for 60% (teacher) of the samples. A student would often be taught another class there. In order of cost: "
        "1) rank them by --criterion random or student+random; 2) keep more patches (--keep); "
        "3) tune the teacher for masks first (finetune --patch_drop 0.5)."
    )


def test_remedies_name_what_was_measured() -> None:
    """At the fewest patches where half of them were not asked for; a criterion that is no better is no remedy."""
    found = [row("teacher", 10, 0.5), row("teacher", 30, 0.85), row("random", 10, 0.7), row("random", 30, 0.9), WHOLE]
    words = meaning(found)
    assert words is not None and words.startswith("On 10 of 40 patches") and "50% (teacher), 70% (random)" in words
    assert "1) rank them by --criterion random (70%) or student+random; 2) keep more" in words
    assert "(--keep 0.75: 90% with random); 3)" in words
    words = meaning([row("random", 20, 0.5), row("student+random", 20, 0.5), WHOLE])
    assert words is not None and "--criterion" not in words and "2) tune the teacher" in words
