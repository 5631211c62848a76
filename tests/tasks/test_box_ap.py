"""COCO's average precision, against torchmetrics' own on random boxes, and by hand."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vitdistill.data.boxes.annotations import Gathering
from vitdistill.data.boxes.samples import BoxImages
from vitdistill.data.source import DataSource
from vitdistill.tasks.box_ap import BoxAP, average_precision
from vitdistill.tasks.boxes import Boxes

CLASSES = 4


def data(images: int = 12, seed: int = 0) -> BoxImages:
    """Random boxes of all classes but the last, some of them crowds."""
    chance, gathering = np.random.RandomState(seed), Gathering()
    for number in range(images):
        height, width = chance.randint(40, 200, 2)
        gathering.image(f"{number}.jpg", 500 + number, (int(height), int(width)))
        for _ in range(chance.randint(0, 6)):
            x, y = chance.rand(2) * 0.6 * (width, height)
            w, h = (0.1 + 0.3 * chance.rand(2)) * (width, height)
            number_of_class = int(chance.randint(CLASSES - 1))
            gathering.box((x, y, x + w, y + h), number_of_class, ignored=bool(chance.rand() < 0.15))
    return BoxImages(gathering.finish(), [10, 20, 30, 40], None)


def predictions(samples: BoxImages, queries: int = 20, seed: int = 1) -> Tensor:
    """Class scores and boxes, most of them near an annotated one."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(len(samples), queries, CLASSES + 1, generator=generator)
    boxes = torch.rand(len(samples), queries, 4, generator=generator) * 0.4 + 0.2
    for index in range(len(samples)):
        corners = torch.from_numpy(samples.boxes.corners[samples.boxes.rows(index)])
        labels = samples.boxes.classes[samples.boxes.rows(index)]
        height, width = samples.boxes.sizes[index].tolist()
        for slot, (box, label) in enumerate(zip(corners, labels.tolist(), strict=True)):
            x1, y1, x2, y2 = (box / torch.tensor([width, height, width, height])).tolist()
            exact = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
            boxes[index, 2 * slot] = exact + 0.03 * torch.randn(4, generator=generator) * exact
            scores[index, 2 * slot, label] += 3
    return torch.cat((scores, boxes), dim=-1)


def by_torchmetrics(samples: BoxImages, preds: Tensor) -> dict[str, Any]:
    from torchmetrics.detection import MeanAveragePrecision
    from torchvision.ops import box_convert

    metric = MeanAveragePrecision(backend="faster_coco_eval", class_metrics=True)
    for index, each in enumerate(preds):
        height, width = samples.boxes.sizes[index].tolist()
        scores, labels = each[:, :-4].softmax(dim=-1)[:, :-1].max(dim=-1)
        best = scores.topk(min(100, len(scores))).indices  # of an image, and not of each class in it
        scores, labels, each = scores[best], labels[best], each[best]
        corners = box_convert(each[:, -4:], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        rows = samples.boxes.rows(index)
        truth = {
            "boxes": torch.from_numpy(samples.boxes.corners[rows]),
            "labels": torch.from_numpy(samples.boxes.classes[rows]),
            "iscrowd": torch.from_numpy(samples.boxes.ignored[rows]).long(),
        }
        metric.update([{"boxes": corners, "scores": scores, "labels": labels}], [truth])
    return metric.compute()


def updated(metrics: Any, preds: Tensor, order: list[int]) -> None:
    for first in range(0, len(order), 5):
        index = torch.tensor(order[first : first + 5])
        for metric in metrics.values():
            metric.update(preds=preds[index], target=None, index=index)


@pytest.mark.parametrize("queries", [20, 130], ids=["few", "more_than_100"])
def test_it_is_that_of_torchmetrics(queries: int) -> None:
    samples = data()
    preds = predictions(samples, queries)
    if queries > 100:
        preds[..., CLASSES] = 3 * torch.rand(preds.shape[:2], generator=torch.Generator().manual_seed(9))
    source = DataSource("random", samples, samples, list("abcd"))
    task = Boxes(source)
    metrics = task.metrics()
    details = task.details()
    updated(metrics, preds, list(range(len(samples)))[::-1])
    expected = by_torchmetrics(samples, preds)
    wanted = {"ap": float(expected["map"]), "ap50": float(expected["map_50"]), "ap75": float(expected["map_75"])}
    found = {name: float(metric.compute()) for name, metric in metrics.items()}
    assert found == pytest.approx(wanted, abs=1e-5)
    assert 0.05 < found["ap"] < found["ap50"] < 1
    for metric in metrics.values():
        metric.reset()
    assert details is not None
    per_class = details.compute()
    known = [number for number in range(CLASSES) if not per_class[number].isnan().any()]
    assert known == [0, 1, 2], "nothing is annotated of the last"
    of_class = dict(zip(expected["classes"].tolist(), expected["map_per_class"].tolist(), strict=True))
    assert per_class[known, 0].tolist() == pytest.approx([of_class[number] for number in known], abs=1e-5)
    rows = task.per_class(per_class, source)
    assert rows[3] == {"class": "d", "boxes": 0, "AP %": None, "AP50 %": None, "AP75 %": None}
    assert sum(row["boxes"] for row in rows) == int((~samples.boxes.ignored).sum())
    assert task.detail_files(per_class, source)["per_class.csv"].startswith("class,boxes,AP %,AP50 %,AP75 %\na,")


def test_it_is_computed_once_for_all_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, calls = data(), []
    monkeypatch.setattr(
        "vitdistill.tasks.box_ap.average_precision", lambda *a: calls.append(1) or average_precision(*a)
    )
    task = Boxes(DataSource("random", samples, samples, list("abcd")))
    metrics, details = task.metrics(), task.details()
    assert details is not None
    updated(metrics, predictions(samples), list(range(len(samples))))
    values = [metric.compute() for metric in metrics.values()]
    details.compute()
    assert len(calls) == 1 and len(values) == 3
    for metric in metrics.values():
        metric.reset()
    assert all(math.isnan(float(metric.compute())) for metric in metrics.values()), "nothing was seen since"
    assert len(calls) == 2


def test_images_that_cannot_be_read_do_not_count() -> None:
    samples = data()
    unread = int(np.diff(samples.boxes.offsets).argmax())
    readable = [index for index in range(len(samples)) if index != unread]
    metric = BoxAP(samples, CLASSES)
    metric.update(predictions(samples)[readable], None, torch.tensor(readable))
    found = metric.detections()
    of_all = average_precision(samples, *found, CLASSES).whole["ap"]
    of_seen = average_precision(samples, *found, CLASSES, np.arange(len(samples)) != unread).whole["ap"]
    assert float(metric.compute()) == pytest.approx(of_seen) and of_seen > of_all + 0.01


def test_perfect_detections_and_none() -> None:
    gathering = Gathering()
    gathering.image("a", 7, (100, 50))
    gathering.box((10, 20, 30, 80), 2)
    samples = BoxImages(gathering.finish(), [10, 20, 30, 40], None)
    metric = BoxAP(samples, CLASSES)
    scores = torch.full((1, 1, CLASSES + 1), -20.0)
    scores[..., 2] = 20.0
    boxes = torch.tensor([[[0.4, 0.5, 0.4, 0.6]]])
    metric.update(torch.cat((scores, boxes), dim=-1), None, torch.tensor([0]))
    assert float(metric.compute()) == 1.0
    assert json.loads(metric.results()) == [
        {"image_id": 7, "category_id": 30, "bbox": [10.0, 20.0, 20.0, 60.0], "score": 1.0}
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_hits_nothing(value: float) -> None:
    samples = data()
    metric, preds = BoxAP(samples, CLASSES), predictions(samples)
    preds[:6, :, :2] = value
    preds[6:, :, -1] = value
    metric.update(preds, None, torch.arange(len(samples)))
    assert metric.compute() == 0


def test_batches_and_processes_do_not_matter() -> None:
    samples = data()
    preds = predictions(samples)
    whole, parts = BoxAP(samples, CLASSES), [BoxAP(samples, CLASSES), BoxAP(samples, CLASSES)]
    everything = list(range(len(samples)))
    updated({"whole": whole}, preds, everything)
    updated({"first": parts[0]}, preds, everything[:7])
    updated({"second": parts[1]}, preds, everything[6:])  # one image is in both
    together = BoxAP(samples, CLASSES)
    together.found, together.seen = parts[0].found + parts[1].found, parts[0].seen + parts[1].seen  # a sum
    assert float(together.compute()) == pytest.approx(float(whole.compute()), abs=1e-6)
    assert len(json.loads(together.results())) == len(json.loads(whole.results())) == 20 * len(samples)


def test_images_that_were_not_seen_are_missed() -> None:
    samples = data()
    preds = predictions(samples)
    whole, part = BoxAP(samples, CLASSES), BoxAP(samples, CLASSES)
    updated({"whole": whole}, preds, list(range(len(samples))))
    updated({"part": part}, preds, list(range(len(samples) // 2)))
    assert 0 < float(part.compute()) < float(whole.compute())
