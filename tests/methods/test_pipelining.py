"""Steps whose batch comes in parts compute what whole steps compute."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.methods.distillation import Distillation, Lesson
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.methods.pipelining.lanes import lane
from vitdistill.methods.pipelining.pipeline import pipelined, split
from vitdistill.methods.terms.features import Features
from vitdistill.methods.terms.options import Manifold, Terms
from vitdistill.methods.tinymim import TinyMIM
from vitdistill.models.backbone import with_tokens
from vitdistill.models.families import as_network
from vitdistill.models.surgery.drop_path import set_drop_path
from vitdistill.models.teacher import Teacher
from vitdistill.types import Step

BATCH = 5
IMAGES = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(7))
TARGETS = torch.tensor([1, 0, 9, 3, 3])
FEW_ROWS = Terms(manifold=Manifold(rows=20))


def maskedkd(student: str = "deit", teacher: str = "deit3", **options: Any) -> MaskedKD:
    terms = FEW_ROWS if "manifold" in options.get("distill", "") else Terms()
    return MaskedKD(tiny(student, seed=1), tiny(teacher, seed=2, embed_dim=36), terms=terms, **options)


def tinymim(**options: Any) -> TinyMIM:
    return TinyMIM(
        tiny("deit", seed=1), tiny("vit", seed=2, embed_dim=32, num_heads=4), **{"color_jitter": 0.0, **options}
    )


METHODS: dict[str, Callable[[], Distillation]] = {
    "logits": lambda: maskedkd(),
    "logits, two heads": lambda: maskedkd("deit_distilled", distillation="hard"),
    "manifold": lambda: maskedkd(distill="manifold", criterion="random"),
    "attention": lambda: maskedkd(distill="attention+logits", criterion="student+random"),
    "cait": lambda: maskedkd("cait", "cait", distill="manifold+logits", keep="1.0->0.5"),
    "every patch": lambda: maskedkd(keep=1.0),
    "masked student": lambda: maskedkd(mask="student", keep=5, distill="logits+manifold"),
    "network": lambda: maskedkd(criterion="network+random", network=tiny("vit", seed=5)),
    "auto": lambda: maskedkd(criterion="auto"),
    "agree": lambda: maskedkd(keep="agree:0.5"),
    "budget": lambda: maskedkd(keep="budget:0.8@1.0->0.25", criterion="teacher", saliency_layer=0),
    "relations": lambda: tinymim(color_jitter=0.4),
    "features": lambda: tinymim(target="features", mask_ratio=0.5),
}


def prepared(name: str, *, rate: float, dtype: torch.dtype) -> Distillation:
    """A method in training, whose student drops paths and channels, in a number format."""
    method = METHODS[name]()
    if rate:
        set_drop_path(method.student, rate)
        if hasattr(method.student.net, "pos_drop"):
            method.student.net.pos_drop = nn.Dropout(rate)
    method.to(dtype)
    for teacher in method.teachers:
        teacher.network.to(dtype)
    return method.train()


def stepped(method: Distillation, times: int = 1, **options: Any) -> tuple[list[Step], dict[str, Tensor]]:
    """Steps that draw from one seed, and the gradients of the last."""
    torch.manual_seed(3)
    steps = []
    dtype = next(method.parameters()).dtype
    for time in range(times):
        method.zero_grad()
        steps.append(method(IMAGES.to(dtype), TARGETS, time / max(1, times - 1)))
        steps[-1].loss.backward()
    return steps, gradients(method)


def gradients(method: Distillation) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def assert_same(got: Any, expected: Any, dtype: torch.dtype) -> None:
    error = {"rtol": 0, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(got, expected, **error)


def assert_same_steps(method: Distillation, *numbers: int) -> None:
    """In two steps, since the order of draws is known after one; what is drawn afterwards is the same, too."""
    dtype = next(method.parameters()).dtype
    whole = copy.deepcopy(method)
    steps, expected = stepped(whole, times=2)
    after = torch.rand(1)
    for parts in numbers:
        in_parts = pipelined(copy.deepcopy(method), parts)
        got_steps, got = stepped(in_parts, times=2)
        assert torch.equal(torch.rand(1), after)
        for one, other in zip(got_steps, steps, strict=True):
            assert_same(one.loss, other.loss, dtype)
            assert_same(one.terms, other.terms, dtype)
            assert (one.kept is None and other.kept is None) or torch.equal(one.kept, other.kept)
            assert one.measured == other.measured
        assert got.keys() == expected.keys()
        assert_same(got, expected, dtype)
        assert in_parts.remembered() == whole.remembered()


@pytest.mark.parametrize("name", METHODS)
def test_loss_gradients_and_selections_are_those_of_a_whole_step(name):
    assert_same_steps(prepared(name, rate=0.4, dtype=torch.float64), 3)


@pytest.mark.parametrize("name", ["logits", "manifold"])
def test_in_any_number_of_parts(name):
    """Also in more than there are inputs."""
    assert_same_steps(prepared(name, rate=0.0, dtype=torch.float32), 1, 2, BATCH, BATCH + 1)


def test_under_autocast():
    """Which is local to a thread, and in which the teacher's ranking is computed."""
    method = prepared("network", rate=0.4, dtype=torch.float32)
    whole, in_parts = copy.deepcopy(method), pipelined(copy.deepcopy(method), 2)
    with torch.autocast("cpu", torch.bfloat16):
        (expected,), _ = stepped(whole)
        (got,), _ = stepped(in_parts)
    assert torch.equal(got.kept, expected.kept)
    torch.testing.assert_close(got.loss, expected.loss, rtol=2e-2, atol=0)


# --- when the teacher works --------------------


class Watch:
    """Notes when parts of a step begin and end, and can have one wait for another."""

    def __init__(self, method: Distillation) -> None:
        self.heard = threading.Event()
        self.over = threading.Event()
        self.seen: list[str] = []
        for module, name in ((method.student.net, "student"), (method.lessons[0].teacher.network.net, "teacher")):
            module.patch_embed.register_forward_pre_hook(lambda *_, name=name: self.begin(name))
        method.student.net.head.register_forward_hook(lambda *_: self.seen.append("student over"))

    def begin(self, name: str) -> None:
        self.seen.append(name)
        if name == "teacher":
            self.heard.set()
            assert self.over.wait(10), "the student's passes are not made meanwhile"
        elif self.seen.count("student") == self.patience:
            assert self.heard.wait(10), "the teacher has not begun"
        if self.seen.count("student") == 3:
            self.over.set()

    patience = 2


def test_the_teachers_thread_leaves_the_casts_of_the_students_weights(monkeypatch):
    # They are of all threads. Thrown away between two parts, they would make rounding a matter of time.
    cleared: list[str] = []
    clear = torch.clear_autocast_cache
    monkeypatch.setattr(
        torch, "clear_autocast_cache", lambda: cleared.append(threading.current_thread().name) or clear()
    )
    with torch.autocast("cpu", torch.bfloat16):
        pipelined(maskedkd().train(), 2)(IMAGES, TARGETS)
        assert not cleared
    assert cleared == [threading.main_thread().name]


def test_the_teacher_is_on_one_part_while_the_student_is_on_the_next():
    method = pipelined(maskedkd().train(), 3)
    watch = Watch(method)
    method(IMAGES, TARGETS)  # behind which the teacher is asked about a few inputs
    assert watch.seen.index("student over") < watch.seen.index("teacher")
    assert watch.seen.count("student") == 3 <= watch.seen.count("teacher")


@pytest.mark.parametrize("name", ["every patch", "manifold", "network", "features"], ids=lambda name: name)
def test_a_teacher_that_does_not_wait_for_the_students_attention_begins_at_once(name):
    """With drop path from the second step on, when it is known which draws come before its own."""
    method = pipelined(prepared(name, rate=0.4, dtype=torch.float32), 3)
    if isinstance(method.student.net.pos_drop, nn.Dropout):
        method.student.net.pos_drop = nn.Identity()  # draws for tokens, whose number may change
    method(IMAGES, TARGETS, 1.0)
    watch = Watch(method)
    watch.patience = 1
    method(IMAGES, TARGETS, 1.0)
    assert "teacher" in watch.seen


# --- what could go wrong --------------------


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_whatever_fails_is_raised_and_leaves_nothing_behind(who):
    method = pipelined(prepared("logits", rate=0.4, dtype=torch.float32), 3)
    network = method.student if who == "student" else method.lessons[0].teacher.network

    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    handle = network.net.patch_embed.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        method(IMAGES, TARGETS)
    assert "teacher_0" not in {thread.name for thread in threading.enumerate()}
    assert not [module for module in method.modules() if "forward" in vars(module)]
    handle.remove()
    whole = copy.deepcopy(method)
    whole.pipeline = None
    assert_same(stepped(method)[1], stepped(whole)[1], torch.float32)


def test_threads_of_operators_are_shared_and_given_back(monkeypatch):
    told: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    with lane(torch.device("cpu"), None) as teacher:
        assert teacher.send(lambda one: (one, not torch.is_grad_enabled()), IMAGES)() == (IMAGES, True)
    assert sorted(told) == [3, 3, 6] and told[-1] == 6


def test_in_eval_mode_steps_stay_whole(monkeypatch):
    method = pipelined(tinymim(), 2)
    monkeypatch.setattr(method.pipeline, "passes", None)
    assert bool(method.eval()(IMAGES).loss.isfinite())
    with pytest.raises(TypeError):
        method.train()(IMAGES)


def test_recomputed_activations_see_the_same_draws(monkeypatch):
    """Gradient checkpointing runs blocks again in the backward pass: then each part draws for itself."""
    again = pipelined(prepared("logits", rate=0.4, dtype=torch.float64), 2)
    plain = copy.deepcopy(again)
    again.student.net.set_grad_checkpointing(True)
    got = stepped(again)[1]
    assert all(bool(gradient.any()) for gradient in got.values())
    monkeypatch.setattr("vitdistill.methods.pipelining.draws._drawing", lambda _: [])
    assert_same(got, stepped(plain)[1], torch.float64)


def normalised() -> Distillation:
    student = tiny("deit", seed=1)
    student.norm_pre = nn.BatchNorm1d(17)
    return MaskedKD(student, tiny("deit3", seed=2))


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: maskedkd(keep="mass:0.9"), {}, "--keep mass:0.9"),
        (normalised, {}, "norm_pre of .*batch normalisation|batch normalisation; got norm_pre"),
        (lambda: maskedkd(alpha=0.0), {}, "--pipeline needs a teacher"),
        (maskedkd, {"parts": 0}, "pipeline must be at least 1; got 0"),
        (maskedkd, {"teacher_device": "gpu"}, "teacher_device must be cpu or a GPU by its number; got 'gpu'"),
        (maskedkd, {"teacher_device": "cuda:63"}, "teacher_device must be a device of this machine; got cuda:63"),
    ],
    ids=["mass", "batch norm", "no teacher", "no parts", "device", "other device"],
)
def test_what_cannot_be_done_in_parts_is_refused(make, options, words):
    with pytest.raises(UserError, match=words):
        pipelined(make(), **{"parts": 2, **options})


def test_a_teacher_that_draws_is_refused():
    with pytest.raises(UserError, match="--teacher_drop_path"):
        pipelined(tinymim(teacher_drop_path=0.1), 2).train()(IMAGES)


def test_devices_that_cannot_work_side_by_side_are_refused():
    with pytest.raises(UserError, match="got the student on cuda:0, the teacher on the same"):
        lane(torch.device("cuda:0"), None)


@pytest.mark.parametrize(("batch", "parts", "sizes"), [(5, 2, [3, 2]), (8, 4, [2] * 4), (3, 9, [1] * 3), (7, 1, [7])])
def test_parts_differ_by_at_most_one(batch, parts, sizes):
    rows = split(batch, parts)
    assert [len(range(batch)[part]) for part in rows] == sizes
    assert [row for part in rows for row in range(batch)[part]] == list(range(batch))


# --- losses part by part --------------------


@pytest.mark.parametrize("name", ["attention", "agree", "features"])
def test_losses_of_the_parts_add_up_to_that_of_the_step(name):
    method = pipelined(prepared(name, rate=0.4, dtype=torch.float64), 3)
    whole = copy.deepcopy(method)
    whole.pipeline = None
    (step,), expected = stepped(whole)
    torch.manual_seed(3)
    parts = []
    for part in method.pipeline.in_parts(method, IMAGES.double(), TARGETS, 0.0):
        part.loss.backward()
        parts.append(part)
    # Losses are computed in float32, whatever the network's format.
    torch.testing.assert_close(sum(part.loss for part in parts), step.loss)
    for term, value in step.terms.items():
        torch.testing.assert_close(sum(part.terms[term] for part in parts), value)
    torch.testing.assert_close(gradients(method), expected, rtol=1e-5, atol=1e-8)
    assert parts[-1].measured == step.measured and method.remembered() == whole.remembered()


def test_losses_that_compare_samples_are_not_computed_part_by_part():
    method = pipelined(maskedkd(distill="manifold+logits"), 2)
    with pytest.raises(UserError, match="means over the samples of a batch; got manifold. Compute the loss once"):
        next(method.pipeline.in_parts(method, IMAGES, TARGETS))
    student = with_tokens(as_network(tiny("deit", seed=1)))
    teacher = Teacher.of(tiny("deit", seed=2), student)
    method = pipelined(Distillation(student, [Lesson(teacher, [Features(student, teacher.backbone, 2, 2)])]), 2)
    assert len(list(method.pipeline.in_parts(method, IMAGES))) == 2


def test_a_loop_that_ends_early_leaves_no_thread():
    method = pipelined(maskedkd().train(), 3)
    for part in method.pipeline.in_parts(method, IMAGES, TARGETS):
        part.loss.backward()
        break
    del part
    assert "teacher_0" not in {thread.name for thread in threading.enumerate()}
