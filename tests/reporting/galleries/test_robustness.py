"""Pictures of robustness."""

from typing import Any

import pytest

from vitdistill.data.robustness.published import ALEXNET
from vitdistill.evaluation.robustness import described
from vitdistill.reporting.galleries.robustness import corruption_words, sets_figure, severity_figure, summary


def cell(top1: float, **more: Any) -> dict[str, Any]:
    own = {"top1": top1, "top5": 90.0, "confidence": 50.0, "images": 10, "published_images": 10}
    return {**own, "unreadable": 0, "partial": [], **more}


def test_errors_over_severities_beside_alexnets() -> None:
    of_half = {n: {str(s): cell(100 - e / 2) for s, e in enumerate(own, 1)} for n, own in ALEXNET.items()}
    extra = {"spatter": {str(severity): cell(60.0) for severity in (1, 2, 3, 4, 5)}}
    whole = described({"imagenet-c": {"cells": {**of_half, **extra}}, "clean": cell(78.25, subsets={})})["imagenet-c"]
    figure = severity_figure(whole)
    assert len([axes for axes in figure.axes if axes.lines]) == 17
    alexnet, ours = figure.axes[0].lines
    assert ours.get_ydata() == pytest.approx([each / 2 for each in alexnet.get_ydata()])
    assert [line.get_ydata() for line in figure.axes[16].lines][1] == pytest.approx([40.0] * 5)  # no line of AlexNet's
    assert "partial" not in figure.get_suptitle()
    words = "ImageNet-C: mean error 39.45%, mCE 50.00 (AlexNet 100), relative mCE 50.00"
    assert corruption_words(whole) == words
    extra["spatter"]["1"]["partial"] = ["1 of 1000 classes (x)"]
    same = described({"imagenet-c": {"cells": {**of_half, **extra}}})["imagenet-c"]
    assert same["partial"] == ["1 of 1000 classes (x)"] and same["mce"] == whole["mce"]  # of which it is no part
    part = described({"imagenet-c": {"cells": {"fog": of_half["fog"]}}})["imagenet-c"]
    assert severity_figure(part).get_suptitle() == "ImageNet-C: top-1 error (%) (partial)"
    assert corruption_words(part) == "ImageNet-C (partial, so there is no mCE): mean error 40.97%"


def test_accuracy_on_each_set() -> None:
    subsets = {"imagenet-a": {"top1": 90.0}, "imagenet-r": {"top1": 92.5}}
    sets = {"imagenet-r": cell(40.0, partial=["1 of 200 classes (x)"]), "imagenet-a": cell(12.5)}
    found = described({**sets, "clean": cell(80.0, subsets=subsets)})
    figure = sets_figure(found)
    assert figure is not None
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [80.0, 12.5, 40.0]
    assert [line.get_xdata()[0] for line in axes.lines] == [90.0]  # the partial one is compared with nothing
    assert [label.get_text() for label in axes.get_yticklabels()][2] == "ImageNet-R (partial)"
    words = "ImageNet validation 80.0%; ImageNet-A 12.5%, 77.5 points below the validation images of the same classes; "
    assert summary(found) == words + "ImageNet-R (partial) 40.0% (among its 200 classes)."
    real = described({"sketch": cell(60.0), "real": cell(85.0), "clean": cell(80.0, subsets=subsets)})
    figure = sets_figure(real)
    assert figure is not None and [bar.get_width() for bar in figure.axes[0].patches] == [80.0, 85.0, 60.0]
    assert summary(real) == "ImageNet validation 80.0%; ImageNet-ReaL 85.0%; ImageNet-Sketch 60.0%."
    assert sets_figure({}) is None
