"""How maps of classes are scored: one confusion matrix over all pixels of a set, never a mean over images."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import interpolate
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from vitdistill.data.segments.masks import IGNORED, PADDING


def at_their_size(
    prediction: Float[Tensor, "b c height width"], targets: Shaped[Tensor, "b height2 width2"]
) -> Iterator[tuple[Float[Tensor, "n c rows columns"], Int[Tensor, "n rows columns"]]]:
    """Scores at the size of the masks, with these; image by image where sizes differ.

    Args:
        prediction: scores, NaN where an image was filled up to the size of the batch.
        targets: class numbers, `PADDING` where a mask was filled up.
    """
    same = prediction.shape[-2:] == targets.shape[-2:]
    if same and not (prediction[:, 0].isnan().any() or (targets == PADDING).any()):
        yield prediction, targets.long()
        return
    for scores, mask in zip(prediction, targets, strict=True):
        there = ~scores[0].isnan()
        # Of a network that has diverged all is NaN, which its loss shall say.
        inside = scores[:, *_own(there)] if there.any() else scores
        true = mask[_own(mask != PADDING)].long()
        yield resized_map(inside[None], (true.shape[0], true.shape[1])), true[None]


def resized_map(scores: Float[Tensor, "b c height width"], size: tuple[int, int]) -> Float[Tensor, "b c rows columns"]:
    """Scores at another size: these are interpolated, and never class numbers."""
    if tuple(scores.shape[-2:]) == size:
        return scores
    return interpolate(scores.float(), size=size, mode="bilinear", align_corners=False)


def own_size(mask: Shaped[Tensor, "height width"]) -> tuple[int, int]:
    """Height and width of a mask, without what it was filled up with."""
    rows, columns = _own(mask != PADDING)
    return rows.stop, columns.stop


def _own(inside: Shaped[Tensor, "height width"]) -> tuple[slice, slice]:
    """The part that something fills, from the first row and column on."""
    height, width = torch.stack((inside.any(dim=1).sum(), inside.any(dim=0).sum())).tolist()
    return slice(0, height), slice(0, width)


class PixelScores(MulticlassConfusionMatrix):
    """miou, macc and aacc, all of one matrix: rows are true classes, columns predicted ones.

    Attributes:
        matrix: as last computed, over all processes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, ignore_index=IGNORED, validate_args=False)
        self.matrix: Tensor | None = None

    def update(self, preds: Float[Tensor, "b c height width"], target: Shaped[Tensor, "b height2 width2"]) -> None:
        for scores, true in at_their_size(preds, target):
            super().update(scores.argmax(dim=1), true)

    def compute(self) -> dict[str, Float[Tensor, ""]]:  # type: ignore[override]
        self.matrix = super().compute().clone()
        return pixel_scores(self.matrix)


class MatrixOf(Metric):
    """The matrix that `PixelScores` has counted, so that no pixel is looked at twice."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def __init__(self, scores: PixelScores) -> None:
        """
        Args:
            scores: updated with the same batches, beside this one.
        """
        super().__init__()
        self._scores = (scores,)  # in a tuple, so that it is no submodule

    def update(self, preds: object, target: object) -> None:
        """Nothing: `PixelScores` counts."""

    def compute(self) -> Int[Tensor, "c c"]:
        (scores,) = self._scores
        # As last computed where it was reset in between, as training does before it asks for the classes.
        if scores.matrix is None:
            scores.compute()
        assert scores.matrix is not None
        return scores.matrix


def pixel_scores(matrix: Int[Tensor, "c c"]) -> dict[str, Float[Tensor, ""]]:
    """Mean intersection over union, mean recall, and share of the pixels that are right, of one.

    Means are over the classes that occur: in masks or predictions for IoU, in masks for recall.

    Example:
        >>> pixel_scores(torch.tensor([[3, 1], [0, 4]]))
        {'miou': tensor(0.7750), 'macc': tensor(0.8750), 'aacc': tensor(0.8750)}
    """
    iou, recall = per_class_scores(matrix)
    whole = matrix.sum().double()
    return {
        "miou": iou.nanmean().float(),
        "macc": recall.nanmean().float(),
        "aacc": (matrix.diagonal().sum() / whole).float(),
    }


def per_class_scores(matrix: Int[Tensor, "c c"]) -> tuple[Float[Tensor, "c"], Float[Tensor, "c"]]:
    """IoU and recall of each class, as shares of one; NaN for those that do not occur."""
    hits, true, predicted = (each.double() for each in (matrix.diagonal(), matrix.sum(dim=1), matrix.sum(dim=0)))
    return hits / (true + predicted - hits), hits / true


def class_rows(matrix: Int[Tensor, "c c"], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Of each class: its name, pixels, IoU and recall in percent; None where it does not occur."""
    iou, recall = (_percent(values) for values in per_class_scores(matrix.cpu()))
    pixels = matrix.sum(dim=1).tolist()
    return [
        {"class": name, "pixels": pixels[number], "IoU %": iou[number], "recall %": recall[number]}
        for number, name in enumerate(classes)
    ]


def _percent(values: Float[Tensor, "c"]) -> list[float | None]:
    return [None if value != value else round(100 * value, 4) for value in values.tolist()]
