"""What counts of confused classes say, against counting by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdistill.errors import UserError
from vitdistill.tasks.classification import Classification
from vitdistill.tasks.confusion import Confusion, MeanPerClass, uneven

NAMES = ["cat", "dog, wet", "owl", "elk"]


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_all_ways_of_counting_agree(pairs: list[tuple[int, int]]) -> None:
    true, predicted = (torch.tensor(numbers) for numbers in zip(*pairs, strict=True))
    task = Classification(4, uneven=True)
    details, mean = task.details(), task.metrics()["mean_per_class"]
    for metric in (details, mean):
        metric.update(preds=torch.eye(4)[predicted], target=true)
    confusion = Confusion.between(true, predicted, NAMES)
    assert np.array_equal(confusion.matrix(), details.compute().numpy())
    assert confusion.csv() == Confusion.of(details.compute(), NAMES).csv()
    # Over the classes that have samples: a class that is only predicted counts for nothing.
    shares = [(predicted[true == c] == c).float().mean().item() for c in range(4) if (true == c).any()]
    assert confusion.mean_per_class == pytest.approx(sum(shares) / len(shares))
    assert float(mean.compute()) == pytest.approx(sum(shares) / len(shares))
    for number, row in enumerate(confusion.per_class()):
        mine, said = true == number, predicted == number
        assert (row["class"], row["samples"]) == (NAMES[number], int(mine.sum()))
        both = float((mine & said).sum())
        assert row["accuracy"] == (pytest.approx(100 * both / float(mine.sum()), abs=1e-4) if mine.any() else None)
        assert row["precision"] == (pytest.approx(100 * both / float(said.sum()), abs=1e-4) if said.any() else None)
        wrong = predicted[mine & ~said].bincount(minlength=4)
        assert row["mistakes"] == wrong.max() and (row["mistaken_for"] is None) == (wrong.max() == 0)
    assert sum(count for _, _, count in confusion.pairs()) == int((true != predicted).sum())


def test_counts_come_back_from_their_file(tmp_path: Path) -> None:
    confusion = Confusion.between(torch.tensor([0, 1, 1, 3]), torch.tensor([0, 2, 2, 1]), NAMES)
    file = tmp_path / "confusion.csv"
    file.write_text(confusion.csv())
    again = Confusion.read(file, NAMES)
    assert np.array_equal(again.matrix(), confusion.matrix()) and again.classes == tuple(NAMES)
    with pytest.raises(UserError, match="must be of 2 classes; got class 3"):
        Confusion.read(file, NAMES[:2])
    file.write_text("true,predicted\n1,x\n")
    with pytest.raises(UserError, match="must be readable"):
        Confusion.read(file, NAMES)


def test_the_mean_per_class_is_measured_where_it_differs_from_accuracy() -> None:
    assert uneven([0] * 5 + [2] * 2) and not uneven([0] * 4 + [2] * 2) and not uneven([1]) and not uneven([])
    assert list(Classification(10).metrics()) == ["top1", "top5"]
    assert list(Classification(10, uneven=True).headings()) == ["top1", "top5", "mean_per_class"]
    assert Classification(1001).details() is None, "a matrix of a million numbers is enough"
    metric = MeanPerClass(3)
    metric.update(torch.tensor([0, 2]), torch.tensor([0, 1]))
    metric.update(torch.tensor([0]), torch.tensor([0]))
    assert float(metric.compute()) == 0.5, "of three classes the last has no sample, though one was taken for it"
