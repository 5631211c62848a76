"""Manifold and attention distillation against the authors' values, through the terms and the method's own step."""

from collections.abc import Iterator

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from golden_values import Golden
from tiny import tiny
from vitdistill.losses.attention import class_log_attention
from vitdistill.methods.distillation import Distillation, Lesson
from vitdistill.methods.selection.selector import Selector
from vitdistill.methods.terms import manifold
from vitdistill.methods.terms.attention import AttentionTerm
from vitdistill.methods.terms.logits import Logits
from vitdistill.methods.terms.manifold import ManifoldTerm
from vitdistill.methods.terms.options import Attention, Manifold
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.families import as_network
from vitdistill.models.teacher import Teacher
from vitdistill.tasks.classification import Classification
from vitdistill.types import NOTHING, Capture, Output, TokenGrid, Tokens

# --- manifold --------------------


class Recorded(Backbone):
    """A network whose pass is what a file says, on the grid of a real one."""

    def __init__(self, net: torch.nn.Module, features: Tensor, specials: int, logits: Tensor) -> None:
        super().__init__(net)
        self.features, self.leading, self.logits = features, specials, logits

    grid = property(lambda self: TokenGrid(1, 4, 4))
    specials = property(lambda self: self.leading)
    blocks = property(lambda self: list(self.net.blocks))
    embed = run_blocks = head = saliency = read_qkv = None

    def forward(self, inputs: Tensor, *, keep: Tensor | None = None, capture: Capture = NOTHING) -> Output:
        assert keep is None and {point for _, point in capture.points} <= {"output"}
        output = Output(prediction=self.logits if capture.head else None, grid=self.grid)
        output.captured = {
            (block, point): Tokens(self.features[self.block_index(block)], self.leading)
            for block, point in capture.points
        }
        return output


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Rows that the term draws, in their order, in place of random ones."""
    rows: list[Tensor] = []

    def draw(count: int, limit: int, *, device: torch.device) -> Tensor:
        assert device == torch.device("cpu")
        return rows.pop(0)[: min(count, limit)]

    monkeypatch.setattr(manifold, "draw_rows", draw)
    yield rows
    assert not rows


def recorded(case: Golden) -> tuple[Recorded, Recorded]:
    """Student and teacher, whose features are those of the file."""
    inputs = case.inputs
    depth = {"depth": 6, "embed_dim": 24}
    student = Recorded(
        tiny("deit", **depth),
        inputs["student_features"].requires_grad_(),
        case.hyper["student_extra_tokens"],
        inputs["student_logits"],
    )
    return student, Recorded(tiny("deit", **depth), inputs["teacher_features"], 0, inputs["teacher_logits"])


def test_manifold(drawn):
    """Terms of each pair, weighted sums, the whole loss, and the gradient of the first pair's features."""
    case = Golden("manifold_a")
    hyper = case.hyper
    student, teacher = recorded(case)
    term = ManifoldTerm(
        student,
        teacher,
        student_blocks=hyper["s_id"],
        teacher_blocks=hyper["t_id"],
        rows=hyper["K"],
        weight=hyper["beta"],
        intra=hyper["w_patch"],
        inter=hyper["w_sample"],
        random=hyper["w_rand"],
    )
    scores = Logits(tau=hyper["tau"])
    scores.weights = {"kd": hyper["alpha"]}
    method = Distillation(
        student,
        [Lesson(Teacher(teacher), [scores, term])],
        task=Classification(student.logits.shape[1]),
        task_weight=1 - hyper["alpha"],
    )
    drawn += list(case.inputs["permutations"])
    images = torch.zeros(3, 3, 32, 32)  # which the recorded networks do not look at
    step = method(images, case.inputs["labels"])
    case.check("loss_base", method.task_weight * step.terms["ce"])
    case.check("loss_dist", method.weights["kd"] * step.terms["kd"])
    names = {"patch": "manifold_intra", "sample": "manifold_inter", "rand": "manifold_random"}
    for theirs, ours in names.items():
        case.check(f"loss_mf_{theirs}", method.weights[ours] * step.terms[ours])
    case.check("loss_total", step.loss)
    step.loss.backward()
    gradient = student.features.grad[hyper["s_id"][0]]
    case.check("grad_student_features_first_pair", gradient)
    assert torch.count_nonzero(gradient[:, : hyper["student_extra_tokens"]]) == 0

    for pair, blocks in enumerate(zip(hyper["s_id"], hyper["t_id"], strict=True)):
        drawn.append(case.inputs["permutations"][pair])
        alone = ManifoldTerm(
            student, teacher, student_blocks=blocks[:1], teacher_blocks=blocks[1:], rows=hyper["K"], weight=1.0
        )
        asked, wanted = alone.captures()
        losses = alone(student(images, capture=asked), teacher(images, capture=wanted))
        for theirs, ours in names.items():
            case.check(f"pair{pair}_{theirs}", losses[ours])
    assert case.checked == set(case.expected)


def test_the_options_are_the_authors_by_default():
    """K = 192 random patches, weights 4, 0.1 and 0.2, and the first and last four blocks of 12 and of CaiT's 24."""
    options = Manifold()
    assert (options.intra, options.inter, options.random, options.rows, options.weight) == (4.0, 0.1, 0.2, 192, 1.0)
    student = with_tokens(as_network(tiny("deit", depth=12)))
    for teacher, blocks in (
        (tiny("cait", depth=24), [0, 1, 2, 3, 20, 21, 22, 23]),
        (tiny("deit", seed=1, depth=12), [0, 1, 2, 3, 8, 9, 10, 11]),
    ):
        term = options.build(student, Teacher.of(teacher, student))
        assert term.pairs == list(zip([0, 1, 2, 3, 8, 9, 10, 11], blocks, strict=True))
    assert Attention() == Attention(weight=0.1, cls_weight=1.0, blocks="all", reduce="sum", temperature=10.0)


# --- attention --------------------


def network(case: Golden, role: str) -> Backbone:
    """A network without a head; the student's own final norm is not in the file, and nothing reads it."""
    sizes = case.hyper[role]
    net = VisionTransformer(
        img_size=case.hyper["img_size"],
        patch_size=sizes["patch"],
        embed_dim=sizes["dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        mlp_ratio=case.hyper["mlp_ratio"],
        num_classes=0,
    )
    weights = {name: value for name, value in case.part(role).items() if name.startswith(tuple(net.state_dict()))}
    if role == "student":
        weights = {name: value for name, value in weights.items() if not name.startswith("norm.")}
    missing, unexpected = net.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("norm.") for name in missing) and (role == "student") == bool(missing)
    return with_tokens(as_network(net.eval()))


def with_projector(case: Golden, term: AttentionTerm) -> AttentionTerm:
    """The term with the file's projector: LayerNorm, linear maps with GELU between, and the norm behind them."""
    weights = case.part("student")
    projection = {name.removeprefix("proj."): value for name, value in weights.items() if name.startswith("proj.")}
    last = 1 + max(int(name.partition(".")[0]) for name in projection)
    projection |= {f"{last}.{name}": weights[f"norm.{name}"] for name in ("weight", "bias")}
    term.project.load_state_dict(projection)
    return term


class AllByNumber(Selector):
    """Every patch, as a selection."""

    def for_teacher(self, inputs, output, student, teacher, progress):
        return torch.arange(teacher.grid.count).expand(len(inputs), -1)


@pytest.mark.parametrize(
    ("name", "mode", "selector"),
    [
        ("attention_distill_a", "interpolate", Selector),
        ("attention_distill_heads_a", "aggregation", Selector),
        ("attention_distill_heads_a", "aggregation", AllByNumber),
    ],
)
def test_attention(name, mode, selector):
    """Both losses and the gradients that reach the student's first and last weights, in the method's step."""
    case = Golden(name)
    hyper = case.hyper
    student, teacher = network(case, "student"), network(case, "teacher")
    blocks = {"student_blocks": [student.depth - 1], "teacher_blocks": [teacher.depth - 1]}
    options = {"weight": hyper["weight_attn"], "cls_weight": hyper["weight_cls"], "temperature": hyper["attn_T"]}
    term = with_projector(case, AttentionTerm(student, teacher, **blocks, **options))
    guide = Teacher(teacher)  # the reference gives both networks the image as it is
    method = Distillation(student, [Lesson(guide, [term])], selector=selector())
    images = case.inputs["image"]
    step = method(images)
    case.check("loss_cls_mse", step.terms["attention_cls"])
    case.check(f"kl_{mode}", step.terms["attention"])
    case.check(f"loss_total_{mode}", step.loss)
    step.loss.backward()
    case.check(f"grad_norm_last_qkv_weight_{mode}", student.blocks[-1].attn.qkv.weight.grad.norm())
    case.check(f"grad_norm_patch_embed_weight_{mode}", student.net.patch_embed.proj.weight.grad.norm())
    assert all(parameter.grad is None for parameter in teacher.parameters())

    own = student(images, capture=term.captures()[0])
    other = guide(images, capture=term.captures()[1])
    for role, output in (("student", own), ("teacher", other)):
        qkv = output.qkv(student.depth - 1 if role == "student" else teacher.depth - 1)
        case.check(f"{role}_cls_attention", class_log_attention(qkv.q[:, :, 0], qkv.k).exp())
    case.check("student_cls_projected", term.project(own.tokens(student.depth - 1).special[:, 0]))
    case.check("teacher_cls", other.final.special[:, 0])
    assert case.checked == set(case.expected)
