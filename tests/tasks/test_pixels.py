"""Scores of maps: one matrix over the whole set, at the size of the masks."""

import torch
from torch.nn.functional import interpolate, one_hot
from torchmetrics.classification import MulticlassJaccardIndex

from vitdistill.data.segments.masks import IGNORED, PADDING
from vitdistill.tasks.pixels import PixelScores, at_their_size, class_rows, pixel_scores


def test_miou_is_that_of_torchmetrics_over_all_batches() -> None:
    """Class 4 is in no mask but predicted, class 5 is nowhere; some pixels are ignored."""
    torch.manual_seed(0)
    ours, theirs = PixelScores(6), MulticlassJaccardIndex(6, average="macro", ignore_index=IGNORED)
    right = total = 0
    for _ in range(3):
        scores, true = torch.randn(2, 6, 9, 7), torch.randint(0, 4, (2, 9, 7), dtype=torch.uint8)
        scores[:, 5] = -torch.inf
        true[torch.rand(true.shape) < 0.2] = IGNORED
        ours.update(preds=scores, target=true)
        theirs.update(scores.argmax(dim=1), true.long())
        counted = true != IGNORED
        right, total = right + (scores.argmax(dim=1) == true)[counted].sum(), total + counted.sum()
    found = ours.compute()
    torch.testing.assert_close(found["miou"], theirs.compute())
    torch.testing.assert_close(found["aacc"], right / total)
    rows = class_rows(ours.confmat, list("abcdef"))
    assert rows[4]["IoU %"] == 0 and rows[4]["recall %"] is None, "predicted, and in no mask"
    assert rows[5]["IoU %"] is rows[5]["recall %"] is None and rows[5]["pixels"] == 0
    recalls = [row["recall %"] for row in rows[:4]]
    torch.testing.assert_close(100 * found["macc"], torch.tensor(recalls).mean())


def test_processes_add_up_their_matrices() -> None:
    matrix = torch.tensor([[3, 1], [0, 4]])
    assert {name: round(float(value), 4) for name, value in pixel_scores(matrix).items()} == {
        "miou": 0.775,
        "macc": 0.875,
        "aacc": 0.875,
    }
    assert PixelScores(2)._reductions["confmat"] is not None


def test_scores_are_brought_to_the_size_of_each_mask() -> None:
    scores = torch.randn(2, 3, 8, 10)
    scores[1, :, 6:], scores[1, :, :, 7:] = torch.nan, torch.nan
    masks = torch.full((2, 12, 15), PADDING, dtype=torch.uint8)
    masks[0], masks[1, :9, :11] = 1, 2
    pairs = list(at_their_size(scores, masks))
    assert [tuple(true.shape) for _, true in pairs] == [(1, 12, 15), (1, 9, 11)]
    expected = interpolate(scores[1:, :, :6, :7], size=(9, 11), mode="bilinear", align_corners=False)
    torch.testing.assert_close(pairs[1][0], expected)
    assert (pairs[1][1] == 2).all()


def test_images_of_one_size_are_scored_together() -> None:
    true = torch.randint(0, 3, (4, 5, 5), dtype=torch.uint8)
    scores = one_hot(true.long(), 3).permute(0, 3, 1, 2).float()
    (pair,) = at_their_size(scores, true)
    assert pair[0] is scores
    metric = PixelScores(3)
    metric.update(scores, true)
    assert metric.compute()["miou"] == 1
