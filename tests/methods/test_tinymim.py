"""TinyMIM: against the authors' values, in every variant of the paper's study, and at the edges."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from golden_values import Golden
from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.losses.relations import relation
from vitdistill.methods.jitter import color_jitter
from vitdistill.methods.tinymim import PixelDecoder, TinyMIM, default_teacher_block
from vitdistill.models.build import build
from vitdistill.models.families.video_vit import video_vit
from vitdistill.models.record import record_of
from vitdistill.models.surgery.attention_heads import head_count, set_heads
from vitdistill.models.surgery.drop_path import constant_but_last, set_drop_path
from vitdistill.types import Capture

TEACHER = {"embed_dim": 32, "num_heads": 4, "depth": 4}
PIXELS = PixelDecoder(width=16, depth=1, heads=2)


def tinymim(
    student: str = "vit", teacher: str = "vit", teacher_args: dict[str, Any] = TEACHER, **options: Any
) -> TinyMIM:
    torch.manual_seed(0)
    return TinyMIM(tiny(student, seed=1), tiny(teacher, seed=2, **teacher_args), **options)


# --- the authors' values --------------------


def test_the_method_gives_the_authors_values(golden, monkeypatch):
    case: Golden = golden("tinymim_a")
    hyper = case.hyper
    common = {
        "img_size": hyper["img_size"],
        "patch_size": hyper["patch_size"],
        "mlp_ratio": hyper["mlp_ratio"],
        "num_classes": 0,
    }
    nets = {
        role: VisionTransformer(
            **common, embed_dim=hyper[role]["dim"], depth=hyper[role]["depth"], num_heads=hyper[role]["heads"]
        )
        for role in ("student", "teacher")
    }
    for role, net in nets.items():
        case.load(net, role)
    method = TinyMIM(nets["student"], nets["teacher"], teacher_block=hyper["teacher"]["intermediate"], color_jitter=0)
    assert head_count(method.student, -1) == hyper["student"]["last_heads"]
    monkeypatch.setattr(method, "view", lambda images: case.inputs["student_image"])
    (term,) = method.terms
    step = method(case.inputs["teacher_image"])
    case.check("loss", step.loss)
    case.check("loss_qk", step.terms["qk"])
    case.check("loss_vv", step.terms["vv"])
    step.loss.backward()
    last = method.student.blocks[-1].attn.qkv.weight.grad
    case.check("grad_last_qkv_weight", last)
    case.check("grad_norm_last_qkv_weight", last.norm())
    case.check("grad_norm_patch_embed_weight", method.student.net.patch_embed.proj.weight.grad.norm())
    student = method.student(case.inputs["student_image"], capture=method.student_capture(0.0)).qkv(term.student_block)
    teacher = method.teacher(case.inputs["teacher_image"], capture=method.lessons[0].capture).qkv(term.teacher_block)
    for role, qkv in (("student", student), ("teacher", teacher)):
        case.check(f"{role}_relation_qk", relation(qkv.q, qkv.k))
        case.check(f"{role}_relation_vv", relation(qkv.v, qkv.v))
    assert case.checked == set(case.expected)


def test_only_what_lies_behind_the_last_blocks_queries_keys_and_values_is_frozen():
    net = tinymim().student.net
    behind = tuple(f"blocks.2.{part}." for part in ("attn.proj", "norm2", "mlp"))
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in net.named_parameters() if name.startswith((*behind, "norm.", "head."))}


# --- heads --------------------


def test_only_the_last_block_takes_the_teachers_heads_and_the_record_knows():
    method = tinymim()
    assert [head_count(method.student, block) for block in range(3)] == [3, 3, 4]
    assert record_of(method.student.net).heads == {2: 4}
    whole = tinymim(align_heads="all")
    assert [head_count(whole.student, block) for block in range(3)] == [4, 4, 4]
    assert record_of(whole.student.net).heads == {} and record_of(whole.student.net).args["num_heads"] == 4


def test_heads_change_what_a_block_computes_like_a_block_built_with_them(images):
    built, changed = build(tiny("vit", num_heads=4)), build(tiny("vit", num_heads=3))
    changed.net.load_state_dict(built.net.state_dict())
    assert not torch.allclose(changed(images).prediction, built(images).prediction)
    set_heads(changed, dict.fromkeys(range(3), 4))
    assert torch.equal(changed(images).prediction, built(images).prediction)
    for block in changed.blocks:
        block.attn.fused_attn = False
    torch.testing.assert_close(changed(images).prediction, built(images).prediction, rtol=1e-4, atol=1e-5)


def test_heads_that_cannot_be_aligned_say_which_would_do():
    with pytest.raises(UserError, match=r"24 channels.*got 5 heads\. 1, 2, 3, 4, 6, 8, 12, 24 would do"):
        tinymim(teacher_args={"embed_dim": 40, "num_heads": 5})
    with pytest.raises(UserError, match=r"as many heads as the teacher's block; got 3 and 4.*--align_heads last"):
        tinymim(align_heads="none")
    with pytest.raises(UserError, match="normalises q and k per head"):
        tinymim("qk_norm")
    assert tinymim(align_heads="none", teacher_args={"num_heads": 3}).student.depth == 3


# --- variants --------------------


@pytest.mark.parametrize("feature", ["output", "attention", "ffn", "qkv", "q", "k", "v"])
@pytest.mark.parametrize("residual", [False, True])
def test_features_are_what_a_plain_forward_pass_computes(images, feature, residual):
    if residual and feature not in ("attention", "ffn"):
        with pytest.raises(UserError, match="Only the features attention and ffn have a residual"):
            tinymim(target="features", feature=feature, residual=residual)
        return
    method = tinymim(target="features", feature=feature, residual=residual, teacher_block=3).eval()
    expected = 0.0
    names = tuple("qkv") if feature == "qkv" else (feature,)
    for name in names:
        own, other = (
            by_hand(backbone, block, images, name, residual)
            for backbone, block in ((method.student, 2), (method.teacher.network, 2))
        )
        project = method.terms[0].project["output" if (name, residual) == ("ffn", True) else name]
        target = F.layer_norm(other, other.shape[-1:])
        expected += F.smooth_l1_loss(project(own), target, beta=2.0)
    torch.testing.assert_close(method(images).loss, expected)


def by_hand(backbone, block, images, feature, residual):
    tokens = backbone.embed(images)
    for part in backbone.blocks[:block]:
        tokens = part(tokens)
    part = backbone.blocks[block]
    if feature in "qkv":
        return part.attn.qkv(part.norm1(tokens)).chunk(3, dim=-1)["qkv".index(feature)]
    attention = part.attn(part.norm1(tokens))
    if feature == "attention":
        return tokens + attention if residual else attention
    tokens = tokens + attention
    ffn = part.mlp(part.norm2(tokens))
    return ffn if feature == "ffn" and not residual else tokens + ffn


def test_the_class_token_alone(images):
    method = tinymim(target="cls")
    hidden = method.student(images, capture=Capture.at(2, "output")).tokens(2).special[:, 0]
    target = method.teacher(images, capture=Capture.at(3, "output")).tokens(3).special[:, 0]
    expected = F.smooth_l1_loss(method.terms[0].project["output"](hidden), F.layer_norm(target, (32,)), beta=2.0)
    torch.testing.assert_close(method.eval()(images).loss, expected)


@pytest.mark.parametrize("relations", ["qk", "vv+qq", ("qq", "kk", "vv")])
@pytest.mark.parametrize("softmax", [True, False])
def test_relations_in_any_combination(images, relations, softmax):
    step = tinymim(relations=relations, softmax=softmax, color_jitter=0.0)(images)
    assert set(step.terms) == set(relations.split("+") if isinstance(relations, str) else relations)
    torch.testing.assert_close(step.loss.detach(), torch.stack(list(step.terms.values())).sum())


def test_masked_input_hides_the_same_patches_from_both(images):
    method = tinymim(mask_ratio=0.5).eval()
    step = method(images)
    assert step.kept.shape == (3, 8) and method.kept_patches(0.0) == 8
    student = method.student(images, keep=step.kept, capture=method.student_capture(0.0))
    teacher = method.teacher(images, keep=step.kept, capture=method.lessons[0].capture)
    expected = sum(method.terms[0](student, teacher).values())
    torch.testing.assert_close(step.loss, expected)


def test_the_pixel_loss_is_added(images):
    method = tinymim(mask_ratio=0.75, pixels=True, pixel_decoder=PIXELS)
    step = method(images)
    assert set(step.terms) == {"qk", "vv", "pixels"}
    step.loss.backward()
    assert method.decoder.pred.weight.grad.any() and method.student.blocks[-1].mlp.fc1.weight.grad.any()
    with pytest.raises(UserError, match="some must be hidden"):
        tinymim(pixels=True)


def test_the_teacher_stops_at_its_block_and_the_student_at_its_last(images):
    method = tinymim(teacher_block=2)
    ran = []
    for role, backbone in (("teacher", method.teacher.network), ("student", method.student)):
        for index, block in enumerate(backbone.blocks):
            block.mlp.register_forward_hook(lambda *_, name=f"{role} {index}": ran.append(name))
    method(images)
    assert ran == ["student 0", "student 1", "teacher 0"]


def test_the_paper_takes_block_18_of_24():
    assert [default_teacher_block(depth) for depth in (4, 12, 24, 32)] == [4, 12, 18, 32]


def test_only_the_students_view_is_jittered_and_only_in_training(images):
    method = tinymim(color_jitter=0.4)
    seen = {}
    method.student.net.patch_embed.register_forward_pre_hook(lambda _m, inputs: seen.update(student=inputs[0]))
    method.teacher.network.net.patch_embed.register_forward_pre_hook(lambda _m, inputs: seen.update(teacher=inputs[0]))
    torch.manual_seed(5)
    method.train()(images)
    assert torch.equal(seen["teacher"], images)
    pixels = (images * 0.5 + 0.5).clamp(0, 1)
    assert method.student.input.mean == (0.5, 0.5, 0.5) and method.student.input.std == (0.5, 0.5, 0.5)
    torch.manual_seed(5)
    torch.testing.assert_close(seen["student"], (color_jitter(pixels, 0.4) - 0.5) / 0.5)
    method.eval()(images)
    assert torch.equal(seen["student"], images)


def test_all_frames_of_a_clip_are_jittered_alike():
    sizes = {"img_size": 32, "patch_size": 8, "frames": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    method = TinyMIM(video_vit(**sizes), video_vit(**sizes), color_jitter=0.8).train()
    still = torch.rand(3, 3, 1, 32, 32).expand(-1, -1, 4, -1, -1)
    view = method.view(still)
    assert view.shape == still.shape and not torch.allclose(view, still, atol=0.01)
    torch.testing.assert_close(view, view[:, :, :1].expand_as(view))


def test_drop_path_of_the_teacher_is_active_in_training_only(images):
    method = tinymim(teacher_drop_path=0.5, color_jitter=0.0)
    method.eval()
    assert torch.equal(method(images).loss, method(images).loss)
    method.train()
    torch.manual_seed(0)
    losses = {float(method(images).loss.detach()) for _ in range(4)}
    assert len(losses) > 1
    assert not method.teacher.network.blocks[0].attn.training


def test_drop_path_that_a_teacher_brings_is_off_unless_asked_for(images):
    """A teacher that was itself trained with drop path gives the same values in every step, and in pictures."""
    method = tinymim(teacher_args={**TEACHER, "drop_path_rate": 0.9}, color_jitter=0.0)
    assert method(images).loss == method(images).loss
    noisy = tinymim(teacher_drop_path=0.5, color_jitter=0.0).eval()
    capture = Capture.at(-1, "output")
    assert torch.equal(*(noisy.teacher(images, capture=capture).tokens(-1).patches for _ in range(2)))


def test_the_students_drop_path_is_constant_but_for_the_last_block():
    student = build(tiny("vit"))
    set_drop_path(student, constant_but_last(0.1, 3))
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in student.blocks] == [0.1, 0.1, 0.0]
    with pytest.raises(UserError, match=r"in \[0, 1\); got 1"):
        set_drop_path(student, [0.0, 1.0, 0.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_huge_activations_in_half_precision_stay_finite(images, dtype):
    method = tinymim()
    for backbone in (method.student, method.teacher.network):
        with torch.no_grad():
            backbone.blocks[-1].attn.qkv.weight.mul_(100.0)
    with torch.autocast("cpu", dtype=dtype):
        step = method(images)
    step.loss.backward()
    assert bool(step.loss.isfinite()) and step.loss.dtype == torch.float32
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.grad is not None)


# --- bad input --------------------


@pytest.mark.parametrize("block", [0, 5, -1])
def test_a_block_outside_the_teacher_is_refused(block):
    with pytest.raises(UserError, match=rf"between 1 and 4, the depth of vit_.*; got {block}"):
        tinymim(teacher_block=block)


def test_other_patches_name_both_grids_and_the_sizes_that_match():
    with pytest.raises(UserError) as error:
        tinymim(teacher_args={**TEACHER, "patch_size": 4})
    message = str(error.value)
    assert "has 4x4 at 32x32 pixels" in message and "8x8 at 32x32" in message
    sizes = re.findall(r"size (\d+)", message)
    assert sizes == ["64", "16"]
    assert tinymim(teacher_args={**TEACHER, "patch_size": 4, "img_size": 16}).student.grid.count == 16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"relations": ""}, "at least one of qk, vv, qq, kk"),
        ({"relations": ["qk", "qk"]}, "each once"),
        ({"relations": "qk+QK"}, "each once"),
        ({"relations": ("qk", "vw")}, r"some of qk, vv, qq, kk; got 'vw'.*Did you mean 'vv'"),
        ({"mask_ratio": 1.0}, "at least one patch to see"),
        ({"mask_ratio": 0.99}, "at least one patch to see"),
        ({"color_jitter": 2.0}, r"color_jitter must lie in \[0, 1\]; got 2"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(UserError, match=words) as error:
        tinymim(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "relation"}, "Did you mean 'relations'"),
        ({"target": "features", "feature": "atention"}, "Did you mean 'attention'"),
        ({"align_heads": "lst"}, "Did you mean 'last'"),
    ],
)
def test_misspelt_words_are_refused(unchecked, options, words):
    with pytest.raises(UserError, match=words):
        tinymim(**options)


def test_networks_of_another_kind_are_refused():
    for student, teacher, role in (("swin", "vit", "student"), ("vit", "swin", "teacher"), ("cait", "vit", "student")):
        with pytest.raises(UserError, match=f"TinyMIM's {role} must be a plain ViT"):
            tinymim(student, teacher, teacher_args={})
    with pytest.raises(UserError, match="needs a class token"):
        tinymim("no_class_token", "no_class_token", target="cls")
    net = tiny("vit")
    with pytest.raises(UserError, match="another network than the student"):
        TinyMIM(net, net)
