"""Losses of a detector that predicts a set: each true box is matched with one prediction; all others say nothing.

Carion et al., "End-to-End Object Detection with Transformers" (ECCV 2020), as YOLOS trains with it. A prediction is one
tensor (b, q, c + 1 + 4): class scores before the softmax with "no object" last, then centre x and y, width and height
as shares of the image. Targets are (b, boxes, 5): class number and box; rows that fill up an image with fewer boxes are
NaN. Boxes, their overlap and the assignment are those of torchvision and scipy, in float32 also under autocast.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch import distributed as dist
from torchvision.ops import box_convert, generalized_box_iou

CLASS_WEIGHT, BOX_WEIGHT, GIOU_WEIGHT = 1.0, 5.0, 2.0  # of the losses, and of the costs of matching
NO_OBJECT_WEIGHT = 0.1  # of predictions that match no box, in the cross-entropy
LEAST = -1e30  # in place of costs that are not finite, far below all others


class Found(NamedTuple):
    """A prediction in its parts.

    Attributes:
        scores: of the classes, before the softmax; the last is "no object".
        boxes: centre x and y, width and height as shares of the image.
    """

    scores: Float[Tensor, "b q c"]
    boxes: Float[Tensor, "b q 4"]


class Truth(NamedTuple):
    """Targets in their parts.

    Attributes:
        classes: class numbers; 0 where there is no box.
        boxes: where there is none, one in the middle of the image, so that nothing becomes NaN.
        there: whether there is one.
    """

    classes: Int[Tensor, "b boxes"]
    boxes: Float[Tensor, "b boxes 4"]
    there: Bool[Tensor, "b boxes"]


def parts(prediction: Float[Tensor, "b q _"]) -> Found:
    """Class scores and boxes of a prediction, in float32."""
    wide = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
    return Found(wide[..., :-4], wide[..., -4:])


def truth(targets: Float[Tensor, "b boxes 5"]) -> Truth:
    """Classes and boxes of targets, and which of them there are."""
    there = ~targets[..., 0].isnan()
    boxes = torch.where(there[..., None], targets[..., 1:], 0.5)
    return Truth(targets[..., 0].nan_to_num(0.0).long(), boxes, there)


def detections(
    prediction: Float[Tensor, "b q _"],
) -> tuple[Float[Tensor, "b q"], Int[Tensor, "b q"], Float[Tensor, "b q 4"]]:
    """What is found: one object per detection token, without a threshold, "no object" left out of the choice.

    Returns:
        Scores (probabilities of the named class), class numbers, and boxes.

    Example:
        >>> scores, labels, boxes = detections(torch.randn(2, 100, 25))
    """
    found = parts(prediction)
    scores, labels = found.scores.softmax(dim=-1)[..., :-1].max(dim=-1)
    return scores, labels, found.boxes


def giou(first: Float[Tensor, "b n 4"], second: Float[Tensor, "b m 4"]) -> Float[Tensor, "b n m"]:
    """Generalised intersection over union of all pairs of boxes (centre x and y, width, height)."""
    return generalized_box_iou(box_convert(first, "cxcywh", "xyxy"), box_convert(second, "cxcywh", "xyxy"))


def giou_of_pairs(first: Float[Tensor, "*n 4"], second: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Generalised intersection over union of each box with that at the same place."""
    pairs = giou(first.reshape(-1, 1, 4), second.reshape(-1, 1, 4))
    return pairs.reshape(first.shape[:-1])


# --- which prediction belongs to which box ---------------------------------------------------------------------------


@torch.no_grad()
def match(prediction: Float[Tensor, "b q _"], targets: Float[Tensor, "b boxes 5"]) -> Int[Tensor, "b boxes"]:
    """Which prediction each true box is matched with: the one-to-one assignment of least cost, image by image.

    A pair costs -p(class) + 5 * L1 - 2 * GIoU. The costs of a batch go to the CPU at once (`assign`): nothing else in
    the losses of a detector waits for the device.

    Returns:
        Numbers of predictions; -1 for rows without a box, and for boxes beyond the number of predictions.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        found, true = parts(prediction), truth(targets)
        boxes, probabilities = true.boxes.to(found.boxes), found.scores.softmax(dim=-1)
        cost = BOX_WEIGHT * torch.cdist(found.boxes, boxes, p=1) - GIOU_WEIGHT * giou(found.boxes, boxes)
        named = true.classes[:, None].expand(-1, probabilities.shape[1], -1)
        return assign(cost - CLASS_WEIGHT * probabilities.gather(2, named), true.there)


def assign(costs: Float[Tensor, "b q n"], there: Bool[Tensor, "b n"] | None = None) -> Int[Tensor, "b n"]:
    """The row that each column is given in the assignment of least cost, one after the other for each matrix.

    NaN and infinity are taken for the least of all costs: what is not finite is matched, so that its loss is not finite
    either. An error here would leave the other processes of a training waiting for this one.

    Args:
        costs: of rows and columns.
        there: the columns that count; None for all.

    Returns:
        Numbers of rows, on the device of the costs; -1 for columns that do not count, or are left over.
    """
    from scipy.optimize import linear_sum_assignment

    # What counts goes along as one more row, so that everything comes from the device in one piece.
    counted = costs.new_ones(costs.shape[0], 1, costs.shape[2]) if there is None else there[:, None].to(costs.dtype)
    *_, columns = costs.shape
    together = torch.cat((costs, counted), dim=1).cpu().numpy()
    rows = np.full((len(together), columns), -1, dtype=np.int64)
    for number, matrix in enumerate(together):
        own = np.flatnonzero(matrix[-1])
        row, column = linear_sum_assignment(np.nan_to_num(matrix[:-1, own], nan=LEAST, posinf=LEAST, neginf=LEAST))
        rows[number, own[column]] = row
    return torch.from_numpy(rows).to(costs.device, non_blocking=True)


# --- losses ----------------------------------------------------------------------------------------------------------


def set_loss(
    prediction: Float[Tensor, "b q _"],
    targets: Float[Tensor, "b boxes 5"],
    *,
    matched: Int[Tensor, "b boxes"] | None = None,
    together: bool = True,
    class_weight: float = CLASS_WEIGHT,
) -> dict[str, Float[Tensor, ""]]:
    """The loss of a batch in its parts, already weighted (1, 5, 2), so that the whole is their plain sum.

    "class" is the cross-entropy of all predictions, those without a box being "no object" at a weight of 0.1, over the
    sum of weights. "box" is 5 times L1, "giou" 2 times 1 - GIoU, of the matched pairs, over the number of boxes. Of
    predictions that are not finite the loss is NaN or infinite (unless no image has a box, and only boxes are so).

    Args:
        prediction: carries the gradient.
        targets: NaN rows fill up images with fewer boxes.
        matched: of `match`; None matches now.
        together: count the boxes of all processes, which then must all call this; off in validation, where processes
            may have different numbers of batches.
        class_weight: of "class" beside the other two; it changes no matching.

    Example:
        >>> targets = torch.tensor([[[3.0, 0.5, 0.5, 0.2, 0.4]], [[7.0, 0.2, 0.3, 0.1, 0.1]]])  # one box in each image
        >>> loss = sum(set_loss(torch.rand(2, 100, 25), targets).values())
    """
    matched = match(prediction, targets) if matched is None else matched
    with torch.autocast(prediction.device.type, enabled=False):
        found, true = parts(prediction), truth(targets)
        b, q, c = found.scores.shape
        paired = true.there & (matched >= 0)
        # One more place than there are predictions takes up what is matched with none.
        classes = torch.full((b, q + 1), c - 1, device=matched.device)
        classes = classes.scatter(1, torch.where(paired, matched, q), true.classes)[:, :q]
        weight = found.scores.new_ones(c)
        weight[-1] = NO_OBJECT_WEIGHT
        by_class = F.cross_entropy(found.scores.transpose(1, 2), classes, weight)

        own = found.boxes.gather(1, matched.clamp_min(0)[..., None].expand(-1, -1, 4))
        boxes = true.boxes.to(own)
        distance = (own - boxes).abs().sum(dim=-1)
        apart = 1 - giou_of_pairs(own, boxes)
        count = _boxes(true.there, together).to(own.dtype)
        nothing = own.new_zeros(())
        return {
            "class": class_weight * by_class,
            "box": BOX_WEIGHT * torch.where(paired, distance, nothing).sum() / count,
            "giou": GIOU_WEIGHT * torch.where(paired, apart, nothing).sum() / count,
        }


def _boxes(there: Bool[Tensor, "b boxes"], together: bool) -> Float[Tensor, ""]:
    """True boxes of a batch, on average over the processes, at least 1."""
    count = there.sum().float()
    if together and dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp_min(1.0)


@torch.no_grad()
def cardinality_error(prediction: Float[Tensor, "b q _"], targets: Float[Tensor, "b boxes 5"]) -> Float[Tensor, ""]:
    """By how much the number of predicted objects differs from the number of boxes, mean over the images; no loss."""
    scores = parts(prediction).scores
    objects = (scores.argmax(dim=-1) != scores.shape[-1] - 1).sum(dim=1)
    return (objects - truth(targets).there.sum(dim=1)).abs().float().mean()


# --- one detector against another ------------------------------------------------------------------------------------


@torch.no_grad()
def match_slots(student: Float[Tensor, "b q _"], teacher: Float[Tensor, "b q _"]) -> Int[Tensor, "b q"]:
    """Which of the teacher's predictions each of the student's is compared with: the assignment of least cost.

    A pair costs 5 * L1 - 2 * GIoU - the sum over classes, "no object" among them, of both probabilities' product.
    """
    with torch.autocast(student.device.type, enabled=False):
        own, other = parts(student), parts(teacher)
        cost = BOX_WEIGHT * torch.cdist(other.boxes, own.boxes, p=1) - GIOU_WEIGHT * giou(other.boxes, own.boxes)
        return assign(cost - other.scores.softmax(dim=-1) @ own.scores.softmax(dim=-1).transpose(1, 2))


def detections_distance(
    student: Float[Tensor, "b q _"], teacher: Float[Tensor, "b q _"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """How far a student's predictions are from a teacher's, place by place.

    Args:
        student: carries the gradient.
        teacher: taken as constants.

    Returns:
        KL(teacher || student) over the classes and "no object", mean over predictions and batch; L1 and 1 - GIoU of the
        boxes, means weighted by how much the teacher sees an object there, 1 - p("no object").
    """
    with torch.autocast(student.device.type, enabled=False):
        own, other = parts(student), parts(teacher.detach())
        log_own, log_other = own.scores.log_softmax(dim=-1), other.scores.log_softmax(dim=-1)
        by_class = F.kl_div(log_own, log_other, reduction="none", log_target=True).sum(dim=-1).mean()
        weight = 1 - log_other[..., -1].exp()
        share = weight / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
        distance = (own.boxes - other.boxes).abs().sum(dim=-1)
        apart = 1 - giou_of_pairs(own.boxes, other.boxes)
        return by_class, (share * distance).sum(), (share * apart).sum()


def token_distance(student: Float[Tensor, "b n d"], teacher: Float[Tensor, "b n d"]) -> Float[Tensor, ""]:
    """Mean over tokens and batch of the Euclidean distance, not squared, in float32 (ViDT's token matching).

    Args:
        student: projected to the teacher's channels; carries the gradient.
        teacher: taken as constants.
    """
    with torch.autocast(student.device.type, enabled=False):
        return torch.linalg.vector_norm(student.float() - teacher.detach().float(), dim=-1).mean()
