"""Steps of a detector under a masked detector: batches of any size, padding, what is counted, and what is learned."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.losses.boxes import set_loss
from vitdistill.methods.distillation import Distillation, Lesson
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.methods.selection.ranked import Ranked
from vitdistill.methods.supervised import Supervised
from vitdistill.methods.terms.detections import DetectionsTerm
from vitdistill.methods.terms.options import Detections, Terms, Tokens
from vitdistill.methods.terms.tokens import TokensTerm
from vitdistill.models.build import build
from vitdistill.models.teacher import Teacher
from vitdistill.tasks.classification import Classification
from vitdistill.types import Output

SIZES = [(32, 32), (40, 24), (16, 64), (48, 40)]
TARGETS = torch.tensor([[[3, 0.4, 0.4, 0.3, 0.3], [1, 0.7, 0.5, 0.2, 0.6]], [[9, 0.5, 0.5, 0.9, 0.9], [math.nan] * 5]])


class Detecting(Distillation):
    """With the set loss in place of a task."""

    def own_losses(self, inputs: Tensor, student: Output, targets: Tensor | None) -> dict[str, Tensor]:
        if targets is None:
            return {}
        assert student.prediction is not None
        return set_loss(student.prediction, targets)


def images_of(size: tuple[int, int], seed: int = 1) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


def method_of(*terms: Any, **selection: Any) -> Detecting:
    student = build(tiny("yolos", seed=1))
    teacher = Teacher.of(build(tiny("yolos", seed=2, embed_dim=36, depth=4)), student)
    made = [term.build(student, teacher) for term in terms or (Tokens(),)]
    third = selection.pop("network", None)
    guide = None if third is None else Teacher.of(third, student)
    return Detecting(student, [Lesson(teacher, made)], selector=Ranked(network=guide, **{"keep": 0.5, **selection}))


@pytest.mark.parametrize("term", [Tokens(), Detections(), Tokens(root=False, det_matching="hungarian")], ids=str)
def test_every_batch_keeps_its_own_share_of_its_own_grid(term: Any) -> None:
    method = method_of(term, keep=0.4)
    for size in SIZES:
        patches = size[0] * size[1] // 64
        step = method(images_of(size), TARGETS)
        assert step.kept.shape == (2, math.floor(0.4 * patches + 0.5)) and int(step.kept.max()) < patches
        assert {"class", "box", "giou"} < set(step.terms) and bool(step.loss.isfinite())
        method.zero_grad()
        step.loss.backward()
        trained = dict(method.named_parameters())
        assert [name for name, p in trained.items() if p.grad is None] == []
    assert method.lessons[0].teacher.grid.count == 16 and method.student.grid.count == 16
    assert all(p.grad is None for p in method.lessons[0].teacher.network.parameters())


@pytest.mark.parametrize("criterion", ["student", "teacher", "network", "random", "student+random", "auto"])
@pytest.mark.parametrize("order", ["top", "bottom"])
def test_padding_goes_first(criterion: str, order: str) -> None:
    if criterion == "auto" and order == "bottom":
        return
    third = {"network": tiny("vit", seed=3)} if criterion == "network" else {}
    options: dict[str, Any] = {"criterion": criterion, "order": order, **third}
    images = F.pad(images_of((16, 24)), (0, 8, 0, 16))  # 2 x 3 of 4 x 4 patches show something
    images[1] = images_of((32, 32))[1]
    term = Detections() if criterion == "auto" else Tokens()
    shown = {0, 1, 2, 4, 5, 6}
    for keep, wanted in ((0.25, "within"), (0.5, "all")):
        kept = method_of(term, keep=keep, **options)(images).kept[0].tolist()
        assert set(kept) <= shown if wanted == "within" else set(kept) >= shown


def test_a_share_of_attention_is_taken_of_what_is_shown() -> None:
    images = F.pad(images_of((16, 24)), (0, 8, 0, 16))
    step = method_of(Detections(), keep="mass:0.999")(images, TARGETS)
    assert all(set(row[row >= 0].tolist()) <= {0, 1, 2, 4, 5, 6} for row in step.kept)


def test_what_the_teacher_computes_is_counted_at_the_size_of_each_batch() -> None:
    method = method_of(criterion="teacher").train()
    teacher, expected, inputs = method.lessons[0].teacher, 0.0, 0
    capture = teacher.backbone.saliency_capture(-1)
    for number, size in enumerate(SIZES):
        method(images_of(size), TARGETS)
        patches = size[0] * size[1] // 64
        inputs += 2
        expected += 2 * teacher.network.macs(patches // 2, size=size).total
        # The teacher ranks patches itself, up to the queries and keys of its last block.
        ranking = teacher.network.macs(None, type(capture)(capture.points, False), size=size).total
        expected += 2 * ranking
        if number == 0:  # it is asked about the first batch, whole
            expected += 2 * teacher.network.macs(size=size).total
            asked = method.selector.probe.next
    assert asked >= len(SIZES)
    state = method.remembered()
    spent = method.spent(state)
    assert spent is not None and spent.inputs == inputs and spent.macs == pytest.approx(expected, rel=1e-3, abs=4e6)
    again = method_of(criterion="teacher")
    again.recall(state)
    assert again.spent(again.remembered()) == spent
    other = method_of(criterion="teacher")
    other.recall(state, first=False)
    assert other.spent(other.remembered()).inputs == 0


def test_counts_of_patches_are_refused_where_sizes_differ() -> None:
    for keep in (8, "8", "0:1.0,0.5:8"):
        with pytest.raises(UserError, match="of which only a share of the patches can be kept.*a fraction") as error:
            method_of(keep=keep)
        assert "\n" not in str(error.value)
    assert method_of(keep=1.0)(images_of((40, 24))).kept is None


def test_the_whole_teacher_is_asked_about_the_objects_that_it_sees() -> None:
    method = method_of(Detections()).train()
    step = method(images_of((40, 24)), TARGETS)
    teacher, probe = method.lessons[0].teacher, method.selector.probe
    named = teacher.network.named
    whole, masked = named(teacher(images_of((40, 24))).prediction), named(step.teacher_prediction)
    assert probe.own.asked == int((whole >= 0).sum()) > 0
    assert probe.own.hits == int(((whole == masked) & (whole >= 0)).sum())


def test_a_number_that_follows_the_answers_is_carried_to_each_grid() -> None:
    method = method_of(Detections(), keep="agree:0.5").train()
    assert method(images_of((32, 32)), TARGETS).kept is None  # nothing is known yet
    method.selector.amount.kept = 4  # of 16
    for size in SIZES:
        patches = size[0] * size[1] // 64
        assert method(images_of(size), TARGETS).kept.shape[1] == math.floor(patches / 4 + 0.5)
    assert all(kept <= 16 for _, kept in method.selector.probe.tallies)


def test_patch_dropout_takes_its_share_of_each_grid() -> None:
    class Task(Classification):
        def check(self, network: Any) -> None:
            """Any network will do."""

        def read(self, network: Any, output: Output, targets: Tensor) -> Any:
            return output.prediction

        def loss(self, prediction: Tensor, targets: Tensor) -> dict[str, Tensor]:
            return set_loss(prediction, targets)

    method = Supervised(tiny("yolos"), task=Task(10), patch_drop=0.5).train()
    for size in SIZES:
        step = method(images_of(size), TARGETS)
        assert step.kept.shape == (2, size[0] * size[1] // 128 + (size[0] * size[1] // 64) % 2)
    assert method.eval()(images_of((40, 24)), TARGETS).kept is None


# --- terms --------------------


def pair(**teacher: Any) -> tuple[Any, Teacher]:
    student = build(tiny("yolos", seed=1))
    return student, Teacher.of(build(tiny("yolos", seed=2, **{"embed_dim": 36, **teacher})), student)


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("matching", ["index", "hungarian"])
def test_tokens_are_compared_as_written(root: bool, matching: Any) -> None:
    from vitdistill.losses.boxes import match_slots

    student, teacher = pair()
    term = TokensTerm(student, teacher, root=root, det_matching=matching)
    images, keep = images_of((40, 24)), torch.tensor([[0, 3, 14], [2, 5, 6]])
    own, other = student(images), teacher(images, keep=keep)
    mine = torch.stack([own.final.patches[i, keep[i]] for i in range(2)])
    order = torch.arange(6).expand(2, -1)
    if matching == "hungarian":
        order = match_slots(own.prediction, other.prediction)
    known = torch.stack([other.final.special[i, 1:][order[i]] for i in range(2)])
    expected = (term.patches(mine) - other.final.patches).norm(dim=-1).mean()
    expected = expected + (term.detections(own.final.special[:, 1:]) - known).norm(dim=-1).mean()
    torch.testing.assert_close(term(own, other)["tokens"], expected.sqrt() if root else expected)
    assert term.weights == {"tokens": 4.0}


def test_equal_tokens_give_a_gradient_that_is_finite() -> None:
    student, _ = pair()
    teacher = Teacher(copy.deepcopy(student))
    term = TokensTerm(student, teacher)
    for project in (term.patches, term.detections):
        torch.nn.init.eye_(project.weight), torch.nn.init.zeros_(project.bias)
    images = images_of((32, 32))
    loss = term(student(images), teacher(images))["tokens"]
    loss.backward()
    assert float(loss.detach()) < 1e-2 and all(bool(p.grad.isfinite().all()) for p in term.parameters())


def test_defaults_of_matching_are_those_that_the_losses_need() -> None:
    assert (Tokens().det_matching, Detections().det_matching) == ("index", "hungarian")
    student, teacher = pair()
    assert DetectionsTerm(student, teacher).weights == {
        "detections_class": 1.0,
        "detections_box": 5.0,
        "detections_giou": 2.0,
    }
    assert Terms().named("tokens+detections") == ("tokens", "detections")
    with pytest.raises(UserError, match="--terms.tokens has no effect unless --distill names tokens"):
        Terms(tokens=Tokens(weight=1.0)).named("logits")
    with pytest.raises(UserError, match=r"--terms.detections.weight must be 0 or more; got -1"):
        Detections(weight=-1.0)


@pytest.mark.parametrize(
    ("option", "change", "words"),
    [
        (Tokens(), {"det_tokens": 7}, "as many detection tokens; got 6 of yolos_tiny and 7 of yolos_tiny"),
        (Detections(), {"num_classes": 4}, "must have the same classes; yolos_tiny has 4 and yolos_tiny has 10"),
    ],
)
def test_detectors_that_do_not_go_together_are_refused(option: Any, change: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        option.build(*pair(**change))
    assert "\n" not in str(error.value)
    if "num_classes" in change:
        assert Tokens().build(*pair(**change)) is not None  # tokens know no classes


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_class_scores_beside_boxes_are_not_compared_as_those_of_inputs(role: str) -> None:
    """Of two detectors, and of a detector and a classifier."""
    vit, detector = build(tiny("vit", seed=3)), build(tiny("yolos", num_classes=5))
    pairs = {"student": (detector, build(tiny("yolos", seed=2, num_classes=5))), "teacher": (vit, detector)}
    with pytest.raises(UserError, match="class scores of whole inputs; got yolos_tiny, which finds objects. Use"):
        MaskedKD(*pairs[role])


@pytest.mark.parametrize("name", ["tokens", "detections"])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_classifiers_are_refused(name: str, role: str) -> None:
    student, teacher = pair()
    vit = build(tiny("vit", seed=3))
    pairs = {"student": (vit, teacher), "teacher": (student, Teacher.of(vit, student))}
    with pytest.raises(UserError, match=f"--distill {name} compares what two detectors find; got vit_tiny"):
        getattr(Terms(), name).build(*pairs[role])
