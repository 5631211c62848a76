"""What every task promises. A new task is one line in TASKS_AT_WORK."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tiny import tiny
from vitdistill.data.boxes.files import BoxFiles
from vitdistill.data.boxes.sources import open_boxes
from vitdistill.data.images.augment import Augment
from vitdistill.errors import UserError
from vitdistill.losses.logits import cross_entropy
from vitdistill.methods.supervised import Supervised
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.record import record_of
from vitdistill.tasks import TASKS, task_class
from vitdistill.tasks.actions import Actions
from vitdistill.tasks.boxes import Boxes
from vitdistill.tasks.classification import Classification
from vitdistill.tasks.segmentation import Segmentation
from vitdistill.tasks.task import Task

NET: dict[str, Any] = {"img_size": 32, "patch_size": 8, "frames": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


class AtWork(NamedTuple):
    """A task, a network without a head for it, and a batch."""

    task: Task
    body: Backbone
    inputs: Tensor
    targets: Tensor


def classification() -> AtWork:
    task = Classification(10, smoothing=0.1)
    return AtWork(task, build(tiny("vit", num_classes=0)), torch.randn(3, 3, 32, 32), torch.tensor([1, 7, 7]))


def actions() -> AtWork:
    corners = torch.rand(3, 2, 2, 2).sort(dim=2).values.flatten(2)
    targets = torch.cat((corners, (torch.rand(3, 2, 5) > 0.5).float()), dim=-1)
    targets[2, 1] = torch.nan  # padding
    body = build("video_vit_small_patch16_224", args=NET, num_classes=0)
    return AtWork(Actions(classes=5), body, torch.randn(3, 3, 4, 32, 32), targets)


def segmentation() -> AtWork:
    targets = torch.randint(0, 5, (3, 32, 32), dtype=torch.uint8)
    targets[1, :8] = 255  # ignored
    body = build("vit_tiny_patch16_224", args={name: NET[name] for name in NET if name != "frames"}, num_classes=0)
    # The linear decoder: the mask transformer draws dropout in training.
    return AtWork(Segmentation(5, head="linear"), body, torch.randn(3, 3, 32, 32), targets)


def boxes() -> AtWork:
    targets = torch.rand(3, 2, 5) * 0.5 + 0.2
    targets[..., 0] = torch.tensor([[1.0, 4.0], [0.0, 2.0], [3.0, torch.nan]])
    targets[2, 1] = torch.nan  # padding
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "det_tokens": 6}
    return AtWork(Boxes(classes=5), build("yolos_tiny", args=args, num_classes=0), torch.randn(3, 3, 32, 32), targets)


TASKS_AT_WORK: dict[str, Callable[[], AtWork]] = {
    "classification": classification,
    "actions": actions,
    "segmentation": segmentation,
    "boxes": boxes,
}


@pytest.fixture(params=TASKS_AT_WORK)
def at_work(request: pytest.FixtureRequest) -> AtWork:
    torch.manual_seed(0)
    return TASKS_AT_WORK[request.param]()


def test_every_task_that_the_command_line_knows_is_held_to_this() -> None:
    assert set(TASKS) == set(TASKS_AT_WORK)
    assert all(isinstance(make().task, task_class(name)) for name, make in TASKS_AT_WORK.items())


def test_the_score_is_one_of_the_metrics_and_all_have_headings(at_work: AtWork) -> None:
    task = at_work.task
    assert task.score in task.columns and set(task.metrics()) <= set(task.columns)
    assert set(task.headings()) <= set(task.columns) and task.score in task.headings()


def test_a_head_makes_predictions_that_can_be_trained_on(at_work: AtWork) -> None:
    task, body, inputs, targets = at_work
    network = task.with_head(body, head_init=1.0)
    task.check(network)
    prediction = task.predict(network, inputs, targets)
    assert torch.equal(prediction, task.read(network, network(inputs), targets))
    terms = task.loss(prediction, targets)
    assert terms and all(term.shape == () and term.requires_grad for term in terms.values())
    step = Supervised(network, task=task)(inputs, targets)
    torch.testing.assert_close(step.loss, sum(terms.values()))
    assert set(step.terms) == set(terms) and not any(term.requires_grad for term in step.terms.values())
    step.loss.backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_validation_loss_is_a_sum_over_samples(at_work: AtWork) -> None:
    task, body, inputs, targets = at_work
    network = task.with_head(body, head_init=1.0).eval()
    with torch.no_grad():
        prediction = task.predict(network, inputs, targets)
    whole = task.validation_loss(prediction, targets)
    assert whole is not None and whole.shape == ()
    # The same batch twice has the same mean, so twice the sum.
    twice = task.validation_loss(prediction.repeat_interleave(2, dim=0), targets.repeat_interleave(2, dim=0))
    torch.testing.assert_close(twice, 2 * whole)
    parts = [task.validation_loss(*pair) for pair in zip(prediction.split(1), targets.split(1), strict=True)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_classification_is_scored_by_top_1_and_top_5() -> None:
    task = Classification(7)
    scores = torch.eye(7)[[0, 1, 2]] + 0.1 * torch.arange(7)
    targets = torch.tensor([0, 1, 0])
    metrics = task.metrics()
    for metric in metrics.values():
        metric.update(preds=scores, target=targets)
    assert {name: round(float(metric.compute()), 4) for name, metric in metrics.items()} == {
        "top1": 0.6667,
        "top5": 0.6667,
    }
    assert {name: round(float(share), 4) for name, share in task.hits(scores, targets).items()} == {"top1": 0.6667}
    assert task.hits(scores, torch.eye(7)[[0, 1, 2]]) == {"top1": 1.0}, "mixed targets count by their largest share"
    assert list(Classification(5).headings()) == ["top1"], "of five classes, all are among the five highest"


def test_smoothing_is_that_of_hard_labels_only() -> None:
    task, scores = Classification(4, smoothing=0.2), torch.randn(3, 4)
    hard, soft = torch.tensor([0, 1, 3]), torch.softmax(torch.randn(3, 4), dim=1)
    assert torch.equal(task.loss(scores, hard)["ce"], cross_entropy(scores, hard, 0.2))
    assert torch.equal(task.loss(scores, soft)["ce"], cross_entropy(scores, soft))
    with pytest.raises(UserError, match=r"smoothing must lie in \[0, 1\)"):
        Classification(4, smoothing=1.0)


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="must have the 7 classes of the task; .* has 10"):
        Supervised(tiny("vit"), task=Classification(7))
    with pytest.raises(UserError, match="--dropout has no effect with --task classification"):
        Classification(7).with_head(build(tiny("vit", num_classes=0)), dropout=0.5)
    with pytest.raises(UserError, match="--pool has no effect with --task actions"):
        actions().task.with_head(actions().body, pool="cls")
    with pytest.raises(ValueError, match="needs their number"):
        Actions().with_head(actions().body)


def test_classes_of_boxes_weigh_as_the_files_say() -> None:
    task = Boxes.open("scenes", augment=Augment(recipe="none"), files=BoxFiles(class_weight=3.0))[1]
    prediction, boxes = torch.rand(2, 6, 15), torch.tensor([[[1.0, 0.5, 0.5, 0.2, 0.4]]]).expand(2, -1, -1)
    weighed, plain = task.loss(prediction, boxes), Boxes(classes=10).loss(prediction, boxes)
    torch.testing.assert_close(weighed["class"], 3 * plain["class"])
    more = task.validation_loss(prediction, boxes) - Boxes(classes=10).validation_loss(prediction, boxes)
    torch.testing.assert_close(more, 2 * 2 * plain["class"])


def test_boxes_need_a_detector_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Boxes(open_boxes("scenes"))
    with pytest.raises(UserError, match="Boxes need a detector; got .*Use yolos_tiny"):
        task.check(build(tiny("vit")))
    detector = task.student(build(tiny("vit")))
    task.check(detector)
    assert detector.detections and detector.num_classes == 10 and task.student(detector) is detector
    record_of(detector.net).classes = [*"abcdefghij"]
    letters = Boxes(replace(open_boxes("scenes"), classes=[*"klmnopqrst"]))
    with pytest.raises(UserError, match="classes of a network must be those of the data; yolos.*'a'"):
        letters.check(detector)
    record_of(detector.net).classes = [*"1023456789"]
    task.check(detector)
    output = detector(torch.randn(1, 3, 32, 32))
    read = task.read(detector, output, torch.zeros(1, 1, 5))
    assert torch.equal(read[..., 0], output.prediction[..., 1]) and torch.equal(
        read[..., 2:], output.prediction[..., 2:]
    )
    unknown = Boxes()  # of a training loop of one's own
    unknown.check(detector)
    assert unknown.names is None and torch.equal(
        unknown.read(detector, output, torch.zeros(1, 1, 5)), output.prediction
    )
    monkeypatch.setattr("vitdistill.tasks.boxes.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"Boxes need scipy and faster-coco-eval. Run: pip install 'vitdistill\[detec"):
        task.check(detector)
