"""The set loss of a detector against the authors' values, and what else it promises."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from golden_values import Golden
from vitdistill.losses import boxes
from vitdistill.losses.boxes import (
    assign,
    cardinality_error,
    detections,
    detections_distance,
    giou_of_pairs,
    match,
    match_slots,
    set_loss,
    token_distance,
)

NAN = math.nan
BOXES = [[0.2, 0.3, 0.1, 0.2], [0.6, 0.6, 0.5, 0.3]]


def predictions(b: int = 2, q: int = 7, classes: int = 3, seed: int = 0) -> Tensor:
    made = torch.randn(b, q, classes + 5, generator=torch.Generator().manual_seed(seed))
    return torch.cat((made[..., :-4], made[..., -4:].sigmoid()), dim=-1)


def padded(*images: list[list[float]], rows: int = 3) -> Tensor:
    """Targets with rows of NaN."""
    filled = [[*rows_of, *([[NAN] * 5] * (rows - len(rows_of)))] for rows_of in images]
    return torch.tensor(filled)


TARGETS = padded([[0, *BOXES[0]], [2, *BOXES[1]]], [[1, *BOXES[1]]])


@pytest.fixture
def case(golden: Callable[[str], Golden]) -> tuple[Golden, Tensor, Tensor]:
    """The file, its prediction, and its targets."""
    case = golden("yolos_a")
    prediction = torch.cat((case.expected["logits_native"], case.expected["boxes_native"]), dim=-1)
    targets = torch.full((2, 4, 5), NAN)
    for number in range(2):
        labels, boxes = case.inputs[f"labels_{number}"], case.inputs[f"boxes_{number}"]
        targets[number, : len(labels)] = torch.cat((labels[:, None], boxes), dim=1)
    return case, prediction, targets


def test_matching_and_losses_are_the_authors(case: tuple[Golden, Tensor, Tensor]) -> None:
    golden, prediction, targets = case
    matched = match(prediction, targets)
    for number in range(2):
        there = matched[number] >= 0
        pairs = torch.stack((matched[number][there], there.nonzero()[:, 0]))
        golden.check(f"match_{number}", pairs[:, pairs[0].argsort()])
    losses = set_loss(prediction, targets)
    golden.check("loss_ce", losses["class"])
    golden.check("loss_bbox", losses["box"] / 5)
    golden.check("loss_giou", losses["giou"] / 2)
    golden.check("loss_weighted_total", torch.stack(list(losses.values())).sum())
    golden.check("cardinality_error", cardinality_error(prediction, targets))


def test_rows_that_fill_up_change_nothing_and_give_no_gradient_of_their_own() -> None:
    gradients = []
    for targets in (TARGETS, torch.cat((torch.full((2, 2, 5), NAN), TARGETS), dim=1), TARGETS[:, :2]):
        prediction = predictions().requires_grad_()
        torch.stack(list(set_loss(prediction, targets).values())).sum().backward()
        assert prediction.grad.isfinite().all()
        gradients.append(prediction.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2])


def test_classes_may_weigh_more_which_changes_no_matching() -> None:
    prediction, targets = torch.rand(2, 5, 8), torch.tensor([[[1.0, 0.5, 0.5, 0.2, 0.4]], [[2.0, 0.2, 0.3, 0.1, 0.1]]])
    once, more = set_loss(prediction, targets), set_loss(prediction, targets, class_weight=3.0)
    torch.testing.assert_close(more["class"], 3 * once["class"])
    assert (more["box"], more["giou"]) == (once["box"], once["giou"])


def test_images_without_boxes_are_all_no_object() -> None:
    prediction = predictions()
    losses = set_loss(prediction, padded([], []))
    assert losses["box"] == 0 and losses["giou"] == 0
    expected = -prediction[..., :4].log_softmax(-1)[..., 3].mean()
    torch.testing.assert_close(losses["class"], expected)
    assert (match(prediction, padded([], [])) == -1).all()


def test_the_number_of_boxes_divides_and_is_at_least_one() -> None:
    """Only L1: of one box, against two of them that are the same distance away."""
    prediction = predictions(b=1)
    one, two = padded([[0, *BOXES[0]]]), padded([[0, *BOXES[0]], [2, *BOXES[1]]])
    matched = match(prediction, two)
    pairs = torch.stack(
        [prediction[0, slot, -4:] - torch.tensor(box) for slot, box in zip(matched[0, :2], BOXES, strict=True)]
    )
    torch.testing.assert_close(set_loss(prediction, two)["box"], 5 * pairs.abs().sum() / 2)
    assert float(set_loss(prediction, one)["box"]) > 0


def test_boxes_are_counted_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three here and five elsewhere: four on average. In validation, where the others may have no batch left, three."""
    alone = set_loss(predictions(), TARGETS)
    monkeypatch.setattr(boxes.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(boxes.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(boxes.dist, "all_reduce", lambda count: count.add_(5))
    together = set_loss(predictions(), TARGETS)
    for name in ("box", "giou"):
        torch.testing.assert_close(together[name], alone[name] * 3 / 4)
    assert together["class"] == alone["class"]
    assert set_loss(predictions(), TARGETS, together=False) == alone


def test_more_boxes_than_predictions_leave_boxes_over() -> None:
    prediction = predictions(b=1, q=2)
    targets = torch.cat((torch.arange(4.0)[None, :, None] % 3, torch.rand(1, 4, 4) * 0.5 + 0.2), dim=2)
    matched = match(prediction, targets)
    assert sorted(matched[0].tolist()) == [-1, -1, 0, 1]
    assert all(loss.isfinite() for loss in set_loss(prediction, targets).values())


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("place", [-1, -4, 1], ids=["height", "x", "score"])
def test_what_is_not_finite_is_matched_and_so_is_the_loss_not_finite(place: int, value: float) -> None:
    """An error in one of several processes would leave the others waiting, even for their numbers of boxes."""
    prediction, whole = predictions(), predictions()
    prediction[1, 3, place] = value
    matched = match(prediction, TARGETS)
    assert torch.equal(matched[0], match(whole, TARGETS)[0]), "other images are matched as ever"
    if (place, value) != (1, -math.inf):  # a class that is ruled out
        assert matched[1].tolist() == [3, -1, -1]
        assert not torch.stack(list(set_loss(prediction, TARGETS).values())).isfinite().all()
    assert sorted(match_slots(prediction, whole)[1].tolist()) == list(range(7))
    assert sorted(match_slots(whole, prediction)[1].tolist()) == list(range(7))


def test_under_autocast_and_in_half_precision_all_is_float32() -> None:
    prediction = predictions()
    expected = set_loss(prediction, TARGETS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(set_loss(prediction, TARGETS), expected)
    half = set_loss(prediction.bfloat16(), TARGETS)
    assert all(loss.dtype == torch.float32 for loss in half.values())


def test_costs_come_from_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[int, ...]] = []
    cpu = Tensor.cpu

    def counting(tensor: Tensor) -> Tensor:
        moved.append(tuple(tensor.shape))
        return cpu(tensor)

    monkeypatch.setattr(Tensor, "cpu", counting)
    set_loss(predictions(), TARGETS)
    assert moved == [(2, 8, 3)]


def test_the_assignment_of_least_cost() -> None:
    costs = torch.tensor([[[4.0, 1.0], [2.0, 0.0], [9.0, 9.0]]])
    assert assign(costs).tolist() == [[1, 0]]
    assert assign(costs, torch.tensor([[False, True]])).tolist() == [[-1, 1]]


def test_detections_name_an_object_for_every_token() -> None:
    prediction = predictions()
    scores, labels, boxes = detections(prediction)
    probabilities = prediction[..., :4].softmax(-1)
    assert scores.shape == labels.shape == (2, 7) and int(labels.max()) <= 2
    assert torch.equal(scores, probabilities[..., :3].amax(-1)) and torch.equal(boxes, prediction[..., -4:])


# --- one detector against another --------------------


def test_predictions_in_another_order_are_found_again() -> None:
    student = predictions(seed=1)
    order = torch.stack([torch.randperm(7, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    teacher = student.gather(1, order[..., None].expand_as(student))
    matched = match_slots(student, teacher)
    assert torch.equal(teacher.gather(1, matched[..., None].expand_as(student)), student)


def test_least_cost_is_as_written() -> None:
    """5 * L1 - 2 * GIoU - sum of p_t p_s, against all permutations of three."""
    from itertools import permutations

    student, teacher = predictions(b=1, q=3, seed=2), predictions(b=1, q=3, seed=3)
    boxes = [box_convert(one[0, :, -4:], "cxcywh", "xyxy") for one in (student, teacher)]
    cost = 5 * torch.cdist(student[0, :, -4:], teacher[0, :, -4:], p=1) - 2 * generalized_box_iou(*boxes)
    cost = cost - student[0, :, :-4].softmax(-1) @ teacher[0, :, :-4].softmax(-1).T
    best = min(permutations(range(3)), key=lambda order: float(cost[range(3), order].sum()))
    assert match_slots(student, teacher).tolist() == [list(best)]


def test_distances_of_detections_are_as_written() -> None:
    student, teacher = predictions(seed=4), predictions(seed=5)
    p_t, log_s = teacher[..., :4].softmax(-1), student[..., :4].log_softmax(-1)
    weight = 1 - p_t[..., 3]
    by_class, box, giou = detections_distance(student, teacher)
    torch.testing.assert_close(by_class, (p_t * (p_t.log() - log_s)).sum(-1).mean())
    l1 = (student[..., -4:] - teacher[..., -4:]).abs().sum(-1)
    torch.testing.assert_close(box, (weight * l1).sum() / weight.sum())
    apart = 1 - giou_of_pairs(student[..., -4:], teacher[..., -4:])
    torch.testing.assert_close(giou, (weight * apart).sum() / weight.sum())


def test_a_teacher_that_sees_nothing_teaches_no_boxes() -> None:
    teacher = predictions()
    teacher[..., 3] = 200.0
    student = predictions(seed=1).requires_grad_()
    losses = detections_distance(student, teacher)
    torch.stack(losses).sum().backward()
    assert losses[1] == 0 and losses[2] == 0 and student.grad.isfinite().all()


def test_token_distance_is_not_squared() -> None:
    assert token_distance(torch.zeros(2, 3, 2), torch.tensor([3.0, 4.0]).expand(2, 3, 2)) == 5
