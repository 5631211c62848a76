"""COCO's average precision of boxes, in all and per class, at the images' original size.

faster-coco-eval computes it. It is called by itself and not through torchmetrics' `MeanAveragePrecision`, which calls
it as well (a test compares both): one evaluation then gives the numbers of every class as well, for which torchmetrics
takes twice to three times as long.
"""

import json
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from torch import Tensor
from torchmetrics import Metric

from vitdistill.data.boxes.samples import BoxImages
from vitdistill.losses.boxes import detections

MOST = 100  # detections of an image that count, those with the highest scores
IOUS = {"ap50": 0, "ap75": 5}  # numbers of COCO's ten overlaps, .50 to .95
VALUES = 6  # of a detection: score, class number, x1, y1, x2, y2


class Precision:
    """Average precisions as shares of one; NaN where nothing is annotated.

    Attributes:
        whole: ap, ap50 and ap75 over all classes that are annotated.
        classes: the same three of each class.
    """

    def __init__(self, precision: Float64[np.ndarray, "ious recalls c"]) -> None:
        """
        Args:
            precision: as COCO's evaluation has it: at each recall, -1 where nothing is annotated.
        """
        known = np.where(precision > -1, precision, np.nan)
        each = (known, known[IOUS["ap50"]], known[IOUS["ap75"]])
        names = ("ap", *IOUS)
        # A class has numbers at every overlap and recall, or none at all.
        per_class = [values.reshape(-1, values.shape[-1]).mean(axis=0) for values in each]
        self.classes: Float32[Tensor, "c 3"] = torch.from_numpy(np.stack(per_class, axis=1)).float()
        self.whole = dict(
            zip(names, (float(np.nanmean(v)) if (v == v).any() else np.nan for v in per_class), strict=True)
        )


def average_precision(
    data: BoxImages,
    image: Int64[np.ndarray, "n"],
    found: Float64[np.ndarray, "n 6"],
    classes: int,
    seen: Bool[np.ndarray, "images"] | None = None,
) -> Precision:
    """Score detections against the annotations of a set, of which crowds and difficult objects are ignored.

    Args:
        data: the set; images without a detection count, too.
        image: number of the image of each detection.
        found: score, class number and x1, y1, x2, y2 in pixels.
        classes: how many there are.
        seen: which images count: those that could be read. None counts all.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    truth, boxes = [], data.boxes
    seen = np.ones(len(boxes), dtype=bool) if seen is None else seen
    of_image = np.repeat(np.arange(len(boxes)), np.diff(boxes.offsets)).tolist()
    sides = boxes.corners[:, 2:] - boxes.corners[:, :2]
    lists = (boxes.corners[:, :2].tolist(), sides.tolist(), boxes.classes.tolist(), boxes.ignored.tolist())
    for number, (place, corner, size, label, ignored) in enumerate(zip(of_image, *lists, strict=True), 1):
        if not seen[place]:
            continue
        truth.append(
            {
                "id": number,
                "image_id": place,
                "category_id": label,
                "bbox": [*corner, *size],
                "area": float(boxes.areas[number - 1]),
                "iscrowd": int(ignored),
            }
        )
    categories = [{"id": number, "name": str(number)} for number in range(classes)]
    images = [{"id": place} for place in np.flatnonzero(seen).tolist()]
    annotated = COCO({"images": images, "annotations": truth, "categories": categories})
    if not len(found):  # the library does not take an empty list
        counted = boxes.classes[~boxes.ignored & seen[of_image]]
        wanted = np.bincount(counted, minlength=classes) > 0
        return Precision(np.tile(np.where(wanted, 0.0, -1.0), (10, 1, 1)))
    rows = np.column_stack((image, found[:, 2:4], found[:, 4:6] - found[:, 2:4], found[:, 0], found[:, 1]))
    evaluation: Any = COCOeval_faster(annotated, annotated.loadRes(rows), "bbox", print_function=_silent)
    evaluation.evaluate()
    evaluation.accumulate()
    return Precision(evaluation.eval["precision"][:, :, :, 0, -1])  # of all areas, the most detections


def _silent(*_words: object) -> None:
    """In place of print."""


class BoxAP(Metric):
    """COCO's AP of what a network finds in a set's images; over several processes as over one.

    Detections are kept per image of the set, in every process; each fills in its own, and they are added up. Images of
    which no update tells, such as those that cannot be read, do not count.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    found: Tensor
    seen: Tensor

    def __init__(self, data: BoxImages, classes: int) -> None:
        """
        Args:
            data: whose images are to be scored.
            classes: how many there are.
        """
        super().__init__()
        self.data, self.classes = data, classes
        self.precision: Precision | None = None  # as last computed
        self.add_state("found", torch.zeros(len(data), MOST, VALUES), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros(len(data)), dist_reduce_fx="sum")
        sizes = torch.from_numpy(data.boxes.sizes)
        self.register_buffer("sizes", sizes, persistent=False)

    def update(self, preds: Float[Tensor, "b q _"], target: object, index: Int[Tensor, "b"]) -> None:
        """Take note of a batch.

        Args:
            preds: class scores and boxes, as a detector predicts them.
            target: not looked at: the annotations are those of the set.
            index: which images of the set these are.
        """
        scores, labels, boxes = detections(preds)
        if scores.shape[1] > MOST:
            scores, places = scores.topk(MOST, dim=1)
            labels, boxes = labels.gather(1, places), boxes.gather(1, places[..., None].expand(-1, -1, 4))
        pixels = self.sizes[index].flip(1).repeat(1, 2)[:, None]  # type: ignore[index]
        half = boxes[..., 2:] / 2
        corners = torch.cat((boxes[..., :2] - half, boxes[..., :2] + half), dim=-1) * pixels
        rows = torch.cat((scores[..., None], labels[..., None], corners), dim=-1)
        # The library takes no NaN. A box of no size, without a score, hits nothing.
        rows = torch.where(rows.isfinite().all(dim=-1, keepdim=True), rows, 0.0)
        # Class numbers count from 1 here, so that 0 says that there is no detection.
        rows = rows + rows.new_tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
        self.found[index, : rows.shape[1]] = rows.to(self.found.dtype)
        self.seen[index] = 1.0

    def compute(self) -> Tensor:
        image, found = self.detections()
        self.precision = average_precision(self.data, image, found, self.classes, self.seen.cpu().numpy() > 0)
        return torch.tensor(self.precision.whole["ap"])

    def detections(self) -> tuple[Int64[np.ndarray, "n"], Float64[np.ndarray, "n 6"]]:
        """Number of the image, and score, class number and corners in pixels, of every detection."""
        found = (self.found / self.seen.clamp_min(1)[:, None, None]).double().cpu().numpy()
        image, place = np.nonzero(found[..., 1] > 0)
        rows = found[image, place]
        rows[:, 1] = rows[:, 1].round() - 1
        return image.astype(np.int64), rows

    def results(self) -> str:
        """Every detection in COCO's format of results: image_id, category_id, bbox and score, with the data's ids."""
        image, found = self.detections()
        ids, categories = self.data.boxes.ids, self.data.category_ids
        rows = [
            {
                "image_id": ids[place],
                "category_id": categories[int(label)],
                "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(score, 5),
            }
            for place, (score, label, x1, y1, x2, y2) in zip(image.tolist(), found.tolist(), strict=True)
        ]
        return json.dumps(rows)


class PartOfAP(Metric):
    """A number that `BoxAP` has computed along, so that it costs nothing: ap50, ap75, or those of each class."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, whole: BoxAP, name: str | None) -> None:
        """
        Args:
            whole: updated with the same batches, beside this one.
            name: ap50 or ap75; None is ap, ap50 and ap75 of each class.
        """
        super().__init__()
        self.name = name
        self._whole = (whole,)  # in a tuple, so that it is no submodule

    def update(self, preds: object, target: object, index: object) -> None:
        """Nothing: `BoxAP` takes note."""

    def compute(self) -> Tensor:
        (whole,) = self._whole
        # As last computed where it was reset in between, as training does before it asks for the classes.
        if self.name is not None or whole.precision is None:
            whole.compute()
        assert whole.precision is not None
        return whole.precision.classes if self.name is None else torch.tensor(whole.precision.whole[self.name])
