"""What every term promises. A new term is one line in `TERMS`."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.losses.attention import aggregate, attention_kl, class_log_attention, restrict, to_grid
from vitdistill.losses.manifold import draw_rows, inter_image, intra_image, random_sample
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.methods.terms.attention import AttentionTerm
from vitdistill.methods.terms.detections import DetectionsTerm
from vitdistill.methods.terms.features import ClassToken, Features
from vitdistill.methods.terms.logits import Logits
from vitdistill.methods.terms.manifold import ManifoldTerm
from vitdistill.methods.terms.options import Attention, Manifold
from vitdistill.methods.terms.per_token import PerToken
from vitdistill.methods.terms.relations import Relations
from vitdistill.methods.terms.term import Term, common_patches
from vitdistill.methods.terms.tokens import TokensTerm
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.families import as_network
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.gather import take
from vitdistill.tokens.grids import transfer_features
from vitdistill.types import Capture, Output, Tokens

Make = Callable[[Backbone, Teacher], Term]


@dataclass
class Case:
    """One term, between a student of 3 blocks and a teacher of 4.

    Attributes:
        make: builds it.
        ran: the teacher's blocks whose MLP its pass computes.
        zero: whether a teacher that is the student costs nothing.
        same: whether student and teacher must see the same tokens.
        family: of both networks.
    """

    make: Make
    ran: int
    zero: bool = False
    same: bool = False
    family: str = "deit"


def manifold(student: Backbone, teacher: Teacher, **options: Any) -> ManifoldTerm:
    blocks: dict[str, Any] = {"student_blocks": (0, 1), "teacher_blocks": (0, 1)}
    return ManifoldTerm(student, teacher.backbone, **{**blocks, **options})


def attention(student: Backbone, teacher: Teacher, **options: Any) -> AttentionTerm:
    first, other = (getattr(network, "trunk_depth", None) for network in (student, teacher.backbone))
    blocks: dict[str, Any] = {
        "student_blocks": (0, 2) if first is None else (first, first + 1),
        "teacher_blocks": (0, 2) if other is None else (other, other + 1),
    }
    return AttentionTerm(student, teacher.backbone, **{**blocks, **options})


TERMS: dict[str, Case] = {
    "logits": Case(lambda s, t: Logits(tau=2.0), 4, zero=True),
    "logits, hard": Case(lambda s, t: Logits(distillation="hard"), 4),
    "relations": Case(lambda s, t: Relations(2, 2), 2, zero=True, same=True),
    "relations, scores": Case(lambda s, t: Relations(2, 2, relations="qq", softmax=False), 2, zero=True, same=True),
    "features, output": Case(lambda s, t: Features(s, t.backbone, 2, 2), 3, same=True),
    "features, attention": Case(lambda s, t: Features(s, t.backbone, 1, 2, feature="attention"), 3, same=True),
    "features, keys": Case(lambda s, t: Features(s, t.backbone, -1, 2, feature="k"), 2, same=True),
    "class token": Case(lambda s, t: ClassToken(s, t.backbone, 2, 2), 3),
    "per token": Case(lambda s, t: PerToken(s, t), 4),
    "per token, l1": Case(lambda s, t: PerToken(s, t, name="image", loss="l1", normalise=True), 4),
    "manifold": Case(manifold, 2, zero=True),
    "manifold, last block": Case(lambda s, t: manifold(s, t, student_blocks=[-1], teacher_blocks=[-1]), 4, zero=True),
    "attention": Case(lambda s, t: attention(s, t, cls_weight=0.0), 2, zero=True),
    "attention and class token": Case(lambda s, t: attention(s, t, reduce="mean"), 4),
    "tokens": Case(TokensTerm, 4, family="yolos"),
    "tokens, hungarian": Case(lambda s, t: TokensTerm(s, t, root=False, det_matching="hungarian"), 4, family="yolos"),
    "detections": Case(DetectionsTerm, 4, zero=True, family="yolos"),
    "detections, index": Case(lambda s, t: DetectionsTerm(s, t, det_matching="index"), 4, zero=True, family="yolos"),
}
TEACHER = {"embed_dim": 36, "depth": 4}


@pytest.fixture(params=TERMS)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return TERMS[request.param]


def pair(student: str = "deit", teacher: str = "deit", **teacher_args: Any) -> tuple[Backbone, Teacher]:
    network = with_tokens(as_network(tiny(student, seed=1)))
    return network, Teacher.of(tiny(teacher, seed=2, **{**TEACHER, **teacher_args}), network)


def some_patches(b: int, count: int = 16, k: int = 5) -> Tensor:
    keep = [torch.randperm(count, generator=torch.Generator().manual_seed(i))[:k] for i in range(b)]
    return torch.stack(keep).sort(dim=1).values


def passes(
    term: Term, student: Backbone, teacher: Teacher, images: Tensor, masked: str = "nobody", keep: Tensor | None = None
) -> tuple[Output, Output]:
    """A pass of each, in which nobody, the teacher, the student or both see a selection."""
    own, other = term.captures()
    keep = some_patches(len(images)) if keep is None else keep
    first = student(images, keep=keep if masked in ("student", "both") else None, capture=own)
    return first, teacher(images, keep=keep if masked in ("teacher", "both") else None, capture=other)


def losses(*arguments: Any, **options: Any) -> dict[str, Tensor]:
    """The losses of a term, in which chance draws the same."""
    torch.manual_seed(0)
    return arguments[0](*passes(*arguments, **options))


# --- every term --------------------


@pytest.mark.parametrize("batch", [1, 3])
def test_losses_are_finite_scalars_whoever_is_masked(case, images, batch):
    """A last batch of one among them."""
    student, teacher = pair(case.family, case.family)
    term = case.make(student, teacher)
    for masked in ("nobody", "both") if case.same else ("nobody", "teacher", "student", "both"):
        got = losses(term, student, teacher, images[:batch], masked)
        assert got and set(term.weights) <= set(got)
        for name, loss in got.items():
            assert loss.shape == () and loss.dtype == torch.float32 and bool(loss.isfinite()), (masked, name)
            assert float(loss.detach()) >= -1e-6 and loss.requires_grad, (masked, name)


@pytest.mark.parametrize("masked", ["nobody", "both"])
def test_gradients_reach_the_student_and_the_terms_own_parameters_only(case, images, masked):
    student, teacher = pair(case.family, case.family)
    term = case.make(student, teacher)
    keep = some_patches(3) if masked == "both" else None
    seen = images.clone().requires_grad_()
    own, other = term.captures()
    # The teacher without its guard: even then nothing flows back into it.
    got = term(student(images, keep=keep, capture=own), teacher.network(seen, keep=keep, capture=other))
    sum(got.values()).backward()
    assert seen.grad is None and all(parameter.grad is None for parameter in teacher.network.parameters())
    assert all(bool(parameter.grad.any()) for parameter in term.parameters())
    assert not {id(p) for p in term.parameters()} & {id(p) for n in (student, teacher.network) for p in n.parameters()}


# TinyMIM's terms need queries of all tokens in the last block, or the branches of blocks.
PLAIN = [name for name, case in TERMS.items() if case.family == "deit"]
OF_CAIT = [name for name in PLAIN if not name.startswith(("relations, scores", "features", "class token"))]
ROTARY = ["eva02", "rope_mixed"]  # projections of their own, angles that are learned
REACHED = [
    *((family, name) for family in ("deit", "registers", "qk_norm", "deit_distilled", *ROTARY) for name in PLAIN),
    *(("yolos", name) for name, case in TERMS.items() if case.family == "yolos"),
]
# The softmax of BEiT is not that of queries and keys alone.
OF_BEIT = [name for name in PLAIN if not name.startswith("attention")]


@pytest.mark.parametrize(
    ("family", "name"), [*REACHED, *(("cait", name) for name in OF_CAIT), *(("beit", name) for name in OF_BEIT)]
)
def test_what_a_term_reaches_is_what_autograd_reaches(images, family, name):
    """Every parameter of the student that gets a gradient, and no other."""
    student = with_tokens(as_network(tiny(family, seed=1)))
    teacher = Teacher.of(tiny(family, seed=2, depth=4), student)
    term = TERMS[name].make(student, teacher)
    got = losses(term, student, teacher, images)
    sum(got.values()).backward()
    reached = term.reached(student)
    assert [
        name
        for name, parameter in student.net.named_parameters()
        if (parameter.grad is not None and bool(parameter.grad.any())) != (parameter in reached)
    ] == []


def test_the_teacher_stops_behind_the_last_block_asked(case, images):
    student, teacher = pair(case.family, case.family)
    term = case.make(student, teacher)
    ran: list[str] = []
    for index, block in enumerate(teacher.backbone.blocks):
        block.mlp.register_forward_hook(lambda *_, index=index: ran.append(str(index)))
    getattr(teacher.network.net, "class_embed", teacher.network.net.head).register_forward_hook(
        lambda *_: ran.append("head")
    )
    term(*passes(term, student, teacher, images))
    head = ["head"] if term.captures()[1].head else []
    assert ran == [*(str(index) for index in range(case.ran)), *head]
    assert not (head and case.ran < 4)


def test_a_teacher_that_is_the_student_costs_nothing(case, images):
    student = with_tokens(as_network(tiny(case.family, seed=1, depth=4)))
    teacher = Teacher(copy.deepcopy(student))
    other = Teacher.of(tiny(case.family, seed=2, **TEACHER), student)
    same, different = (
        [float(loss.detach()) for loss in losses(case.make(student, one), student, one, images).values()]
        for one in (teacher, other)
    )
    if case.zero:
        assert max(map(abs, same)) < 1e-6
    assert min(different) > 1e-4


def test_keeping_every_patch_by_number_changes_nothing(case, images):
    student, teacher = pair(case.family, case.family)
    term = case.make(student, teacher)
    every = torch.arange(16).expand(3, -1)
    expected = losses(term, student, teacher, images)
    for masked in ("teacher", "student", "both"):
        got = losses(term, student, teacher, images, masked, every)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_the_order_of_kept_patches_matters_between_images_only(case, images):
    """Also not to the random patches of manifold distillation, as long as all of them are drawn."""
    student, teacher = pair(case.family, case.family)
    term = case.make(student, teacher)
    keep = some_patches(3)
    shuffled = torch.stack(
        [row[torch.randperm(5, generator=torch.Generator().manual_seed(i))] for i, row in enumerate(keep)]
    )
    masked = "both" if case.same else "teacher"
    got, expected = (losses(term, student, teacher, images, masked, order) for order in (shuffled, keep))
    between = [name for name in got if name.endswith("inter")]
    for name in got.keys() - set(between):
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-6)
    assert all(abs(float(got[name] - expected[name])) > 1e-5 for name in between)


def test_a_term_in_half_precision_gives_float32(case, images):
    student, teacher = pair(case.family, case.family)
    term = case.make(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = losses(term, student, teacher, images, "both")
    assert all(loss.dtype == torch.float32 and bool(loss.isfinite()) for loss in got.values())


# --- patches that both saw --------------------


def leaves(output: Output) -> Output:
    """The output with tokens whose gradient can be read."""
    output.captured = {
        asked: Tokens(tokens.all.detach().requires_grad_(), tokens.specials) if isinstance(tokens, Tokens) else tokens
        for asked, tokens in output.captured.items()
    }
    if output.final is not None:
        output.final = Tokens(output.final.all.detach().requires_grad_(), output.final.specials)
    return output


@pytest.mark.parametrize("family", ["deit", "deit_distilled", "registers"])
@pytest.mark.parametrize("make", [manifold, PerToken], ids=["manifold", "per token"])
def test_special_tokens_and_patches_that_the_teacher_did_not_see_get_no_gradient(images, make, family):
    student, teacher = pair(family)
    term = make(student, teacher)
    own, other = passes(term, student, teacher, images, "teacher")
    own = leaves(own)
    sum(term(own, other).values()).backward()
    read = [own.final] if own.final is not None else list(own.captured.values())
    for tokens in read:
        gradient = Tokens(tokens.all.grad, tokens.specials)
        assert gradient.specials == student.specials > 0 and not gradient.special.any()
        seen = gradient.patches.abs().sum(dim=-1) > 0
        assert [row.nonzero().flatten().tolist() for row in seen] == other.kept.tolist()


@pytest.mark.parametrize(("student_patch", "teacher_patch"), [(8, 4), (4, 8)])
def test_patches_are_moved_between_grids(images, student_patch, teacher_patch):
    """To the teacher's grid, or to a masked student's: the map of a selection has holes."""
    student = with_tokens(as_network(tiny("deit", seed=1, patch_size=student_patch)))
    teacher = Teacher.of(tiny("deit3", seed=2, patch_size=teacher_patch), student)
    term = manifold(student, teacher, student_blocks=[1], teacher_blocks=[1], rows=10_000)
    keeps = {
        "teacher": some_patches(3, teacher.grid.count),
        "student": some_patches(3, student.grid.count),
        "nobody": None,
    }
    for masked, keep in keeps.items():
        own, other = passes(term, student, teacher, images, masked, keep)
        mine, theirs = own.tokens(1).patches, other.tokens(1).patches
        if masked == "student":
            theirs = take(transfer_features(theirs, teacher.grid, student.grid), keep)
        else:
            mine = transfer_features(mine, student.grid, teacher.grid)
            mine = mine if keep is None else take(mine, keep)
        got = common_patches(own, own.tokens(1), other, other.tokens(1))
        assert torch.equal(got[0], mine) and torch.equal(got[1], theirs)
        values = term(own, other)
        torch.testing.assert_close(values["manifold_intra"], intra_image(mine, theirs))
        torch.testing.assert_close(values["manifold_inter"], inter_image(mine, theirs))


def test_a_patch_far_from_all_that_a_finer_teacher_saw_gets_no_gradient(images):
    student, teacher = pair(patch_size=4)
    term = manifold(student, teacher)
    corner = torch.tensor([0, 1, 8, 9]).expand(3, -1)  # the upper left patch of the student's 16
    own, other = passes(term, student, teacher, images, "teacher", corner)
    sum(term(leaves(own), other).values()).backward()
    for tokens in own.captured.values():
        seen = Tokens(tokens.all.grad, 1).patches.abs().sum(dim=-1) > 0
        assert [row.nonzero().flatten().tolist() for row in seen] == [[0, 1, 4, 5]] * 3


# --- manifold --------------------


@pytest.mark.parametrize("masked", ["nobody", "teacher"])
@pytest.mark.parametrize("family", ["deit", "deit_distilled", "no_class_token", "cait"])
def test_the_patches_of_caits_trunk_are_compared_with_the_students(images, masked, family):
    """The trunk has no class token, which no count of tokens tells once patches are left out."""
    student, teacher = pair(family, "cait", embed_dim=24)
    term = Manifold(student_blocks=[0, 2], teacher_blocks=[0, 3]).build(student, teacher)
    own, other = passes(term, student, teacher, images, masked)
    got = term(own, other)
    expected = []
    for mine, theirs in ((own.tokens(0), other.tokens(0)), (own.tokens(2), other.tokens(3))):
        assert theirs.specials == 0 and theirs.all.shape[1] == (16 if masked == "nobody" else 5)
        patches = mine.all[:, student.specials :]
        patches = patches if masked == "nobody" else torch.take_along_dim(patches, other.kept[..., None], dim=1)
        expected.append([loss(patches, theirs.all) for loss in (intra_image, inter_image)])
    intra, inter = (torch.stack(values).mean() for values in zip(*expected, strict=True))
    torch.testing.assert_close(got["manifold_intra"], intra)
    torch.testing.assert_close(got["manifold_inter"], inter)


def test_random_patches_are_drawn_anew_for_every_pair(images, monkeypatch):
    drawn: list[Tensor] = []

    def noting(*arguments: Any, **options: Any) -> Tensor:
        drawn.append(draw_rows(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr("vitdistill.methods.terms.manifold.draw_rows", noting)
    student, teacher = pair()
    term = manifold(student, teacher, rows=7)
    own, other = passes(term, student, teacher, images, "teacher")
    got = term(own, other)["manifold_random"]
    assert [len(rows) for rows in drawn] == [7, 7] and not torch.equal(*drawn)
    kept = [(take(own.tokens(block).patches, other.kept), other.tokens(block).patches) for block in (0, 1)]
    expected = [random_sample(*patches, rows) for patches, rows in zip(kept, drawn, strict=True)]
    torch.testing.assert_close(got, torch.stack(expected).mean())


# --- attention --------------------


def rows_of(output: Output, block: int) -> Tensor:
    qkv = output.qkv(block)
    return class_log_attention(qkv.q[:, :, 0], qkv.k)


@pytest.mark.parametrize("heads", [3, 4])
@pytest.mark.parametrize(("student_patch", "teacher_patch"), [(8, 8), (8, 4), (4, 8)])
@pytest.mark.parametrize("masked", ["nobody", "teacher", "student"])
def test_rows_are_brought_to_the_same_tokens_and_heads(images, masked, student_patch, teacher_patch, heads):
    """The steps of the specification, in its order, for every pairing of grids, heads and masks."""
    student = with_tokens(as_network(tiny("deit_distilled", seed=1, patch_size=student_patch)))
    teacher = Teacher.of(tiny("deit", seed=2, patch_size=teacher_patch, embed_dim=12 * heads, num_heads=heads), student)
    term = attention(student, teacher, student_blocks=[2], teacher_blocks=[2], cls_weight=0.0, temperature=5.0)
    keep = {"teacher": some_patches(3, teacher.grid.count), "student": some_patches(3, student.grid.count)}.get(masked)
    own, other = passes(term, student, teacher, images, masked, keep)
    mine, theirs = rows_of(own, 2), rows_of(other, 2)
    if masked == "teacher":
        mine = to_grid(mine, student.grid, teacher.grid, special=2, mode="bilinear")
        mine = restrict(mine, keep, special=2, shared=1)
    else:
        theirs = to_grid(theirs, teacher.grid, student.grid, special=1, mode="bicubic")
        mine = restrict(mine, None, special=2, shared=1)  # its distillation token has no counterpart
        theirs = theirs if keep is None else restrict(theirs, keep, special=1)
    if heads != 3:
        mine, theirs = aggregate(mine, 5.0), aggregate(theirs, 5.0)
    torch.testing.assert_close(term(own, other)["attention"], attention_kl(mine, theirs))


@pytest.mark.parametrize(
    ("family", "other", "shared"),
    [("deit_distilled", "deit_distilled", 2), ("deit_distilled", "registers", 1), ("registers", "deit", 1)],
)
def test_columns_of_distillation_and_register_tokens_stay_where_both_have_them(images, family, other, shared):
    student, teacher = pair(family, other, embed_dim=24)
    term = attention(student, teacher, student_blocks=[1], teacher_blocks=[1], cls_weight=0.0)
    outputs = passes(term, student, teacher, images)
    rows = (restrict(rows_of(one, 1), None, special=one.qkv(1).specials, shared=shared) for one in outputs)
    torch.testing.assert_close(term(*outputs)["attention"], attention_kl(*rows))


def test_every_block_is_distilled_unless_only_the_last_one_is(images):
    student, teacher = pair()
    blocks = {"all": [(0, 0), (1, 2), (2, 3)], "last": [(2, 3)]}  # evenly spaced, the last with the last
    for option, expected in blocks.items():
        assert Attention(blocks=option, cls_weight=0.0).build(student, teacher).pairs == expected
    each = [
        attention(student, teacher, student_blocks=[own], teacher_blocks=[other], cls_weight=0.0)
        for own, other in blocks["all"]
    ]
    parts = torch.stack([losses(term, student, teacher, images)["attention"] for term in each])
    for reduce, expected in (("sum", parts.sum()), ("mean", parts.mean())):
        term = Attention(reduce=reduce).build(student, teacher)
        torch.testing.assert_close(losses(term, student, teacher, images)["attention"], expected)


def test_the_class_tokens_final_feature_is_projected_to_the_teachers(images):
    student, teacher = pair("registers")
    term = Attention().build(student, teacher)
    own, other = passes(term, student, teacher, images, "teacher")
    target = teacher.network.net.norm(
        teacher.backbone(images, keep=other.kept, capture=Capture.at(3, "output")).tokens(3).all
    )[:, 0]
    torch.testing.assert_close(
        term(own, other)["attention_cls"], F.mse_loss(term.project(own.tokens(2).all[:, 0]), target)
    )


# --- refusals --------------------


class Cnn(nn.Sequential):
    num_classes = 10

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


@pytest.mark.parametrize("distill", ["manifold", "attention", "logits+manifold"])
@pytest.mark.parametrize("other", ["swin", "cnn"])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_networks_that_do_not_show_their_patches_are_refused_in_one_line(distill, other, role):
    nets = {"student": tiny("deit", seed=1), "teacher": tiny("deit", seed=2)}
    nets[role] = Cnn() if other == "cnn" else tiny("swin")
    with pytest.raises(
        UserError, match=r"needs networks that show their patches.*; got (swin|Cnn).*or --distill logits"
    ) as error:
        MaskedKD(nets["student"], nets["teacher"], distill=distill, keep=1.0, criterion="random")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_attention_needs_class_tokens(role):
    nets = {"student": tiny("deit", seed=1), "teacher": tiny("deit", seed=2), role: tiny("no_class_token", seed=3)}
    with pytest.raises(UserError, match=r"what class tokens look at, and vit_base.* has none"):
        MaskedKD(nets["student"], nets["teacher"], distill="attention")
    student, teacher = pair(teacher="cait", embed_dim=24)
    words = "no class token, so class saliency needs one of its last 2 blocks"
    with pytest.raises(UserError, match=words):
        attention(student, teacher, teacher_blocks=[0, 1])
    with pytest.raises(UserError, match=words):
        ClassToken(student, teacher.backbone, 2, 0)


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        ([0, 1], [0], r"\[0, 1\] and \[0\]"),
        ([], [], r"at least one; got \[\] and \[\]"),
        ([3], [0], "blocks 0 to 2; got 3"),
    ],
)
@pytest.mark.parametrize("make", [manifold, attention])
def test_blocks_must_pair_up(make, student, teacher, words):
    with pytest.raises(UserError, match=words):
        make(*pair(), student_blocks=student, teacher_blocks=teacher)
