"""The linear probe: toy features, the choice of the learning rate, the split, and torch's own layers as reference."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.evaluation.linear import evaluate_heads, hold_out, linear_probe, train_heads


def blobs(per_class: int, seed: int, spread: float = 0.2) -> tuple[Tensor, Tensor]:
    """Three classes around the corners of a triangle, in channels of very different scales, one of them constant."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat(per_class)
    corners = torch.tensor([[0.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    points = corners[labels] + spread * torch.randn(len(labels), 2, generator=random)
    return torch.cat((points * torch.tensor([1e3, 1e-2]) + 50, torch.ones(len(labels), 1)), dim=1), labels


def test_separable_features_reach_everything() -> None:
    found = linear_probe(*blobs(40, 0), *blobs(20, 1), 3, epochs=20, batch_size=16)
    assert found["top1"] == found["top5"] == found["held_out_top1"] == 100
    assert [row["lr"] for row in found["tried"]] == sorted(row["lr"] for row in found["tried"])
    assert found["lr"] in [row["lr"] for row in found["tried"]]


def test_features_without_a_class_in_them_stay_at_chance() -> None:
    random = torch.Generator().manual_seed(0)
    features, labels = torch.randn(300, 4, generator=random), torch.arange(300) % 3
    found = linear_probe(features[:200], labels[:200], features[200:], labels[200:], 3, epochs=5)
    assert 15 < found["top1"] < 55


def test_the_same_seed_gives_the_same_probe() -> None:
    data = (*blobs(40, 0, spread=0.9), *blobs(40, 1, spread=0.9))
    first, again, other = (linear_probe(*data, 3, epochs=3, batch_size=8, seed=seed) for seed in (0, 0, 5))
    assert first == again and first != other


def test_the_rate_is_chosen_by_training_images_alone() -> None:
    train, labels = blobs(40, 0, spread=0.9)
    val, val_labels = blobs(40, 1, spread=0.9)
    options: dict[str, Any] = {"epochs": 3, "batch_size": 8}
    right = linear_probe(train, labels, val, val_labels, 3, **options)
    wrong = linear_probe(train, labels, val, (val_labels + 1) % 3, 3, **options)
    assert (right["lr"], right["tried"]) == (wrong["lr"], wrong["tried"])
    assert right["top1"] > 70 > wrong["top1"]
    best = max(row["held_out_top1"] for row in right["tried"])
    assert right["held_out_top1"] == best
    assert best == next(row["held_out_top1"] for row in right["tried"] if row["lr"] == right["lr"])


def test_heads_are_trained_as_torchs_layers_are() -> None:
    """Against BatchNorm1d without affine parameters over the whole set, nn.Linear, SGD and cosine, one at a time."""
    features, labels = blobs(8, 0, spread=1.0)
    rates = [0.01, 0.3]
    heads = train_heads(features, labels, 3, rates, epochs=6, batch_size=24, seed=0)
    for rate, scores in zip(rates, heads.scores(features), strict=True):
        layer = nn.Linear(3, 3)
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
        norm = nn.BatchNorm1d(3, affine=False, eps=1e-6)
        optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        for _ in range(6):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(norm(features)), labels).backward()
            optimizer.step()
            schedule.step()
        torch.testing.assert_close(scores, layer(norm(features)).detach(), atol=1e-4, rtol=1e-4)


def test_heads_do_not_influence_each_other() -> None:
    """A rate at which weights overflow leaves the others as they are alone, and is never chosen."""
    features, labels = blobs(40, 0, spread=0.9)
    alone, together = (
        train_heads(features, labels, 3, rates, epochs=4, batch_size=16, seed=0) for rates in ([0.1], [0.1, 3e38])
    )
    torch.testing.assert_close(together.weight[0], alone.weight[0])
    assert not together.weight[1].isfinite().all()
    good, bad = evaluate_heads(together, features, labels)
    assert good["top1"] > 70 and bad["top1"] < 50
    assert linear_probe(features, labels, features, labels, 3, lr=[0.1, 3e38], epochs=4, batch_size=16)["lr"] == 0.1


@settings(deadline=None, max_examples=40)
@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=80), seed=st.integers(0, 100))
def test_held_out_images_are_a_tenth_of_every_class(labels: list[int], seed: int) -> None:
    numbers = torch.tensor(labels)
    if all(labels.count(label) == 1 for label in labels):
        with pytest.raises(UserError, match="two training images"):
            hold_out(numbers, seed)
        return
    fit, held = hold_out(numbers, seed)
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(len(labels)))
    for label in set(labels):
        images, out = labels.count(label), numbers[held].tolist().count(label)
        assert out == (0 if images == 1 else max(1, round(0.1 * images)))
        assert images - out >= 1
    assert torch.equal(hold_out(numbers, seed)[1], held)


def test_another_seed_holds_out_other_images() -> None:
    labels = torch.arange(100) % 2
    assert not torch.equal(hold_out(labels, 0)[1], hold_out(labels, 1)[1])


def test_a_single_rate_needs_no_held_out_images() -> None:
    features, labels = torch.eye(3), torch.arange(3)  # one image per class
    found = linear_probe(features, labels, features, labels, 3, lr=[0.1], epochs=30)
    assert found["top1"] == 100 and found["held_out_top1"] is None and found["tried"] == []
    with pytest.raises(UserError, match=r"two training images.*got 3 images in as many classes\. Give a single --lr"):
        linear_probe(features, labels, features, labels, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": [0.1, 0.0]}, "A learning rate must be positive; got 0, 0.1"),
        ({"lr": []}, "A learning rate must be positive; got none"),
        ({"lr": [float("nan")]}, "A learning rate must be positive; got nan"),
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"lr": [3e38], "epochs": 3}, r"A learning rate must converge; got lr 3e\+38. Lower it"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        linear_probe(*blobs(40, 0), *blobs(5, 1), 3, **options)
