"""Frame mAP against cases worked out by hand, and against the definition written out box by box."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitdistill.data.actions.annotations import ActionData
from vitdistill.data.actions.ava import Rows
from vitdistill.data.actions.key_frames import KeyFrames, Movies
from vitdistill.tasks.frame_map import (
    FrameMeanAP,
    average_precision,
    average_precisions,
    mean_average_precision,
    overlaps,
)

BOX = (0.0, 0.0, 0.4, 0.4)
SHIFTED = (0.1, 0.0, 0.5, 0.4)  # IoU 0.6 with BOX
FAR = (0.6, 0.6, 1.0, 1.0)


def rows(*found: tuple[int, tuple[float, ...], int, float]) -> Rows:
    frame, box, action, score = zip(*found, strict=True) if found else ((), (), (), ())
    return Rows(
        np.array(frame, dtype=np.int64),
        np.array(box, dtype=np.float64).reshape(-1, 4),
        np.array(action, dtype=np.int64),
        np.array(score, dtype=np.float64),
    )


def test_overlap() -> None:
    a = np.array([BOX, BOX, BOX, (0.0, 0.0, 0.0, 0.0)])
    b = np.array([BOX, SHIFTED, FAR, (0.0, 0.0, 0.0, 0.0)])
    assert overlaps(a, b) == pytest.approx([1.0, 0.6, 0.0, 0.0])


@pytest.mark.parametrize(
    ("hit", "count", "expected"),
    [
        ([1, 1], 2, 1.0),
        ([1, 0, 1], 2, (1 + 2 / 3) / 2),
        ([0, 1, 1], 2, 2 / 3),  # the envelope lifts the first hit's precision from 1/2 to 2/3
        ([1], 4, 0.25),
        ([0, 0], 3, 0.0),
        ([], 3, 0.0),
    ],
)
def test_area_under_the_envelope(hit: list[int], count: int, expected: float) -> None:
    assert average_precision(np.array(hit, dtype=bool), count) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("truth", "found", "expected"),
    [
        # One box found twice: the surer guess is right, the other wrong.
        ([(0, BOX, 1, 1)], [(0, BOX, 1, 0.5), (0, SHIFTED, 1, 0.9)], 1.0),
        ([(0, BOX, 1, 1), (1, BOX, 1, 1)], [(0, SHIFTED, 1, 0.9), (0, BOX, 1, 0.8), (1, BOX, 1, 0.7)], (1 + 2 / 3) / 2),
        # The best overlap is taken already: wrong, though a second box is overlapped by 0.6 as well (PASCAL).
        ([(0, BOX, 1, 1), (0, SHIFTED, 1, 1)], [(0, BOX, 1, 0.9), (0, BOX, 1, 0.8)], 0.5),
        # In another key frame, of another action, or too far off.
        ([(0, BOX, 1, 1)], [(1, BOX, 1, 0.9)], 0.0),
        ([(0, BOX, 1, 1)], [(0, BOX, 2, 0.9)], 0.0),
        ([(0, BOX, 1, 1)], [(0, FAR, 1, 0.9), (0, BOX, 1, 0.8)], 0.5),
        # An empty box does not count against the others.
        ([(0, BOX, 1, 1)], [(0, (0.2, 0.2, 0.2, 0.4), 1, 0.9), (0, BOX, 1, 0.8)], 1.0),
        ([(0, BOX, 1, 1)], [], 0.0),
    ],
)
def test_cases_by_hand(truth: list, found: list, expected: float) -> None:
    assert average_precisions(rows(*truth), rows(*found), [1])[1] == pytest.approx(expected)


def test_an_overlap_of_exactly_one_half_counts() -> None:
    truth, half = rows((0, (0.0, 0.0, 0.5, 1.0), 1, 1)), (0.0, 0.0, 0.25, 1.0)
    assert average_precisions(truth, rows((0, half, 1, 0.9)), [1]) == {1: 1.0}
    assert average_precisions(truth, rows((0, half, 1, 0.9)), [1], iou=0.51) == {1: 0.0}


def test_of_equal_scores_the_first_wins() -> None:
    truth = rows((0, BOX, 1, 1), (1, BOX, 1, 1))
    right_first = rows((0, BOX, 1, 0.5), (0, FAR, 1, 0.5), (1, BOX, 1, 0.5))
    assert average_precisions(truth, right_first, [1])[1] == pytest.approx((1 + 2 / 3) / 2)


def test_actions_without_annotations_are_left_out_of_the_mean() -> None:
    truth = rows((0, BOX, 1, 1), (0, BOX, 2, 1), (0, FAR, 9, 1))
    found = rows((0, BOX, 1, 0.9), (0, BOX, 3, 0.9), (0, BOX, 9, 0.9))
    precisions = average_precisions(truth, found, [1, 2, 3])
    assert precisions == {1: 1.0, 2: 0.0, 3: None} and mean_average_precision(precisions) == 0.5
    assert np.isnan(mean_average_precision({3: None}))


def by_definition(truth: Rows, found: Rows, action: int) -> float | None:
    """AP with loops only: greedy matching in the order of scores, area by the steps of recall."""
    boxes = [i for i in range(len(truth)) if truth.action[i] == action]
    if not boxes:
        return None
    guesses = sorted((i for i in range(len(found)) if found.action[i] == action), key=lambda i: -found.score[i])
    taken: set[int] = set()
    points, right = [], 0
    for rank, guess in enumerate(guesses, 1):
        best, best_overlap = None, 0.0
        for box in boxes:
            if truth.frame[box] == found.frame[guess]:
                overlap = iou(truth.box[box], found.box[guess])
                if best is None or overlap > best_overlap:
                    best, best_overlap = box, overlap
        if best is not None and best_overlap >= 0.5 and best not in taken:
            taken.add(best)
            right += 1
        points.append((right / len(boxes), right / rank))
    area, last = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points}):
        area += (recall - last) * max(precision for r, precision in points if r >= recall)
        last = recall
    return area


def iou(a: np.ndarray, b: np.ndarray) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def random_boxes(rng: np.random.Generator, count: int) -> Rows:
    corner = rng.random((count, 2)) * 0.4
    box = np.concatenate([corner, corner + 0.2 + 0.3 * rng.random((count, 2))], axis=1)
    return Rows(rng.integers(5, size=count), box, rng.integers(1, 5, size=count), rng.permutation(count) / count)


@pytest.mark.parametrize("seed", range(12))
def test_random_boxes_against_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = random_boxes(rng, 30)
    found = random_boxes(rng, 120)
    near = rng.random(120) < 0.7  # most guesses lie near a box
    source = rng.integers(30, size=120)
    found.box[near] = (truth.box[source] + rng.normal(0, 0.02, (120, 4)))[near]
    found.frame[near], found.action[near] = truth.frame[source][near], truth.action[source][near]
    assert (found.box[:, 2:] > found.box[:, :2]).all()
    expected = {action: by_definition(truth, found, action) for action in range(1, 6)}
    got = average_precisions(truth, found, list(expected))
    assert got.keys() == expected.keys() and got[5] is None is expected[5]
    assert [got[a] for a in range(1, 5)] == pytest.approx([expected[a] for a in range(1, 5)], abs=1e-12)
    assert 0.1 < mean_average_precision(got) < 0.9


# --- of a network --------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> ActionData:
    """Two annotated key frames with two and one boxes; action 7 does not count."""
    (tmp_path / "v").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / "v" / f"{number}.png")
    truth = rows((0, BOX, 2, 1), (0, FAR, 7, 1), (1, BOX, 2, 1), (1, BOX, 3, 1))
    names = [("v", 0), ("v", 1)]
    val = KeyFrames(truth, names, Movies(tmp_path, frame_rate=1), [2, 3, 7], annotated=True)
    return ActionData(None, val, truth, {2: "two", 3: "three", 7: "seven"}, [2, 3], names)


def logit(*shares: float) -> list[float]:
    return torch.tensor(shares).logit().tolist()


def test_metric_knows_boxes_by_their_key_frame_and_ignores_padding(data: ActionData) -> None:
    metric = FrameMeanAP(data)
    target = torch.full((2, 2, 7), torch.nan)
    target[0, :1, :4] = torch.tensor(BOX)
    target[1, :, :4] = torch.tensor([BOX, FAR])
    # Key frame 1 (one box and padding) comes before key frame 0.
    preds = torch.tensor(
        [[logit(0.9, 0.8, 0.5), logit(0.99, 0.99, 0.99)], [logit(0.7, 0.1, 0.5), logit(0.8, 0.2, 0.9)]]
    )
    metric.update(preds, target, torch.tensor([1, 0]))
    found = metric.predictions()
    assert len(found) == 3 * 2 and set(found.action.tolist()) == {2, 3}
    assert metric.average_precisions() == {2: pytest.approx((1 + 2 / 3) / 2), 3: 1.0}
    assert float(metric.compute()) == pytest.approx((5 / 6 + 1) / 2)
    metric.reset()
    assert len(metric.predictions()) == 0 and metric.average_precisions() == {2: 0.0, 3: 0.0}


def test_batches_and_processes_do_not_matter(data: ActionData) -> None:
    preds, target = torch.randn(2, 2, 3), torch.full((2, 2, 7), torch.nan)
    target[0, :, :4] = torch.tensor([BOX, FAR])
    target[1, :1, :4] = torch.tensor(BOX)
    whole, parts = FrameMeanAP(data), [FrameMeanAP(data), FrameMeanAP(data)]
    whole.update(preds, target, torch.tensor([0, 1]))
    for index, part in enumerate(parts):  # what two processes see
        part.update(preds[index : index + 1], target[index : index + 1], torch.tensor([index]))
    together = FrameMeanAP(data)
    together.scores[:-1] = parts[0].scores[:-1] + parts[1].scores[:-1]  # dist_reduce_fx is a sum
    together.seen[:-1] = parts[0].seen[:-1] + parts[1].seen[:-1]
    for name in ("frame", "box", "action", "score"):
        assert np.array_equal(getattr(together.predictions(), name), getattr(whole.predictions(), name))


def test_what_was_unreadable_is_missed_and_not_guessed(data: ActionData) -> None:
    metric, target = FrameMeanAP(data), torch.full((1, 2, 7), torch.nan)
    target[0, :1, :4] = torch.tensor(BOX)
    metric.update(torch.ones(1, 2, 3), target, torch.tensor([1]))
    assert len(metric.predictions()) == 2
    assert metric.average_precisions() == {2: 0.5, 3: 1.0}
