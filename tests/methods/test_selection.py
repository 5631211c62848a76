"""What every masking criterion promises, a user's own included. A new one is one line in CASES."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.methods.selection import ALONE, CRITERIA, MIXED, make_criterion
from vitdistill.methods.selection.attention import NetworkAttention, StudentAttention
from vitdistill.methods.selection.criterion import Attention, Criterion, MixedWithRandom, Scene
from vitdistill.methods.selection.ranked import Ranked
from vitdistill.models.backbone import SaliencyKind
from vitdistill.models.build import build
from vitdistill.models.families.vit import ViT
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.gather import complement
from vitdistill.types import Capture, TokenGrid


class Brightest(Criterion):
    """A user's own: mean brightness of each patch."""

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        return torch.nn.functional.adaptive_avg_pool2d(scene.inputs.mean(dim=1), (scene.grid.h, scene.grid.w)).flatten(
            1
        )


class Longest(Criterion):
    """Another: the length of the student's last tokens, which it asks for."""

    def capture(self, student):
        return Capture.at(-1, "output")

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        return scene.output.tokens(-1).patches.detach().norm(dim=-1)


STUDENT = build(tiny("deit", seed=1))
TEACHER = Teacher(build(tiny("deit3", seed=2)))
NETWORK = Teacher(build(tiny("registers", seed=3)))
LAST = Attention(network=NETWORK)
NAMES = [*CRITERIA, *(f"{name}{MIXED}" for name in CRITERIA if name not in ALONE)]
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@dataclass
class Case:
    criterion: Criterion
    random: bool = False


CASES = {
    **{name: Case(make_criterion(name, LAST), random="random" in name) for name in NAMES},
    "student, patch-patch": Case(StudentAttention(0, "patch")),
    "network, first layer": Case(NetworkAttention(NETWORK, 0)),
    "own, of the images": Case(Brightest()),
    "own, of block outputs": Case(Longest()),
    "own, mixed with random": Case(MixedWithRandom(Brightest(), 0.25), random=True),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def scene_for(criterion: Criterion, grid: TokenGrid | None = None) -> Scene:
    output = STUDENT(IMAGES, capture=criterion.capture(STUDENT))
    return Scene(IMAGES, STUDENT, output, TEACHER, grid or TEACHER.backbone.grid)


def assert_selection(selection: Tensor, k: int, patches: int) -> None:
    assert selection.shape == (len(IMAGES), k) and selection.dtype == torch.int64
    assert bool((selection >= 0).all()) and bool((selection < patches).all())
    assert bool((selection[:, 1:] > selection[:, :-1]).all())  # ascending, hence without repeats


@pytest.mark.parametrize("order", ["top", "bottom"])
@pytest.mark.parametrize("k", [1, 7, 8, 15])
def test_a_selection_is_ascending_without_repeats_and_in_range(case, k, order):
    torch.manual_seed(0)
    assert_selection(case.criterion.select(scene_for(case.criterion), k, order=order), k, 16)


@pytest.mark.parametrize("order", ["top", "bottom"])
def test_the_whole_budget_keeps_every_patch(case, order):
    selection = case.criterion.select(scene_for(case.criterion), 16, order=order)
    assert selection.tolist() == [list(range(16))] * 4


def test_the_same_seed_gives_the_same_patches(case):
    def select(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return case.criterion.select(scene_for(case.criterion), 8)

    assert torch.equal(select(1), select(1))
    assert torch.equal(select(1), select(2)) == (not case.random)


def test_scores_carry_no_gradient(case):
    scores = case.criterion.scores(scene_for(case.criterion))
    assert scores.shape == (4, 16) and scores.dtype == torch.float32 and not scores.requires_grad


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.random])
def test_scores_decide_and_bottom_is_the_complement_of_top(name):
    criterion = CASES[name].criterion
    scene = scene_for(criterion)
    top = criterion.select(scene, 6)
    assert torch.equal(complement(top, 16), criterion.select(scene, 10, order="bottom"))
    scores = criterion.scores(scene)
    assert bool((scores.gather(1, top).amin(1) >= scores.gather(1, complement(top, 16)).amax(1)).all())


def test_criteria_look_at_the_network_that_they_name():
    scene = scene_for(StudentAttention())
    scores = {name: make_criterion(name, LAST).scores(scene) for name in ("student", "teacher", "network")}
    for network, name in ((STUDENT, "student"), (TEACHER.backbone, "teacher"), (NETWORK.backbone, "network")):
        output = network(IMAGES, capture=network.saliency_capture())
        torch.testing.assert_close(scores[name], network.saliency(output), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["student", "network", "own, of the images"])
def test_patches_are_selected_on_the_grid_of_the_masked_network(name):
    criterion = CASES[name].criterion
    assert_selection(criterion.select(scene_for(criterion, TokenGrid(1, 7, 6)), 21), 21, 42)


def test_a_swin_student_ranks_the_patches_of_a_finer_teacher():
    student, teacher = build(tiny("swin")), Teacher(build(tiny("deit", patch_size=4)))
    method = MaskedKD(student, teacher, keep=20)
    step = method(IMAGES, torch.arange(4))
    assert_selection(step.kept, 20, 64)


@settings(max_examples=25, deadline=None)
@given(k=st.integers(1, 15), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_mix_keeps_the_best_and_fills_up_at_random(k, share, seed):
    torch.manual_seed(seed)
    scene = scene_for(Brightest())
    mixed = MixedWithRandom(Brightest(), share).select(scene, k)
    assert_selection(mixed, k, 16)
    best = Brightest().select(scene, k - round(k * share)) if k > round(k * share) else mixed[:, :0]
    assert all(set(best[i].tolist()) <= set(mixed[i].tolist()) for i in range(4))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_and_1_is_refused(share):
    with pytest.raises(UserError, match="random_share must lie in"):
        make_criterion("student+random", LAST, share)


def test_an_unknown_criterion_is_named_with_near_ones():
    with pytest.raises(UserError, match=r"one of student, teacher.*got 'studnet'.*Did you mean 'student'"):
        make_criterion("studnet", LAST)


@pytest.mark.parametrize("name", ["network", "network+random"])
def test_a_missing_third_network_is_asked_for(name):
    with pytest.raises(UserError, match=r"needs a third network.*--network"):
        make_criterion(name, Attention())


def test_an_impossible_block_is_refused_when_the_method_is_made():
    for criterion in ("student", "student+random", "network", "teacher"):
        with pytest.raises(UserError, match="has blocks 0 to 2; got 3"):
            MaskedKD(STUDENT, TEACHER, criterion=criterion, saliency_layer=3, network=NETWORK)


# --- what a criterion asks for --------------------


class Everything(Criterion):
    """Asks for points of every kind, and notes what it gets."""

    asked = Capture(frozenset({(0, "output"), (1, "ffn"), (-1, "qkv"), (2, "attention_residual")}), head=False)

    def __init__(self) -> None:
        self.got: list[Scene] = []

    def capture(self, student):
        return self.asked

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        self.got.append(scene)
        return scene.output.tokens(0).patches.detach().norm(dim=-1)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("mask", ["teacher", "student"])
def test_a_criterion_gets_all_that_it_asked_of_the_student(mask, mixed):
    criterion = Everything()
    method = MaskedKD(
        tiny("deit", seed=1),
        TEACHER,
        keep=3,
        mask=mask,
        criterion=MixedWithRandom(criterion, 0.5) if mixed else criterion,
    )
    method(IMAGES, torch.arange(4))
    (scene,) = criterion.got
    assert criterion.asked.points <= set(scene.output.captured) and scene.output.kept is None
    expected = STUDENT(IMAGES, capture=criterion.asked)
    assert torch.equal(scene.output.tokens(1, "ffn").all, expected.tokens(1, "ffn").all)
    assert torch.equal(scene.output.tokens(0).all, expected.tokens(0).all)


class LengthSalient(ViT):
    """A network whose saliency is read from a block's output."""

    def saliency_capture(self, block: int = -1, kind: SaliencyKind = "cls") -> Capture:
        return Capture.at(block, "output")

    def saliency(self, output, block: int = -1, kind: SaliencyKind = "cls") -> Float[Tensor, "b n"]:
        return output.tokens(block).patches.detach().norm(dim=-1)


@pytest.mark.parametrize("criterion", ["network", "teacher", "student"])
def test_attention_criteria_read_whatever_the_network_takes_saliency_from(criterion):
    network = LengthSalient(tiny("deit", seed=4))
    roles = {"student": STUDENT, "teacher": TEACHER, "network": NETWORK}
    roles |= {criterion: network if criterion == "student" else Teacher(network)}
    student = roles.pop("student")
    method = MaskedKD(
        student, roles["teacher"], criterion=criterion, saliency_layer="first", keep=5, network=roles["network"]
    )
    expected = network(IMAGES, capture=Capture.at(0, "output")).tokens(0).patches.norm(dim=-1)
    assert torch.equal(method(IMAGES, torch.arange(4)).kept, expected.topk(5, dim=1).indices.sort(dim=1).values)


@pytest.mark.parametrize(("layer", "block"), [("first", 0), ("middle", 1), ("last", 2), ("1", 1), (-3, 0), ("-1", 2)])
def test_a_block_is_a_word_or_a_number(layer, block):
    scene = scene_for(StudentAttention(layer))
    assert torch.equal(
        StudentAttention(layer).scores(scene), StudentAttention(block).scores(scene_for(StudentAttention(block)))
    )


def test_a_misspelt_block_is_named_with_near_ones():
    with pytest.raises(UserError, match="or a block number from 0; got 'lst'.*Did you mean 'last'"):
        MaskedKD(STUDENT, TEACHER, saliency_layer="lst")


# --- selectors --------------------


def test_a_selector_says_what_is_masked_and_how_many_patches_are_kept():
    selector = Ranked(keep="1.0->4", network=NETWORK)
    assert selector.masked(STUDENT, TEACHER) is TEACHER.network
    assert [selector.counts(STUDENT, TEACHER, at) for at in (0.0, 0.5, 1.0)] == [(None, None), (None, 10), (None, 4)]
    assert not selector.capture(STUDENT, TEACHER, 0.0).points and selector.capture(STUDENT, TEACHER, 1.0).points
    student = Ranked(keep=4, mask="student")
    assert student.masked(STUDENT, TEACHER) is STUDENT and student.counts(STUDENT, TEACHER, 0.0) == (4, None)
    assert not student.capture(STUDENT, TEACHER, 0.0).points  # its own pass comes after the selection


@pytest.mark.parametrize(
    ("criterion", "passes"), [("student", 0), ("random", 0), ("teacher", 1), ("network+random", 1)]
)
def test_networks_that_rank_are_counted_only_where_patches_are_left_out(criterion, passes):
    selector = Ranked(keep="0:1.0,0.5:4", criterion=criterion, network=NETWORK)
    assert selector.ranking_passes(STUDENT, TEACHER, 0.0) == []
    ranking = selector.ranking_passes(STUDENT, TEACHER, 1.0)
    assert [one.role for one in ranking] == ["ranking"] * passes and not any(one.capture.head for one in ranking)


def test_a_masked_student_runs_to_the_ranking_block_first():
    first, second, teacher = MaskedKD(STUDENT, TEACHER, mask="student", keep=4, saliency_layer=0).passes(0.0)
    assert (first.kept, first.capture.head) == (4, True) and (teacher.role, teacher.kept) == ("teacher", None)
    assert second == ("student", STUDENT, None, Capture.at(0, "qkv", head=False), 1, True)
