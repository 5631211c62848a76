"""What was published of the sets."""

import pytest

from vitdistill.data.robustness.published import ALEXNET, CORRUPTIONS, DENOMINATORS, EXTRA, SEVERITIES
from vitdistill.data.robustness.sets import SETS, classes_of, real_labels


def test_alexnets_means_are_the_denominators() -> None:
    assert list(ALEXNET) == list(DENOMINATORS) and len(CORRUPTIONS) == 15 and not set(EXTRA) & set(CORRUPTIONS)
    for name, errors in ALEXNET.items():
        assert len(errors) == len(SEVERITIES)
        assert sum(errors) / 5 == pytest.approx(DENOMINATORS[name], abs=1e-4), name
    assert sum(DENOMINATORS.values()) / 15 == pytest.approx(78.8993, abs=1e-4)


def test_the_classes_of_the_subsets() -> None:
    every = classes_of("sketch")
    assert len(every) == 1000 and every == sorted(every) == classes_of("v2") == classes_of("imagenet-c")
    indices = {name: [every.index(each) for each in classes_of(name)] for name in ("imagenet-a", "imagenet-r")}
    assert {name: len(set(each)) for name, each in indices.items()} == {"imagenet-a": 200, "imagenet-r": 200}
    assert all(each == sorted(each) for each in indices.values())
    assert sum(indices["imagenet-a"]) == 102_178 and sum(indices["imagenet-r"]) == 86_135
    assert (indices["imagenet-a"][0], indices["imagenet-a"][-1]) == (6, 988)
    assert (indices["imagenet-r"][0], indices["imagenet-r"][-1]) == (1, 988)
    assert len(set(indices["imagenet-a"]) & set(indices["imagenet-r"])) == 86


def test_timm_knows_the_same_classes() -> None:
    from timm.data import ImageNetInfo

    assert list(ImageNetInfo().label_names()) == classes_of("clean")
    assert {each.images for each in SETS.values()} == {50_000, 46_837, 7_500, 30_000, 50_889, 10_000}


def test_the_real_labels() -> None:
    labels = real_labels()
    assert len(labels) == SETS["clean"].images and sum(map(bool, labels)) == SETS["real"].images
    assert labels[:3] == [[], [795, 970], [230, 231]] and {*range(1000)} == {each for own in labels for each in own}
