"""Hits: those of torchmetrics, but for scores that say nothing."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from vitdistill.evaluation.accuracy import hits, percent


@pytest.mark.parametrize("classes", [3, 7])
def test_hits_of_several_heads_are_those_of_torchmetrics(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 100, classes, generator=generator)
    targets = torch.randint(classes, (100,), generator=generator)
    counted = percent(hits(scores, targets).sum(dim=1), 100)
    for head, found in zip(scores, counted, strict=True):
        for k in (1, 5):
            options = {"top_k": min(k, classes), "average": "micro"}
            expected = multiclass_accuracy(head, targets, classes, **options)
            assert found[f"top{k}"] == pytest.approx(100 * float(expected), abs=1e-3)


def test_scores_that_say_nothing_are_no_hits() -> None:
    """torchmetrics counts both: here -inf is a class without a vote, and nan a classifier that diverged."""
    voted = torch.full((7, 7), -torch.inf)
    voted[:, 0] = 0.0
    assert hits(voted, torch.arange(7)).tolist() == [[True, True], *[[False, False]] * 6]
    assert not hits(torch.full((7, 7), torch.nan), torch.arange(7)).any()
