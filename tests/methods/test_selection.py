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
from vitdistill.methods.maskedkd import CRITERIA, MaskedKD, make_criterion
from vitdistill.methods.selection import Criterion, MixedWithRandom, NetworkAttention, Scene, StudentAttention
from vitdistill.models.build import build
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.gather import complement
from vitdistill.types import Capture, TokenGrid


class Brightest(Criterion):
    """A user's own: mean brightness of each patch."""

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        return torch.nn.functional.adaptive_avg_pool2d(scene.images.mean(dim=1), (scene.grid.h, scene.grid.w)).flatten(
            1
        )


class Outgoing(Criterion):
    """Another: the length of the student's hidden states, which it asks for."""

    def capture(self, student):
        return Capture.at(-1, "output")

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        return scene.output.tokens(scene.student.depth - 1).all[:, scene.student.specials :].detach().norm(dim=-1)


STUDENT = build(tiny("deit", seed=1))
TEACHER = Teacher(build(tiny("deit3", seed=2)))
NETWORK = Teacher(build(tiny("registers", seed=3)))
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@dataclass
class Case:
    criterion: Criterion
    random: bool = False


CASES = {
    **{name: Case(make_criterion(name, network=NETWORK), random="random" in name) for name in CRITERIA},
    "student, patch-patch": Case(StudentAttention(0, "patch")),
    "network, first layer": Case(NetworkAttention(NETWORK, 0)),
    "own, of the images": Case(Brightest()),
    "own, of hidden states": Case(Outgoing()),
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
    scores = {name: make_criterion(name, network=NETWORK).scores(scene) for name in ("student", "teacher", "network")}
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
        make_criterion("student+random", random_share=share)


def test_an_unknown_criterion_is_named_with_near_ones():
    with pytest.raises(UserError, match=r"one of student, teacher.*got 'studnet'.*Did you mean 'student'"):
        make_criterion("studnet")


@pytest.mark.parametrize("name", ["network", "network+random"])
def test_a_missing_third_network_is_asked_for(name):
    with pytest.raises(UserError, match=r"needs a third network.*--network"):
        make_criterion(name)


def test_an_impossible_block_is_refused_when_the_method_is_made():
    for criterion in ("student", "student+random", "network"):
        with pytest.raises(UserError, match="has blocks 0 to 2; got 3"):
            MaskedKD(STUDENT, TEACHER, criterion=criterion, saliency_layer=3, network=NETWORK)
