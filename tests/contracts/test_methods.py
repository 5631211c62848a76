"""What every method promises, in each of its variants. A new method or variant is one line in `METHODS`."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.methods.dino import DINO
from vitdistill.methods.distillation import Distillation, Lesson
from vitdistill.methods.g2sd import G2SD
from vitdistill.methods.mae import MAE
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.methods.method import Method
from vitdistill.methods.mvd import MVD, FeatureDecoder, per_token_distillation
from vitdistill.methods.options import DinoHead
from vitdistill.methods.pipelining.pipeline import pipelined
from vitdistill.methods.selection.criterion import Criterion
from vitdistill.methods.selection.ranked import Ranked
from vitdistill.methods.selection.selector import SameMask
from vitdistill.methods.supervised import Supervised
from vitdistill.methods.terms.features import Features
from vitdistill.methods.terms.logits import Logits
from vitdistill.methods.terms.manifold import ManifoldTerm
from vitdistill.methods.terms.options import Attention, Manifold, Terms
from vitdistill.methods.tinymim import PixelDecoder, TinyMIM
from vitdistill.methods.videomae import VideoMAE
from vitdistill.models.autoencoder import MaskedAutoencoder
from vitdistill.models.backbone import with_tokens
from vitdistill.models.build import build
from vitdistill.models.families import as_network
from vitdistill.models.families.linear_only import linear_only
from vitdistill.models.families.video_vit import VideoViT, video_vit
from vitdistill.models.merged import Merged
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.tasks.classification import Classification
from vitdistill.tokens.masking import Masking
from vitdistill.types import Capture, Step

TARGETS = torch.tensor([1, 0, 9])
SOFT = torch.rand(3, 10, generator=torch.Generator().manual_seed(3)).softmax(dim=-1)


def maskedkd(student: str = "deit", teacher: str = "deit3", **options: Any) -> MaskedKD:
    return MaskedKD(tiny(student, seed=1), tiny(teacher, seed=2), **options)


def tinymim_qk_norm(**options: Any) -> TinyMIM:
    """A student that normalises q and k per head, so that its heads stay: the teacher has as many."""
    return TinyMIM(tiny("qk_norm", seed=1), tiny("qk_norm", seed=2, depth=4), **options)


def tinymim(student: str = "deit", teacher: str = "vit", **options: Any) -> TinyMIM:
    return TinyMIM(tiny(student, seed=1), tiny(teacher, seed=2, embed_dim=32, num_heads=4, depth=4), **options)


MAE_DECODER: dict[str, Any] = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}


def mae(student: str = "vit", **options: Any) -> MAE:
    return MAE(tiny(student, seed=1), **MAE_DECODER, **options)


def autoencoder(name: str = "vit", **options: Any) -> MaskedAutoencoder:
    """A masked autoencoder as a teacher, with a decoder of three blocks."""
    torch.manual_seed(4)
    method = MAE(tiny(name, seed=2, **options), decoder_width=20, decoder_depth=3, decoder_heads=2)
    return MaskedAutoencoder(method.student, method.decoder)


def g2sd(student: str = "vit", teacher: str = "vit", **options: Any) -> G2SD:
    return G2SD(tiny(student, seed=1), autoencoder(teacher, embed_dim=32, num_heads=4), **MAE_DECODER, **options)


DECODER = FeatureDecoder(width=16, depth=1, heads=2)


def clip_net(seed: int, **options: Any) -> nn.Module:
    """A video ViT over clips of four frames of 32 pixels: 2 x 4 x 4 tokens."""
    torch.manual_seed(seed)
    sizes = {"img_size": 32, "patch_size": 8, "frames": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return video_vit(**{**sizes, "num_classes": 10, **options})


def videomae(**options: Any) -> VideoMAE:
    sizes = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "mask_ratio": 0.75}
    return VideoMAE(clip_net(1), **{**sizes, **options})


def image_teacher_net() -> nn.Module:
    return tiny("vit", seed=2, embed_dim=32, num_heads=4)


def mvd(**options: Any) -> MVD:
    teachers = {
        "image_teacher": image_teacher_net(),
        "video_teacher": clip_net(3, embed_dim=48, positions="sinusoid_1d"),
    }
    return MVD(clip_net(1), **{**teachers, "mask_ratio": 0.75, "decoder": DECODER, **options})


def frozen(family: str, features: str = "auto", **options: Any) -> Network:
    """A student of which a linear classifier trains, and nothing else."""
    torch.manual_seed(0)
    return linear_only(build(tiny(family, seed=1, **options)), 10, features)


def two_teachers() -> Distillation:
    """Each of two teachers with a term of its own, and patches ranked by the student for both."""
    student = with_tokens(as_network(tiny("deit", seed=1)))
    first, second = (Teacher.of(tiny(name, seed=seed), student) for name, seed in (("deit3", 2), ("cait", 3)))
    manifold = ManifoldTerm(student, second.backbone, student_blocks=(0, 2), teacher_blocks=(0, 2))
    lessons = [Lesson(first, [Logits()]), Lesson(second, [manifold])]
    return Distillation(student, lessons, task=Classification(10), selector=Ranked(keep=5))


def without_labels() -> Distillation:
    """Two terms in the first blocks, beneath the block that ranks the patches."""
    student = with_tokens(as_network(tiny("deit", seed=1)))
    teacher = Teacher.of(tiny("deit3", seed=2), student)
    blocks = {"student_blocks": [0], "teacher_blocks": [1]}
    terms = [ManifoldTerm(student, teacher.backbone, **blocks), Features(student, teacher.backbone, 1, 0)]
    method = Distillation(student, [Lesson(teacher, terms)], selector=SameMask(Masking(0.5)))
    method.freeze_unreached()
    return method


def without_labels_ranked() -> Distillation:
    """The student runs to the block that ranks the patches, and trains the blocks that are compared."""
    student = with_tokens(as_network(tiny("deit", seed=1)))
    teacher = Teacher.of(tiny("deit3", seed=2), student)
    term = ManifoldTerm(student, teacher.backbone, student_blocks=[0], teacher_blocks=[1])
    method = Distillation(student, [Lesson(teacher, [term])], selector=Ranked(keep=5))
    method.freeze_unreached()
    return method


def dino(student: str = "vit", *, globals: int = 2, locals: int = 3, **options: Any) -> DINO:
    sizes = {"globals": globals, "locals": locals, "local_size": (16, 16), "head": DinoHead(24, 16, 8)}
    return DINO(tiny(student, seed=1), **{**sizes, **options})


PIXELS = PixelDecoder(width=16, depth=1, heads=2)
METHODS: dict[str, Callable[[], Method]] = {
    "supervised": lambda: Supervised(tiny("deit", seed=1), task=Classification(10, smoothing=0.1)),
    "patch dropout": lambda: Supervised(tiny("deit", seed=1), patch_drop=0.5),
    "patch dropout, cait": lambda: Supervised(tiny("cait", seed=1), patch_drop=0.7),
    "patch dropout, clips": lambda: Supervised(clip_net(1), patch_drop=0.75),
    "maskedkd": maskedkd,
    "full teacher": lambda: maskedkd(keep=1.0),
    "hard": lambda: maskedkd(distillation="hard"),
    "smoothing and tau": lambda: maskedkd(smoothing=0.1, tau=4.0),
    "no labels": lambda: maskedkd(alpha=1.0),
    "labels only": lambda: maskedkd(alpha=0.0),
    "schedule": lambda: maskedkd(keep="1.0->0.25"),
    "random": lambda: maskedkd(criterion="random"),
    "teacher's attention": lambda: maskedkd(criterion="teacher", saliency="patch", saliency_layer=0),
    "third network": lambda: maskedkd(criterion="network+random", network=tiny("vit", seed=5)),
    "bottom": lambda: maskedkd(order="bottom"),
    "masked student": lambda: maskedkd(mask="student", keep=5),
    "masked student, random": lambda: maskedkd(mask="student", criterion="random"),
    "two heads": lambda: maskedkd("deit_distilled"),
    "nkd": lambda: maskedkd(distillation="nkd", tau=2.0),
    "g2sd, specific stage": lambda: maskedkd("dist_token", "mae_mean_pool", distillation="hard", keep=12),
    "g2sd, specific stage, masked student": lambda: maskedkd("dist_token", mask="student", distill="logits+manifold"),
    "cait teacher": lambda: maskedkd(teacher="cait"),
    "cait student": lambda: maskedkd("cait"),
    "dinov3 teacher": lambda: maskedkd(teacher="dinov3"),
    "beit teacher and student": lambda: maskedkd("beit", "beit", distill="logits+manifold"),
    "masked beit student": lambda: maskedkd("beit", mask="student"),
    "rotary student with learned angles": lambda: maskedkd("rope_mixed", "eva02", distill="logits+manifold"),
    "attention pooling ranks": lambda: maskedkd("perception", "perception", saliency="pool"),
    "attention, grouped heads": lambda: maskedkd("sapiens", "dinov3", distill="attention"),
    "swin student": lambda: maskedkd("swin"),
    "swin teacher": lambda: maskedkd(teacher="swin", keep=1.0),
    "convvit teacher": lambda: maskedkd(teacher="convvit", distill="logits+manifold"),
    "convvit student": lambda: maskedkd("convvit"),
    "sound": lambda: maskedkd("ast", "ast", saliency="cls+dist"),
    "merging teacher": lambda: MaskedKD(tiny("deit", seed=1), Merged.over(tiny("deit3", seed=2), "4:-1"), keep=1.0),
    "merging cait teacher": lambda: MaskedKD(tiny("deit", seed=1), Merged.over(tiny("cait", seed=2), 4), keep=1.0),
    "clip student, mean-pooled teacher": lambda: maskedkd("clip", "mae_mean_pool"),
    "manifold": lambda: maskedkd(distill="manifold"),
    "manifold, whole teacher": lambda: maskedkd(distill="manifold", keep=1.0),
    "manifold, cait teacher": lambda: maskedkd("deit_distilled", "cait", distill="manifold"),
    "manifold, cait student": lambda: maskedkd("cait", distill="manifold"),
    "manifold and logits": lambda: maskedkd(
        "deit_distilled",
        distill="logits+manifold",
        alpha=1.0,
        terms=Terms(manifold=Manifold(student_blocks=[0], teacher_blocks=[1])),
    ),
    "manifold, logits of no weight": lambda: maskedkd(distill="logits+manifold", alpha=0.0),
    "manifold, finer teacher": lambda: MaskedKD(
        tiny("deit", seed=1), tiny("deit", seed=2, patch_size=4), distill="manifold", keep=20
    ),
    "manifold, masked student": lambda: maskedkd(distill="manifold", mask="student"),
    "manifold, masked student, finer teacher": lambda: MaskedKD(
        tiny("deit", seed=1), tiny("deit", seed=2, patch_size=4), distill="manifold", mask="student"
    ),
    "attention": lambda: maskedkd(distill="attention"),
    "attention, whole teacher": lambda: maskedkd(distill="attention", keep=1.0),
    "attention, distilled student": lambda: maskedkd("deit_distilled", distill="attention"),
    "attention, distilled teacher": lambda: maskedkd(teacher="deit_distilled", distill="attention"),
    "attention, cait teacher": lambda: maskedkd(teacher="cait", distill="attention"),
    "attention, cait student": lambda: maskedkd("cait", distill="attention"),
    "attention, last block, other heads, finer teacher": lambda: MaskedKD(
        tiny("deit", seed=1),
        tiny("deit", seed=2, patch_size=4, embed_dim=32, num_heads=4, depth=4),
        distill="attention",
        terms=Terms(attention=Attention(blocks="last", cls_weight=0.0)),
    ),
    "attention, masked student": lambda: maskedkd(distill="attention", mask="student"),
    "attention, manifold and logits": lambda: maskedkd(distill="attention+logits+manifold"),
    "attention, qk norm": lambda: maskedkd("qk_norm", "registers", distill="attention"),
    "two teachers": lambda: two_teachers(),
    "no labels, the same mask": lambda: without_labels(),
    "no labels, ranked": lambda: without_labels_ranked(),
    "linear only": lambda: MaskedKD(frozen("vit", depth=4), tiny("deit3", seed=2), keep=5),
    "linear only, mean of patches, masked student": lambda: MaskedKD(
        frozen("dinov3", "cls+mean"), tiny("deit3", seed=2), keep=5, mask="student"
    ),
    "in parts": lambda: pipelined(maskedkd(distill="logits+manifold"), 2),
    "in parts, random": lambda: pipelined(maskedkd(criterion="random"), 3),
    "clips": lambda: MaskedKD(clip_net(1), clip_net(3, embed_dim=48), saliency="patch"),
    "clips, manifold": lambda: MaskedKD(clip_net(1), clip_net(3, depth=3), distill="manifold", keep=0.25),
    "tinymim": tinymim,
    "tinymim, all relations": lambda: tinymim(relations="qk+vv+qq+kk", align_heads="all"),
    "tinymim, no softmax": lambda: tinymim(softmax=False, teacher_block=2),
    "tinymim, output": lambda: tinymim(target="features"),
    "tinymim, attention": lambda: tinymim(target="features", feature="attention"),
    "tinymim, attention, residual": lambda: tinymim(target="features", feature="attention", residual=True),
    "tinymim, ffn": lambda: tinymim(target="features", feature="ffn"),
    "tinymim, qkv": lambda: tinymim(target="features", feature="qkv"),
    "tinymim, class token": lambda: tinymim(target="cls"),
    "tinymim, masked": lambda: tinymim(mask_ratio=0.5),
    "tinymim, masked, pixels": lambda: tinymim(mask_ratio=0.75, pixels=True, pixel_decoder=PIXELS),
    "tinymim, noisy teacher": lambda: tinymim(teacher_drop_path=0.1),
    "tinymim, masked, in parts": lambda: pipelined(tinymim(mask_ratio=0.5), 2),
    "tinymim, two heads": lambda: tinymim("deit3", "vit"),
    "tinymim, beit teacher": lambda: TinyMIM(tiny("deit", seed=1), tiny("beit", seed=2)),
    "tinymim, dinov3 teacher": lambda: tinymim(teacher="dinov3"),
    "tinymim, dinov3 teacher, features, masked": lambda: tinymim(teacher="dinov3", target="features", mask_ratio=0.5),
    "tinymim, rotary student": lambda: TinyMIM(tiny("rope_mixed", seed=1), tiny("dinov3", seed=2), relations="vv"),
    "tinymim, clips": lambda: TinyMIM(clip_net(1), clip_net(3, embed_dim=48)),
    "tinymim, qk norm": lambda: tinymim_qk_norm(),
    "tinymim, qk norm, values": lambda: tinymim_qk_norm(relations=("vv",)),
    "tinymim, qk norm, queries": lambda: tinymim_qk_norm(relations=("qq", "vv")),
    "tinymim, qk norm, feature v": lambda: tinymim_qk_norm(target="features", feature="v"),
    "tinymim, qk norm, values, pixels": lambda: tinymim_qk_norm(
        relations=("vv",), mask_ratio=0.75, pixels=True, pixel_decoder=PIXELS
    ),
    "mae": mae,
    "videomae": lambda: videomae(),
    "videomae, plain pixels, random mask": lambda: videomae(norm_pix=False, mask="random"),
    "videomae, whole frames hidden": lambda: videomae(mask_ratio=0.5, mask="frame", masks_per_clip=2),
    "mvd": lambda: mvd(),
    "mvd, image teacher": lambda: mvd(video_teacher=None),
    "mvd, video teacher": lambda: mvd(image_teacher=None, normalise=True, loss="l1"),
    "mvd, pixels, four masks": lambda: mvd(pixel_weight=0.5, masks_per_clip=4),
    "mvd, its own average": lambda: mvd(image_teacher=None, video_teacher=None, bootstrap=0.9),
    "mvd, images": lambda: MVD(
        tiny("vit", seed=1), image_teacher=image_teacher_net(), mask_ratio=0.75, mask="random", decoder=DECODER
    ),
    "mvd, cait": lambda: MVD(
        tiny("cait", seed=1), image_teacher=tiny("cait", seed=2), mask_ratio=0.75, mask="random", decoder=DECODER
    ),
    "mvd, cait image teacher": lambda: mvd(image_teacher=tiny("cait", seed=2), video_teacher=None),
    "mvd, dinov3 image teacher": lambda: mvd(image_teacher=tiny("dinov3", seed=2), video_teacher=None),
    "per token": lambda: per_token_distillation(
        clip_net(1), image_teacher=image_teacher_net(), video_teacher=clip_net(3), video_weight=0.5
    ),
    "per token, images": lambda: per_token_distillation(tiny("deit", seed=1), image_teacher=image_teacher_net()),
    "per token, cait": lambda: per_token_distillation(
        tiny("cait", seed=1), image_teacher=tiny("cait", seed=2), loss="l2"
    ),
    "g2sd": lambda: g2sd(),
    "g2sd, masked patches, other special tokens": lambda: g2sd("registers", supervise="masked", teacher_block=3),
    "g2sd, cait": lambda: G2SD(tiny("cait", seed=1), autoencoder("cait"), **MAE_DECODER, teacher_block=1),
    "dino, masked": lambda: dino(keep=10),
    "dino, masked at random, lengths learned": lambda: dino(
        keep="1.0->0.5", criterion="student+random", head=DinoHead(24, 16, 8, norm_last=False)
    ),
    "dino, three large views": lambda: dino("deit", globals=3, locals=0, keep=5, criterion="teacher"),
    "dino, one large view, positions of timm": lambda: dino("registers", globals=1, locals=1, local_positions="timm"),
    "mae, plain pixels": lambda: mae(norm_pix=False, mask_ratio=0.5),
    "mae, no class token": lambda: MAE(tiny("no_class_token", seed=1, fc_norm=False), **MAE_DECODER),
    "mae, registers": lambda: mae("registers"),
    "mae, cait": lambda: mae("cait"),
    "mae, rotary": lambda: mae("dinov3"),
}


# What a method may learn besides the student.
EXTRA: dict[type[Method], tuple[str, ...]] = {
    Distillation: ("terms",),
    MaskedKD: ("terms",),
    TinyMIM: ("terms", "decoder"),
    MAE: ("decoders",),
    VideoMAE: ("decoders",),
    MVD: ("decoders", "average"),
    G2SD: ("decoders",),
    DINO: ("head", "average", "watched"),
}
# The names under which losses are reported.
LOSSES = {
    *("ce", "kd", "qk", "vv", "qq", "kk", "q", "k", "v", "output", "attention", "ffn", "pixels", "image", "video"),
    *("attention_cls", "manifold_intra", "manifold_inter", "manifold_random", "hidden", "dino"),
}


# Combinations of parts that others have by themselves: only the slow tests hold these to all promises.
RARE = {
    "patch dropout, cait",
    "masked student, random",
    "masked beit student",
    "rotary student with learned angles",
    "attention, grouped heads",
    "convvit student",
    "merging cait teacher",
    "g2sd, specific stage, masked student",
    "manifold, cait student",
    "manifold, masked student, finer teacher",
    "manifold, logits of no weight",
    "attention, distilled teacher",
    "attention, cait student",
    "attention, masked student",
    "linear only, mean of patches, masked student",
    "in parts, random",
    "tinymim, attention",
    "tinymim, ffn",
    "tinymim, qkv",
    "tinymim, dinov3 teacher, features, masked",
    "tinymim, qk norm, queries",
    "tinymim, qk norm, values, pixels",
    "tinymim, masked, in parts",
    "mvd, cait image teacher",
    "mvd, dinov3 image teacher",
    "per token, cait",
    "g2sd, cait",
    "dino, three large views",
    "dino, one large view, positions of timm",
    "mae, cait",
    "videomae, whole frames hidden",
    "tinymim, clips",
}
PARAMS = [pytest.param(name, marks=pytest.mark.slow if name in RARE else ()) for name in METHODS]


@pytest.fixture(params=PARAMS)
def method(request: pytest.FixtureRequest) -> Method:
    torch.manual_seed(0)
    return METHODS[request.param]().train()


@pytest.fixture
def images(request: pytest.FixtureRequest, images: Tensor) -> Any:
    """Three images, three clips for a method over clips, or the views of three images for one over views."""
    method = request.getfixturevalue("method") if "method" in request.fixturenames else None
    noise = torch.Generator().manual_seed(7)
    if method is not None and isinstance(method.student, VideoViT):
        return torch.randn(3, 3, 4, 32, 32, generator=noise)
    if isinstance(method, DINO):
        sizes = [32] * method.globals + [16] * method.locals
        return tuple(torch.randn(3, 3, size, size, generator=noise) for size in sizes)
    return images


def teacher_of(method: MaskedKD) -> Teacher:
    assert method.teacher is not None
    return method.teacher


# --- every method --------------------


@pytest.mark.parametrize("targets", [TARGETS, SOFT], ids=["labels", "soft"])
def test_the_loss_is_a_finite_scalar_with_gradient_to_every_parameter(method, images, targets):
    step = method(images, targets, 0.5)
    assert isinstance(step, Step) and step.loss.shape == () and bool(step.loss.isfinite())
    step.loss.backward()
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert not [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
    assert sum(bool(p.grad.any()) for p in trained.values()) > 0.9 * len(trained)


def test_what_is_frozen_is_what_the_loss_does_not_reach(method, images):
    fixed = {"pos_embed"} if isinstance(method.student, VideoViT) else set()
    frozen = {
        name: parameter
        for name, parameter in method.student.net.named_parameters()
        if not parameter.requires_grad and name not in fixed
    }
    for parameter in frozen.values():
        parameter.requires_grad_(True)
    method(images, TARGETS, 0.5).loss.backward()
    assert not [name for name, parameter in frozen.items() if parameter.grad is not None and parameter.grad.any()]


def test_terms_are_detached_finite_scalars_and_the_prediction_is_the_students(method, images):
    step = method(images, TARGETS)
    assert step.terms and set(step.terms) <= LOSSES
    assert all(t.shape == () and not t.requires_grad and bool(t.isfinite()) for t in step.terms.values())
    if method.task is not None:
        assert step.prediction.shape == (3, 10) and step.prediction.requires_grad
    else:
        losses = []
        for targets in (TARGETS, SOFT):
            torch.manual_seed(0)
            losses.append(copy.deepcopy(method)(images, targets).loss)  # a step of DINO moves its centre
        assert torch.equal(*losses) and step.prediction is None


def test_a_method_holds_the_student_and_nothing_else(method):
    names = set(method.state_dict())
    own = {name.removeprefix("student.net.") for name in names if name.startswith("student.")}
    assert own == set(method.student.net.state_dict())
    assert {name.partition(".")[0] for name in names} <= {"student", *EXTRA.get(type(method), ())}
    if getattr(method, "average", None) is not None:
        return  # a teacher that is the student's own average is state that a run has to resume
    held = {id(parameter) for parameter in method.parameters()}
    for teacher in method.teachers:
        assert not held & {id(parameter) for parameter in teacher.network.parameters()}


def test_teachers_stay_frozen_and_in_eval_mode(method, images):
    method.train()
    before = [copy.deepcopy(teacher.network.state_dict()) for teacher in method.teachers]
    method(images, TARGETS).loss.backward()
    for teacher, state in zip(method.teachers, before, strict=True):
        noisy = DropPath if teacher.drops_paths else ()
        assert not any(module.training for module in teacher.network.modules() if not isinstance(module, noisy))
        assert not any(p.requires_grad or p.grad is not None for p in teacher.network.parameters())
        assert all(torch.equal(value, state[name]) for name, value in teacher.network.state_dict().items())


def test_a_teacher_set_to_training_returns_to_eval(images):
    method = maskedkd()
    expected = method(images, TARGETS).loss
    teacher_of(method).network.train()
    assert torch.equal(method(images, TARGETS).loss, expected) and not teacher_of(method).network.training


def test_what_was_kept_is_told(method, images):
    step = method(images, TARGETS, 0.5)
    count = method.kept_patches(0.5)
    assert (step.kept is None) == (count is None)
    if count is not None:
        rows = 3 * method.globals if isinstance(method, DINO) else 3
        assert step.kept.shape == (rows, count) and bool((step.kept[:, 1:] > step.kept[:, :-1]).all())


def test_a_copy_computes_the_same(method, images):
    twin = copy.deepcopy(method)
    torch.manual_seed(3)
    expected = method(images, TARGETS).loss
    torch.manual_seed(3)
    assert torch.equal(twin(images, TARGETS).loss, expected)


def test_methods_can_be_pickled_for_spawned_processes(method, images):
    twin = pickle.loads(pickle.dumps(method))
    torch.manual_seed(3)
    expected = method(images, TARGETS).loss
    torch.manual_seed(3)
    assert torch.equal(twin(images, TARGETS).loss, expected)


def test_a_clock_hears_of_the_teachers_part(images):
    parts = []

    class Part:
        def __init__(self, name: str) -> None:
            parts.append(name)

        def __enter__(self) -> None: ...

        def __exit__(self, *_error: object) -> None: ...

    method = maskedkd()
    method.clock = Part
    method(images, TARGETS)
    assert parts == ["teacher", "teacher"]  # its pass, and what it is asked behind its terms


# --- the loss of MaskedKD --------------------


def expected_loss(
    method: MaskedKD, images: Tensor, keep: Tensor | None, alpha: float = 0.5, tau: float = 1.0
) -> Tensor:
    student, teacher = method.student.net(images), teacher_of(method).network(images, keep=keep).prediction
    kl = (teacher / tau).softmax(-1) * ((teacher / tau).log_softmax(-1) - (student / tau).log_softmax(-1))
    return (1 - alpha) * F.cross_entropy(student, TARGETS) + alpha * tau**2 * kl.sum(dim=-1).mean()


@pytest.mark.parametrize(("alpha", "tau"), [(0.5, 1.0), (0.3, 4.0), (1.0, 2.0)])
def test_the_loss_is_equation_1_on_the_patches_that_the_student_attends_to(images, alpha, tau):
    method = maskedkd(keep=6, alpha=alpha, tau=tau)
    step = method(images, TARGETS)
    output = method.student(images, capture=method.student.saliency_capture())
    keep = method.student.saliency(output).topk(6, dim=1).indices.sort(dim=1).values
    assert torch.equal(step.kept, keep)
    torch.testing.assert_close(step.loss, expected_loss(method, images, keep, alpha, tau))
    torch.testing.assert_close(step.loss, (1 - alpha) * step.terms["ce"] + alpha * step.terms["kd"])
    assert torch.equal(step.teacher_prediction, teacher_of(method)(images, keep=keep).prediction)


def test_keeping_all_is_bit_identical_to_plain_distillation(images):
    method = maskedkd(keep=1.0)
    step = method(images, TARGETS)
    assert step.kept is None and method.kept_patches(0.0) is None
    assert torch.equal(step.teacher_prediction, tiny("deit3", seed=2)(images))
    assert torch.equal(step.prediction, tiny("deit", seed=1)(images))
    for keep in (16, "16", "1.0", 0.99):
        assert torch.equal(maskedkd(keep=keep)(images, TARGETS).loss, step.loss)


def test_masking_changes_the_teachers_scores_and_not_the_students(images):
    masked, full = maskedkd(keep=4)(images, TARGETS), maskedkd(keep=1.0)(images, TARGETS)
    assert torch.equal(masked.prediction, full.prediction)
    assert float((masked.teacher_prediction - full.teacher_prediction).abs().max()) > 1e-3


def test_hard_distillation_takes_the_teachers_decision_as_a_label(images):
    step = maskedkd(distillation="hard", keep=1.0)(images, TARGETS)
    expected = F.cross_entropy(step.prediction, step.teacher_prediction.argmax(dim=-1))
    torch.testing.assert_close(step.terms["kd"], expected.detach())


def test_alpha_0_needs_no_teacher_and_is_supervised_training(images):
    alone = MaskedKD(tiny("deit", seed=1), alpha=0.0, smoothing=0.1)
    expected = Supervised(tiny("deit", seed=1), task=Classification(10, smoothing=0.1))(images, TARGETS)
    step = alone(images, TARGETS)
    assert torch.equal(step.loss, expected.loss) and set(step.terms) == {"ce"}
    assert alone.teachers == [] and alone.kept_patches(0.0) is None and step.teacher_prediction is None
    with_teacher = maskedkd(alpha=0.0)
    assert with_teacher.teacher is None and with_teacher.teachers == []


def test_no_teacher_and_something_to_learn_from_it_is_refused():
    for options in ({}, {"distill": "manifold"}, {"distill": "logits+attention", "alpha": 0.0}):
        with pytest.raises(UserError, match=r"needs a teacher.*alpha to 0"):
            MaskedKD(tiny("deit"), **options)


def test_terms_are_weighted_and_added_to_the_labels_loss(images):
    torch.manual_seed(0)
    options = Terms(manifold=Manifold(weight=2.0, intra=3.0, inter=0.5, random=0.25), attention=Attention(0.3, 0.7))
    method = maskedkd(distill="logits+manifold+attention", alpha=0.4, terms=options)
    step = method(images, TARGETS)
    weights = {"kd": 0.4, "attention": 0.3, "attention_cls": 0.7}
    weights |= {"manifold_intra": 6.0, "manifold_inter": 1.0, "manifold_random": 0.5}
    assert method.weights == weights and method.task_weight == 0.6 and set(step.terms) == {"ce", *weights}
    weights["ce"] = 0.6
    torch.testing.assert_close(step.loss, sum(weights[name] * value for name, value in step.terms.items()))


def test_without_class_scores_labels_have_weight_1_and_the_teacher_has_no_head_to_run(images):
    method = maskedkd(distill="manifold")
    ran = []
    teacher_of(method).network.net.head.register_forward_hook(lambda *_: ran.append(1))
    step = method(images, TARGETS)
    assert method.task_weight == 1.0 and set(step.terms) == LOSSES & {"ce", *(n for n in LOSSES if "manifold" in n)}
    assert not ran and step.teacher_prediction is None and step.prediction.shape == (3, 10)
    torch.testing.assert_close(step.terms["ce"], F.cross_entropy(step.prediction, TARGETS).detach())
    assert MaskedKD(tiny("deit"), tiny("deit3", num_classes=7), distill="manifold").student.num_classes == 10


def test_class_scores_of_no_weight_leave_the_other_terms(images):
    method = maskedkd("deit_distilled", distill="logits+manifold", alpha=0.0)
    assert set(method(images, TARGETS).terms) == {"ce", "manifold_intra", "manifold_inter", "manifold_random"}
    assert method.task_weight == 1.0 and not method.lessons[0].capture.head
    assert not method.student.net.distilled_training  # both heads learn from the labels


@pytest.mark.parametrize("student", ["deit_distilled", "dist_token"])
def test_two_heads_learn_from_labels_and_from_the_teacher(images, student):
    method = maskedkd(student, keep=1.0).train()
    net = method.student.net
    labelled, distilled = net(images)
    step = method(images, TARGETS)
    ce = F.cross_entropy(labelled, TARGETS)
    kd = F.kl_div(distilled.log_softmax(-1), step.teacher_prediction.softmax(-1), reduction="batchmean")
    torch.testing.assert_close(step.loss, 0.5 * ce + 0.5 * kd)
    method.eval()
    torch.testing.assert_close(method.student(images).prediction, (labelled + distilled) / 2)
    assert not MaskedKD(tiny("deit_distilled"), alpha=0.0).student.net.distilled_training


@pytest.mark.parametrize("targets", [TARGETS, SOFT], ids=["labels", "soft"])
def test_the_specific_stage_of_g2sd_is_a_hard_label_on_a_second_head(images, targets):
    """A mean-pooled teacher sees what the class token attends to; evaluation takes the mean of both heads."""
    method = maskedkd("dist_token", "mae_mean_pool", distillation="hard", keep=12).train()
    labelled, distilled = method.student.net(images)
    step = method(images, targets)
    assert bool((step.kept[:, 1:] > step.kept[:, :-1]).all()) and step.kept.shape == (3, 12)
    decided = tiny("mae_mean_pool", seed=2)
    with torch.no_grad():
        teacher = build(decided)(images, keep=step.kept).prediction
    assert torch.equal(step.teacher_prediction, teacher)
    expected = (F.cross_entropy(labelled, targets) + F.cross_entropy(distilled, teacher.argmax(dim=-1))) / 2
    torch.testing.assert_close(step.loss, expected)
    method.eval()
    torch.testing.assert_close(method.student(images).prediction, (labelled + distilled) / 2)


def test_the_specific_stage_of_g2sd_with_all_patches_is_the_unmasked_one_bit_for_bit(images):
    options = {"student": "dist_token", "teacher": "mae_mean_pool", "distillation": "hard"}
    whole = maskedkd(**options, keep=1.0).train()
    step = whole(images, TARGETS)
    step.loss.backward()
    assert step.kept is None and torch.equal(step.teacher_prediction, tiny("mae_mean_pool", seed=2)(images))
    all_by_count = maskedkd(**options, keep=16).train()
    again = all_by_count(images, TARGETS)
    again.loss.backward()
    assert torch.equal(again.loss, step.loss)
    own = dict(whole.named_parameters())
    assert all(torch.equal(p.grad, own[name].grad) for name, p in all_by_count.named_parameters())


def test_a_schedule_changes_the_budget_over_training(images):
    method = maskedkd(keep="0:1.0,0.5:0.5,0.75:4")
    assert [method.kept_patches(at) for at in (0.0, 0.49, 0.5, 0.75, 1.0)] == [None, None, 8, 4, 4]
    assert method(images, TARGETS, 0.2).kept is None and method(images, TARGETS, 0.8).kept.shape == (3, 4)
    linear = maskedkd(keep="1.0->0.5")
    assert [linear.kept_patches(at) for at in (0.0, 0.5, 1.0)] == [None, 12, 8]


def test_masking_the_student_shows_the_teacher_everything(images):
    method = maskedkd(mask="student", keep=6)
    step = method(images, TARGETS)
    output = method.student(images, capture=method.student.saliency_capture())
    keep = method.student.saliency(output).topk(6, dim=1).indices.sort(dim=1).values
    assert torch.equal(step.kept, keep)
    assert torch.equal(step.teacher_prediction, tiny("deit3", seed=2)(images))
    assert torch.equal(step.prediction, method.student(images, keep=keep).prediction)


class FromOutputs(Criterion):
    """Asks for a block's output, and for no prediction."""

    def capture(self, student):
        return Capture.at(0, "output", head=False)

    def scores(self, scene):
        return scene.output.tokens(0).patches.detach().norm(dim=-1)


@pytest.mark.parametrize("mask", ["teacher", "student"])
def test_a_users_criterion_gets_what_it_asks_for(images, mask):
    step = maskedkd(criterion=FromOutputs(), mask=mask, keep=3)(images, TARGETS)
    assert bool(step.loss.isfinite())
    lengths = build(tiny("deit", seed=1))(images, capture=Capture.at(0, "output")).tokens(0).patches.norm(dim=-1)
    assert torch.equal(step.kept, lengths.topk(3, dim=1).indices.sort(dim=1).values)


# --- the teacher as a guest --------------------


def test_images_reach_the_teacher_in_its_own_statistics_and_size(images):
    student, net = tiny("vit", seed=1), tiny("deit", seed=2, img_size=48)
    method = MaskedKD(student, net, keep=1.0)
    mean, std = torch.tensor(method.student.input.mean), torch.tensor(method.student.input.std)
    own_mean, own_std = (
        torch.tensor(v) for v in (teacher_of(method).network.input.mean, teacher_of(method).network.input.std)
    )
    assert not torch.equal(mean, own_mean)
    pixels = images * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    seen = F.interpolate((pixels - own_mean.view(-1, 1, 1)) / own_std.view(-1, 1, 1), size=48, mode="bicubic")
    torch.testing.assert_close(method(images, TARGETS).teacher_prediction, net(seen), rtol=1e-4, atol=1e-4)


def test_equal_statistics_and_size_pass_images_through_untouched(images):
    teacher = Teacher(build(tiny("deit")), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert torch.equal(teacher(images).prediction, tiny("deit")(images))
    assert teacher.resized(images) is images


def test_a_smaller_teacher_sees_an_antialiased_image(images):
    teacher = Teacher(build(tiny("deit", img_size=16)))
    expected = F.interpolate(images, size=16, mode="bicubic", antialias=True)
    assert torch.equal(teacher.resized(images), expected)
    tall = torch.randn(1, 3, 32, 16)
    assert torch.equal(teacher.resized(tall), F.interpolate(tall, size=16, mode="bicubic", antialias=True))


def test_a_higher_resolution_teacher_is_masked_on_its_own_grid(images):
    method = MaskedKD(tiny("deit", seed=1), tiny("deit3", seed=2, img_size=48), keep=0.5)
    step = method(images, TARGETS)
    assert step.kept.shape == (3, 18) and int(step.kept.max()) > 15
    peak = method.student.saliency(method.student(images, capture=method.student.saliency_capture())).argmax(dim=1)
    row, column = (peak // 4 * 1.5).long(), (peak % 4 * 1.5).long()
    assert all(int(row[i] * 6 + column[i]) in step.kept[i].tolist() for i in range(3))


def test_a_teacher_in_bfloat16_gives_float32_scores_close_to_its_own(images):
    exact = Teacher(build(tiny("deit")))(images).prediction
    teacher = Teacher(build(tiny("deit")), dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.float16):  # the trainer's precision is not the teacher's
        rounded = teacher(images).prediction
    assert {p.dtype for p in teacher.network.parameters()} == {torch.bfloat16}
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    assert float((rounded - exact).abs().max() / exact.abs().max()) < 0.05
    step = MaskedKD(tiny("vit", seed=1), teacher)(images, TARGETS)
    assert step.loss.dtype == torch.float32 and bool(step.loss.isfinite())


def test_autocast_does_not_reach_the_teacher_or_the_loss(images):
    method = maskedkd(keep=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = method(images, TARGETS)
    assert step.prediction.dtype == torch.bfloat16 and step.loss.dtype == torch.float32
    assert torch.equal(step.teacher_prediction, tiny("deit3", seed=2)(images))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
@pytest.mark.parametrize("options", [{}, {"criterion": "network+random"}])
def test_teachers_follow_the_images_to_their_device(images, options):
    method = MaskedKD(tiny("vit", seed=1), tiny("deit", seed=2), network=tiny("deit3"), **options).cuda()
    step = method(images.cuda(), TARGETS.cuda())
    assert step.loss.is_cuda and step.teacher_prediction.is_cuda


def test_zero_shot_scores_are_scaled_cosines_with_the_text(images):
    text = torch.randn(10, 16, generator=torch.Generator().manual_seed(1))
    net = tiny("clip", num_classes=16)
    teacher = Teacher(build(net), text_embeddings=3 * text)
    expected = 100 * F.cosine_similarity(net(images)[:, None], text[None], dim=-1)
    torch.testing.assert_close(teacher(images).prediction, expected, rtol=1e-4, atol=1e-3)
    assert teacher.num_classes == 10
    method = MaskedKD(tiny("deit", seed=1), teacher, keep=8)
    assert method(images, TARGETS).teacher_prediction.shape == (3, 10)


def test_text_of_another_width_is_refused():
    with pytest.raises(UserError, match=r"must have the 16 channels of .*clip.*; got 12"):
        Teacher(build(tiny("clip", num_classes=16)), text_embeddings=torch.randn(10, 12))


# --- bad input --------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": -0.1}, r"alpha must lie in \[0, 1\]; got -0\.1"),
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\]"),
        ({"alpha": float("nan")}, r"alpha must lie in \[0, 1\]"),
        ({"tau": 0.0}, "tau must be positive; got 0"),
        ({"tau": float("nan")}, "tau must be positive"),
        ({"smoothing": 1.0}, "smoothing must lie in"),
        ({"keep": 0}, "keep must lie between 1 and 16"),
        ({"keep": 17}, "keep must lie between 1 and 16 patches.*got 17"),
        ({"keep": "1.0->0"}, "keep must lie between 1 and 16.*got 0"),
        ({"keep": "0:1.0,0.5:99"}, "keep must lie between 1 and 16.*got 99"),
        ({"keep": float("nan")}, "keep must be a finite number"),
        ({"distill": "logit"}, "distill must be some of logits, manifold, attention.*Did you mean 'logits'"),
        ({"distill": "manifold+manifold"}, "each once"),
        ({"distill": ""}, "at least one of logits, manifold, attention"),
        ({"distill": "logits+"}, r"some of logits, manifold, attention, joined by \+; got 'logits\+'"),
        (
            {"terms": Terms(manifold=Manifold(rows=9))},
            "--terms.manifold has no effect unless --distill names manifold; got logits",
        ),
        ({"distill": "manifold", "terms": Terms(manifold=Manifold(rows=1))}, "rows must be at least 2; got 1"),
        (
            {"distill": "manifold", "terms": Terms(manifold=Manifold(student_blocks=[0, 1], teacher_blocks=[1]))},
            r"as many blocks of the student as of the teacher.*got \[0, 1\] and \[1\].*teacher_blocks",
        ),
        ({"distill": "manifold", "terms": Terms(manifold=Manifold(teacher_blocks=[0, 1, 3]))}, "blocks 0 to 2; got 3"),
        ({"distill": "attention", "terms": Terms(attention=Attention(temperature=0.0))}, "must be positive; got 0"),
        ({"saliency_layer": 3}, "blocks 0 to 2; got 3"),
        ({"saliency_layer": -4}, "blocks 0 to 2; got -4"),
    ],
)
def test_numbers_out_of_range_are_refused_at_once(options, words):
    with pytest.raises(UserError, match=words) as error:
        maskedkd(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("distillation", "Soft", "soft, hard, nkd; got 'Soft'.*Did you mean 'soft'"),
        ("order", "botom", "top or bottom; got 'botom'.*Did you mean 'bottom'"),
        ("mask", "pupil", "teacher or student; got 'pupil'"),
        ("saliency", "class", "cls or patch; got 'class'"),
        ("criterion", "studnet", "got 'studnet'.*Did you mean 'student'"),
    ],
)
def test_unknown_words_are_refused_not_taken_for_the_other_one(unchecked, option, value, words):
    with pytest.raises(UserError, match=words):
        maskedkd(**{option: value})


def test_other_class_counts_name_both_networks():
    with pytest.raises(UserError, match=r"deit3_small.* has 7 and deit_tiny.* has 10.*Fine-tune the teacher"):
        MaskedKD(tiny("deit"), tiny("deit3", num_classes=7))


@pytest.mark.parametrize("keep", [0.5, 8, "1.0->0.5", "0:1.0,0.9:0.5"])
def test_a_swin_teacher_cannot_be_masked_at_any_time(keep):
    with pytest.raises(UserError, match=r"swin.* cannot leave out patches; got keep .*--keep 1\.0"):
        maskedkd(teacher="swin", keep=keep)


def test_a_swin_student_cannot_be_masked():
    with pytest.raises(UserError, match="cannot leave out patches"):
        maskedkd("swin", mask="student")


class Cnn(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
        self.num_classes = 10


def test_a_network_without_patches_can_teach_unmasked_only(images):
    assert maskedkd_with(Cnn(), keep=1.0)(images, TARGETS).kept is None
    for keep in (0.5, "1.0->0.5"):
        with pytest.raises(UserError, match="cannot leave out patches"):
            maskedkd_with(Cnn(), keep=keep)


def test_a_module_without_a_stated_size_gets_the_students_images(images):
    assert torch.equal(maskedkd_with(Cnn(), keep=1.0).teacher.resized(images), images)
    assert Teacher(build("test_resnet", num_classes=10)).resized(images).shape[-1] == 160


def maskedkd_with(teacher: nn.Module, **options: Any) -> MaskedKD:
    return MaskedKD(tiny("deit", seed=1), teacher, **options)


def test_a_student_without_attention_needs_another_criterion(images):
    with pytest.raises(UserError, match=r"no attention to take saliency from.*--criterion random"):
        MaskedKD(Cnn(), tiny("deit"))
    assert MaskedKD(Cnn(), tiny("deit"), criterion="random")(images, TARGETS).kept.shape == (3, 8)
    assert MaskedKD(Cnn(), tiny("deit"), keep=1.0)(images, TARGETS).kept is None


def test_a_network_cannot_teach_itself():
    net = tiny("deit")
    with pytest.raises(UserError, match="another network than the student"):
        MaskedKD(net, net)


def test_networks_over_images_and_over_clips_do_not_teach_each_other():
    image, clip = tiny("no_class_token", seed=2), clip_net(2)
    kinds = (
        (clip_net(1), image, r"deit|VisionTransformer sees clips of 4 frames and .* images"),
        (tiny("deit", seed=1), clip, r"deit.* sees images and VisionTransformer clips of 4 frames"),
        (clip_net(1), clip_net(2, frames=8), r"clips of 4 frames and VisionTransformer clips of 8 frames"),
    )
    for student, teacher, words in kinds:
        for options in ({"keep": 1.0}, {"criterion": "random"}):
            with pytest.raises(UserError, match=f"must see the same kind of inputs.*{words}"):
                MaskedKD(student, teacher, **options)
    with pytest.raises(UserError, match="must see the same kind of inputs"):
        MaskedKD(clip_net(1), clip, network=image, criterion="network")


def test_two_losses_of_one_name_are_refused(images):
    student = as_network(tiny("deit", seed=1))
    lessons = [Lesson(Teacher.of(tiny("deit3", seed=seed), student), [Logits()]) for seed in (2, 3)]
    with pytest.raises(ValueError, match="both named kd"):
        Distillation(student, lessons)(images)


def test_a_decoder_behind_a_mean_pooled_student_is_refused():
    for make in (
        lambda: mae("mae_mean_pool"),
        lambda: tinymim("mae_mean_pool", mask_ratio=0.75, pixels=True, pixel_decoder=PIXELS),
    ):
        with pytest.raises(UserError, match=r"final norm on the tokens.*behind its mean pooling.*fc_norm=False"):
            make()
    tinymim("mae_mean_pool")  # relations do not get as far as the norm


@pytest.mark.parametrize("distill", ["manifold", "logits+attention"])
def test_a_frozen_student_learns_class_scores_alone(distill):
    with pytest.raises(UserError, match="has a frozen body, so that only class scores can be learned; got --distill"):
        MaskedKD(frozen("vit", "cls"), tiny("deit3", seed=2), distill=distill)


# --- what a step computes --------------------


def test_the_passes_of_a_step_are_what_it_computes(method, images):
    """All forward passes of student and frozen networks, counted by torch while they run."""
    method(
        images, TARGETS, 0.5
    )  # in the first step a masked teacher is asked what it knows, which is counted by itself
    counted: dict[int, float] = {}
    networks = {id(one.network): one.network for one in method.passes(0.5)}  # of DINO also the student at another size

    def counting(network: Network) -> None:
        original = network.forward

        def forward(*inputs: Any, **options: Any) -> Any:
            with FlopCounterMode(display=False) as counter:
                output = original(*inputs, **options)
            counted[id(network)] = counted.get(id(network), 0) + counter.get_total_flops() / 2
            return output

        network.forward = forward

    expected = dict.fromkeys(networks, 0.0)
    for one in method.passes(0.5):
        macs = one.network.macs(one.kept, one.capture, layernorm=False)
        each = macs.total if one.embeds else macs.total - macs.patch_embed
        expected[id(one.network)] += one.times * each * 3
    nets = {id(network.net) for network in networks.values()}
    assert {id(teacher.network.net) for teacher in method.teachers} | {id(method.student.net)} >= nets
    for network in networks.values():
        counting(network)
    method(images, TARGETS, 0.5)
    assert counted == expected


def test_the_passes_name_every_network_that_runs(method, images):
    """And no other: a third network that ranks nothing is not run."""
    ran: set[int] = set()
    teachers = {id(teacher.network): teacher.network for teacher in method.teachers}
    for network in (method.student, *teachers.values()):
        network.register_forward_pre_hook(lambda module, _inputs: ran.add(id(module.net)))
    method(images, TARGETS, 0.5)
    assert ran == {id(one.network.net) for one in method.passes(0.5)}
    assert {one.role for one in method.passes(0.5) if id(one.network) == id(method.student)} == {"student"}
