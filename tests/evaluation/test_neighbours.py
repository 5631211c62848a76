"""Weighted k-nearest neighbours against a hand-computed example, and its properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdistill.errors import UserError
from vitdistill.evaluation.accuracy import hits
from vitdistill.evaluation.neighbours import knn_accuracy, vote

# At 0, 60, 90 and 180 degrees; the cosines to the query at 0 degrees are 1, 1/2, 0 and -1.
TRAIN = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(3) / 2], [0.0, 1.0], [-1.0, 0.0]])
LABELS = torch.tensor([0, 1, 1, 2])
QUERY = torch.tensor([[1.0, 0.0]])


def test_votes_by_hand() -> None:
    votes = vote(TRAIN, LABELS, QUERY, 4, [1, 3], temperature=0.5)
    e = math.e
    #                     k 1: exp(1 / .5) for class 0;  k 3: also exp(.5 / .5) + exp(0) for class 1
    torch.testing.assert_close(votes.exp(), torch.tensor([[[e**2, 0, 0, 0]], [[e**2, e + 1, 0, 0]]]))


def test_temperature_weighs_one_close_against_two_far() -> None:
    # e^(1/T) against e^(1/(2T)) + 1: with x = e^(1/(2T)), x^2 > x + 1 above the golden ratio, so T < 1.039.
    for temperature, expected in ((1.0, 0), (1.1, 1)):
        assert vote(TRAIN, LABELS, QUERY, 3, [3], temperature).argmax(dim=-1).item() == expected


def test_length_of_features_does_not_count() -> None:
    lengths = torch.tensor([[0.1], [7.0], [3.0], [20.0]])
    result = knn_accuracy(TRAIN * lengths, LABELS, QUERY * 5, torch.tensor([0]), 3, k=[1, 2])
    assert result == [{"k": 1, "top1": 100, "top5": 100}, {"k": 2, "top1": 100, "top5": 100}]


def test_a_class_without_votes_is_not_among_the_best_five() -> None:
    result = knn_accuracy(TRAIN, LABELS, QUERY, torch.tensor([2]), 3, k=[3, 4])
    assert [score["top5"] for score in result] == [0, 100]  # the fourth neighbour is the first of class 2


def test_low_temperatures_do_not_overflow() -> None:
    assert vote(TRAIN, LABELS, QUERY, 3, [4], temperature=1e-3).argmax(dim=-1).item() == 0


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), chunk=st.integers(1, 40), k=st.lists(st.integers(1, 25), min_size=1, max_size=3))
def test_chunk_size_does_not_matter(seed: int, chunk: int, k: list[int]) -> None:
    random = torch.Generator().manual_seed(seed)
    train, queries = torch.randn(25, 6, generator=random), torch.randn(31, 6, generator=random)
    labels, targets = (torch.randint(7, (count,), generator=random) for count in (25, 31))
    whole = knn_accuracy(train, labels, queries, targets, 7, k=k)
    assert knn_accuracy(train, labels, queries, targets, 7, k=k, chunk=chunk) == whole
    assert [score["k"] for score in whole] == list(dict.fromkeys(k))
    assert all(0 <= score["top1"] <= score["top5"] <= 100 for score in whole)


def test_training_images_find_themselves() -> None:
    features, labels = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 7
    assert knn_accuracy(features, labels, features, labels, 7, k=[1])[0]["top1"] == 100


@pytest.mark.parametrize(
    ("k", "temperature", "message"),
    [
        ([2, 5], 0.07, r"k must be at most the number of training images; got k 5 and 4 images"),
        ([0], 0.07, r"k must be at least 1; got 0"),
        ([], 0.07, r"k must be at least 1; got none"),
        ([1], 0.0, r"The temperature must be positive; got 0.0"),
        ([1], float("nan"), r"The temperature must be positive; got nan"),
    ],
)
def test_bad_options(k: list[int], temperature: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        knn_accuracy(TRAIN, LABELS, QUERY, torch.tensor([0]), 3, k=k, temperature=temperature)


def test_hits() -> None:
    scores = torch.tensor([[9.0, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4], [4, 5, 6, 7, 8, 9]])
    assert hits(scores, torch.tensor([0, 5, 2])).tolist() == [[True, True], [False, False], [False, True]]
    assert not hits(torch.full((1, 3), torch.nan), torch.tensor([0])).any()
