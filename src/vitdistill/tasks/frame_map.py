"""Frame mAP: average precision of scored boxes, PASCAL VOC's way, as AVA is evaluated but for one thing: the official
script keeps the 50 highest scores of a key frame, and this keeps all, as SlowFast's evaluation does.

A box is found when a prediction of the same action overlaps it by an IoU of at least 0.5. Each prediction is compared
with the annotated box of its action that it overlaps most; of several predictions for one box the one with the highest
score (the first of equals) is right and the others are wrong, even where they overlap a second box. AP is the area
under the precision-recall curve, with precision replaced by the highest at any recall as high or higher. The mean is
over the actions that are annotated at all.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from vitdistill.data.actions.annotations import ActionData
from vitdistill.data.actions.ava import Rows

IOU = 0.5


def average_precisions(truth: Rows, found: Rows, actions: Sequence[int], iou: float = IOU) -> dict[int, float | None]:
    """AP of every action, 0 to 1; None where nothing is annotated.

    Args:
        truth: annotated boxes.
        found: predictions; the ones of key frames without annotations count as wrong.
        actions: ids; rows of others are ignored.
        iou: overlap from which on a box is found.
    """
    # As the official evaluation does, which drops empty boxes.
    solid: np.ndarray = np.all(found.box[:, 2:] > found.box[:, :2], axis=1)
    found = found.pick(solid)
    result: dict[int, float | None] = {}
    for action in actions:
        wanted = truth.pick(truth.action == action)
        if not len(wanted):
            result[action] = None
            continue
        guesses = found.pick(found.action == action)
        guesses = guesses.pick(np.argsort(-guesses.score, kind="stable"))
        result[action] = average_precision(hits(wanted, guesses, iou), len(wanted))
    return result


def mean_average_precision(precisions: dict[int, float | None]) -> float:
    """The mean over the actions that are annotated; NaN when none is."""
    known = [precision for precision in precisions.values() if precision is not None]
    return float(np.mean(known)) if known else float("nan")


def average_precision(hit: Bool[np.ndarray, "n"], count: int) -> float:
    """Area under the precision envelope.

    Args:
        hit: whether each prediction is right, highest score first.
        count: of what there is to find.
    """
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hit].sum() / count)  # recall rises by 1 / count at every hit


def hits(truth: Rows, found: Rows, iou: float) -> Bool[np.ndarray, "n"]:
    """Which predictions of one action are right.

    Args:
        truth: annotated boxes of the action.
        found: predictions, highest score first.
        iou: overlap from which on a box is found.
    """
    hit = np.zeros(len(found), dtype=bool)
    order = np.argsort(truth.frame, kind="stable")
    frame, box = truth.frame[order], truth.box[order]
    first, last = (np.searchsorted(frame, found.frame, side=side) for side in ("left", "right"))
    near = np.flatnonzero(last > first)  # predictions in key frames that have a box to find
    if not len(near):
        return hit
    counts = (last - first)[near]
    starts = np.cumsum(counts) - counts
    # Every prediction with every box of its key frame.
    guess = np.repeat(near, counts)
    target = np.arange(counts.sum()) - np.repeat(starts - first[near], counts)
    overlap = overlaps(found.box[guess], box[target])
    best = np.maximum.reduceat(overlap, starts)
    is_best = np.flatnonzero(overlap == np.repeat(best, counts))
    _, chosen = np.unique(guess[is_best], return_index=True)  # of boxes overlapped alike, the first
    target_of = target[is_best[chosen]]
    good = best >= iou
    _, winner = np.unique(target_of[good], return_index=True)  # the first prediction for each box
    hit[near[good][winner]] = True
    return hit


def overlaps(a: Float[np.ndarray, "n 4"], b: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n"]:
    """Intersection over union of boxes x1, y1, x2, y2, pair by pair; 0 for two empty boxes.

    By hand, as `torchvision.ops.box_iou` compares all boxes of one list with all of the other: over a whole set that is
    a matrix of predictions by annotations, or else a call for each key frame. And it gives NaN for two empty boxes.
    """
    sides = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(min=0)
    shared = sides.prod(axis=1)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


class FrameMeanAP(Metric):
    """Frame mAP, as a share of one, of what a network says of a set's boxes; over several processes as over one.

    Scores are kept per box of the set, boxes x classes in every process; each fills in its own, and they are added up.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    offsets: Tensor
    scores: Tensor
    seen: Tensor

    def __init__(self, data: ActionData) -> None:
        """
        Args:
            data: whose key frames are to be scored.
        """
        super().__init__()
        self.data = data
        count = len(data.val.boxes)
        self.register_buffer("offsets", torch.from_numpy(data.val.offsets), persistent=False)
        # One row more, where padding goes.
        self.add_state("scores", torch.zeros(count + 1, len(data.labels)), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros(count + 1), dist_reduce_fx="sum")

    def update(
        self, preds: Float[Tensor, "b boxes c"], target: Float[Tensor, "b boxes values"], index: Int[Tensor, "b"]
    ) -> None:
        """Take note of a batch, in which no key frame comes a second time.

        Args:
            preds: scores before the sigmoid.
            target: the boxes; NaN where they pad.
            index: which key frames of the set these are.
        """
        place = self.offsets[index][:, None] + torch.arange(preds.shape[1], device=preds.device)
        place = torch.where(torch.isfinite(target[..., 0]), place, len(self.seen) - 1)
        self.scores[place] = preds.float().sigmoid()
        self.seen[place] = 1.0

    def compute(self) -> Tensor:
        return torch.tensor(mean_average_precision(self.average_precisions()))

    def average_precisions(self) -> dict[int, float | None]:
        """AP of every action that counts, by id."""
        return average_precisions(self.data.truth, self.predictions(), self.data.evaluated)

    def predictions(self) -> Rows:
        """Every box that was seen, once per action that counts."""
        val, ids = self.data.val, list(self.data.labels)
        seen = np.flatnonzero(self.seen[:-1].cpu().numpy() > 0)
        columns = np.array([ids.index(action) for action in self.data.evaluated], dtype=np.int64)
        scores = self.scores[:-1].cpu().numpy().astype(np.float64)[np.ix_(seen, columns)]
        times = len(columns)
        return Rows(
            np.repeat(np.repeat(val.frame, np.diff(val.offsets))[seen], times),
            np.repeat(val.boxes[seen], times, axis=0),
            np.tile(np.array(self.data.evaluated, dtype=np.int64), len(seen)),
            scores.reshape(-1),
        )
