"""The networks of `tinymim_step.py`, and the implementations of TinyMIM's step that it measures."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common import AUTHORS, default_teacher_dtype, dtype_name
from tinymim_tables import OURS, PLAIN, with_dtype
from vitdistill.losses.relations import relation_kl
from vitdistill.methods.tinymim import TinyMIM
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.build import build
from vitdistill.models.surgery.attention_heads import head_count, set_heads
from vitdistill.models.teacher import Teacher
from vitdistill.types import QKV

RELATIONS = (("q", "k"), ("v", "v"))


@dataclass
class Pair:
    """A teacher, its target block (from 1) and a student.

    Attributes:
        name: in TinyMIM's words.
        teacher, student: timm names.
        block: the teacher's block whose relations are imitated.
        cpu_batch: images per step on a CPU.
        teacher_args, student_args: more arguments of the architectures.
    """

    name: str
    teacher: str
    student: str
    block: int
    cpu_batch: int
    teacher_args: dict[str, Any] = field(default_factory=dict)
    student_args: dict[str, Any] = field(default_factory=dict)


PAIRS = (
    Pair("MAE-L -> ViT-B", "vit_large_patch16_224", "vit_base_patch16_224", block=18, cpu_batch=4),
    Pair("ViT-B -> ViT-S", "vit_base_patch16_224", "vit_small_patch16_224", block=12, cpu_batch=8),
)


@dataclass
class Setting:
    """One pair, and how it runs."""

    pair: Pair
    batch: int
    repeats: int
    device: torch.device
    dtype: torch.dtype
    compiled: bool = False

    def teacher(self, meta: bool = False) -> Backbone:
        return self._build(self.pair.teacher, self.pair.teacher_args, 1, meta)

    def student(self, meta: bool = False) -> Backbone:
        """Head for head comparable with the teacher: its last block has as many heads as the teacher's block."""
        student = self._build(self.pair.student, self.pair.student_args, 0, meta)
        set_heads(student, {-1: head_count(self.teacher(meta=True), self.pair.block - 1)})
        return student

    def _build(self, name: str, args: dict[str, Any], seed: int, meta: bool) -> Backbone:
        """Randomly initialised, the same every time."""
        torch.manual_seed(seed)
        backbone = with_tokens(build(name, args={"num_classes": 0, **args}, meta=meta))
        return backbone if meta else backbone.to(self.device)

    def images(self) -> Tensor:
        torch.manual_seed(2)
        return torch.randn(self.batch, *self.student(meta=True).input.shape, device=self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def default_teacher_dtype(self) -> torch.dtype:
        return default_teacher_dtype(self.teacher(meta=True).width, self.device)

    def label(self) -> str:
        mode = "compiled" if self.compiled else "eager"
        return f"{self.pair.name}: {dtype_name(self.dtype)} student, {mode}, batch {self.batch}"


# --- the candidates ----------------------------------------------------------------------------------------------


@dataclass
class Candidate:
    """One implementation on networks of its own, equal in all candidates.

    Attributes:
        net: the student, for the optimizer.
        loss: images -> loss, as a training loop would call it.
        teacher, student: images -> q, k, v of the compared block.
        distance: (student's, teacher's) q, k, v -> loss. `loss` is made of these three.
    """

    net: nn.Module
    loss: Callable[[Tensor], Tensor]
    teacher: Callable[[Tensor], QKV]
    student: Callable[[Tensor], QKV]
    distance: Callable[[QKV, QKV], Tensor]


def ours(setting: Setting, teacher_dtype: torch.dtype) -> Candidate:
    """vitdistill.TinyMIM; without colour jitter, which the others have not."""
    student = setting.student()
    frozen = Teacher.of(setting.teacher(), student, dtype=teacher_dtype)
    method = TinyMIM(student, frozen, teacher_block=setting.pair.block, color_jitter=0)
    if setting.compiled:
        student.compile_blocks()
        frozen.network.compile_blocks()
    capture = method.lessons[0].capture
    (block,) = (number for number, _ in capture.points)
    return Candidate(
        student.net,
        loss=lambda images: method(images).loss,
        teacher=lambda images: frozen(images, capture=capture).qkv(block),
        student=lambda images: student(images, capture=method.student_capture(0.0)).qkv(student.depth - 1),
        distance=bounded_distance,
    )


def bounded_distance(student: QKV, teacher: QKV) -> Tensor:
    """QK and VV as `TinyMIM` adds them up."""
    return torch.stack(
        [relation_kl(*((getattr(x, a), getattr(x, b)) for x in (student, teacher))) for a, b in RELATIONS]
    ).sum()


def explicit(setting: Setting, teacher_dtype: torch.dtype, *, to_the_end: bool) -> Candidate:
    """TinyMIM over timm's own modules, with explicit attention and the relations of all heads.

    Args:
        setting: what to build.
        teacher_dtype: of the teacher's weights.
        to_the_end: run both networks to their final norms; otherwise to the end of the compared block.
    """
    trained, frozen = setting.student(), setting.teacher()
    for backbone in (trained, frozen):
        if setting.compiled:
            backbone.compile_blocks()
        for module in backbone.modules():
            if isinstance(module, Attention):
                module.fused_attn = False
    net, guide = trained.net, frozen.net.eval().requires_grad_(False).to(teacher_dtype)

    @torch.no_grad()
    def teacher(images: Tensor) -> QKV:
        return explicit_pass(guide, images.to(teacher_dtype), setting.pair.block - 1, to_the_end)

    def student(images: Tensor) -> QKV:
        return explicit_pass(net, images, len(net.blocks) - 1, to_the_end)

    return Candidate(
        net,
        loss=lambda images: all_heads_distance(student(images), teacher(images)),
        teacher=teacher,
        student=student,
        distance=all_heads_distance,
    )


authors_way, plain = partial(explicit, to_the_end=False), partial(explicit, to_the_end=True)


def explicit_pass(net: VisionTransformer, images: Tensor, block: int, to_the_end: bool) -> QKV:
    """Whole blocks up to one, or all and the final norm; returns q, k and v of the block, which runs eagerly."""
    seen: list[Tensor] = []
    attention: Any = net.blocks[block].attn
    tokens = net.norm_pre(net._pos_embed(net.patch_embed(images)))
    handle = attention.qkv.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    for module in net.blocks[:block]:
        tokens = module(tokens)
    tokens = net.blocks[block].forward(tokens)
    handle.remove()
    if to_the_end:
        for module in net.blocks[block + 1 :]:
            tokens = module(tokens)
        net.norm(tokens)
    q, k, v = seen[0].unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return QKV(q, k, v, net.num_prefix_tokens)


def all_heads_distance(student: QKV, teacher: QKV) -> Tensor:
    """KL of whole relations, all heads at once, as `F.kl_div` keeps them for the backward pass."""
    dtype = student.q.dtype
    total = torch.zeros((), device=student.q.device)
    for a, b in RELATIONS:
        own, other = (whole_relation(getattr(x, a).to(dtype), getattr(x, b).to(dtype)) for x in (student, teacher))
        total = total + F.kl_div(own.log(), other, reduction="none").sum(dim=-1).mean()
    return total


def whole_relation(a: Tensor, b: Tensor) -> Tensor:
    return ((a * a.shape[-1] ** -0.5) @ b.transpose(-2, -1)).softmax(dim=-1)


IMPLEMENTATIONS: dict[str, Callable[[Setting, torch.dtype], Candidate]] = {
    OURS: ours,
    AUTHORS: authors_way,
    PLAIN: plain,
}


def candidates(setting: Setting) -> dict[str, Callable[[], Candidate]]:
    """Every implementation with each dtype of the teacher's weights, by name.

    The others' float32 teachers are under autocast where there is one. Ours never is, so there its float32 would
    compare with nothing.
    """
    dtypes = dict.fromkeys((setting.default_teacher_dtype(), torch.float32))
    return {
        with_dtype(name, dtype): partial(make, setting, dtype)
        for name, make in IMPLEMENTATIONS.items()
        for dtype in dtypes
        if name != OURS or dtype == setting.default_teacher_dtype() or setting.dtype == torch.float32
    }
