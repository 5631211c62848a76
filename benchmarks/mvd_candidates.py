"""The networks of `mvd_step.py`, and the ways of doing MVD's step that it measures."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor

from common import AUTHORS, WIDE_ENOUGH, default_teacher_dtype, dtype_name
from mvd_plain import plain_decode, plain_features, plain_image_features, python_masks
from mvd_tables import MASKS, OURS, PLAIN, with_dtype, with_masks
from vitdistill.methods.mvd import MVD
from vitdistill.methods.options import FeatureDecoder
from vitdistill.methods.targets.features import matched_teacher
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.build import build
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.gather import complement
from vitdistill.tokens.masking import Masking
from vitdistill.training.clock import Clock
from vitdistill.types import Capture, TokenGrid

MASKING = Masking(0.9, "tube")
LAST = Capture.at(-1, "output", head=False)


@dataclass(frozen=True)
class Pair:
    """A student and its two teachers.

    Attributes:
        name: in the paper's words, student <- teachers.
        student: timm name; decoders are two blocks of its width and heads, as in the paper's table.
        teacher_args, student_args: more arguments of the architectures.
        authors_masks: masks per clip that the authors' way is timed with on a CPU; its step with m masks is its step
            on m times as many clips, so one of the pairs is enough.
    """

    name: str
    student: str
    teacher_args: dict[str, Any] = field(default_factory=dict)
    student_args: dict[str, Any] = field(default_factory=dict)
    authors_masks: tuple[int, ...] = (1,)

    image_teacher = "vit_base_patch16_224.mae"
    video_teacher = "video_vit_base_patch16_224"


PAIRS = (
    Pair("S <- B", "video_vit_small_patch16_224", authors_masks=(1, 2)),
    Pair("B <- B", "video_vit_base_patch16_224"),
)


def small_pair() -> Pair:
    """Tiny, but wide enough for the teachers' default dtype to be the device's fast one."""
    teacher = {"img_size": 64, "embed_dim": WIDE_ENOUGH, "depth": 2, "num_heads": 3}
    student = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return Pair("small", "video_vit_small_patch16_224", teacher, student, authors_masks=(1, 2))


@dataclass
class Setting:
    """One pair, and how it runs."""

    pair: Pair
    batch: int
    rounds: int
    device: torch.device
    dtype: torch.dtype

    def networks(self, meta: bool = False) -> tuple[Backbone, Backbone, Backbone]:
        """Student, image teacher and video teacher, randomly initialised."""
        made = []
        for name, args in (
            (self.pair.student, self.pair.student_args),
            (self.pair.image_teacher, self.pair.teacher_args),
            (self.pair.video_teacher, self.pair.teacher_args),
        ):
            backbone = with_tokens(build(name, args={"num_classes": 0, **args}, meta=meta))
            made.append(backbone if meta else backbone.to(self.device))
        student, image, video = made
        return student, image, video

    def decoder(self, student: Backbone) -> FeatureDecoder:
        """The paper's decoder for S and B: the student's width, two blocks."""
        heads = student.blocks[0].attn.num_heads
        return FeatureDecoder(width=student.width, depth=2, heads=heads, drop_path=0.0)

    def method(self) -> MVD:
        """vitdistill.MVD with float32 teachers, the same every time; on the `meta` device it costs nothing."""
        torch.manual_seed(0)
        student, image, video = self.networks()
        return MVD(
            student,
            image_teacher=image,
            video_teacher=video,
            mask_ratio=MASKING.ratio,
            mask=MASKING.kind,
            decoder=self.decoder(student),
        ).to(self.device)

    def clips(self) -> Tensor:
        torch.manual_seed(2)
        return torch.randn(self.batch, *self.networks(meta=True)[0].input.shape, device=self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def default_teacher_dtype(self) -> torch.dtype:
        width = min(teacher.width for teacher in self.networks(meta=True)[1:])
        return default_teacher_dtype(width, self.device)

    def label(self) -> str:
        return f"{self.pair.name}: {dtype_name(self.dtype)} student, batch {self.batch}"


# --- the candidates ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """One way of doing a step. All share one set of weights, since several sets would not fit into memory.

    Attributes:
        ours: vitdistill.MVD; else the implementation written down in `mvd_plain.py`.
        teacher_dtype: of the teachers' weights; where it is float32, autocast (if any) covers the others' teachers.
        masks: per clip.
        every_frame: whether the image teacher sees also the frames that the target does not use.
    """

    ours: bool = True
    teacher_dtype: torch.dtype = torch.float32
    masks: int = 1
    every_frame: bool = False


def candidates(setting: Setting) -> dict[str, Candidate]:
    """The candidates by name.

    The first three are as they run by default, which for the others means float32 teachers; then come those with the
    other dtype. Under autocast the others' teachers compute in its dtype as well, so that comparison is left out.
    """
    fast = setting.default_teacher_dtype()
    ours, authors = Candidate(teacher_dtype=fast), Candidate(ours=False)
    plain = replace(authors, every_frame=True)
    made = {OURS: ours, AUTHORS: authors, PLAIN: plain}
    if has_two_dtypes(setting):
        made[with_dtype(OURS, torch.float32)] = replace(ours, teacher_dtype=torch.float32)
        made[with_dtype(AUTHORS, fast)] = authors = replace(authors, teacher_dtype=fast)
        made[with_dtype(PLAIN, fast)] = replace(plain, teacher_dtype=fast)
    for masks in MASKS[1:]:
        made[with_masks(OURS, masks)] = replace(ours, masks=masks)
    for masks in authors_masks(setting)[1:]:
        made[with_masks(equal_authors(setting), masks)] = replace(authors, masks=masks)
    return made


def has_two_dtypes(setting: Setting) -> bool:
    return setting.dtype == torch.float32 and setting.default_teacher_dtype() != torch.float32


def equal_authors(setting: Setting) -> str:
    """The authors' way with teachers in the dtype of ours."""
    return with_dtype(AUTHORS, setting.default_teacher_dtype()) if has_two_dtypes(setting) else AUTHORS


def authors_masks(setting: Setting) -> tuple[int, ...]:
    """Four masks of 32 clips keep more attention matrices than a GPU has memory."""
    return (1, 2) if setting.device.type == "cuda" else setting.pair.authors_masks


class Given(Masking):
    """Masks that were drawn elsewhere, for comparing losses."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__(MASKING.ratio, MASKING.kind)
        object.__setattr__(self, "hidden", hidden)

    def draw(self, b: int, grid: TokenGrid, *, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        hidden: Tensor = self.hidden  # type: ignore[attr-defined]
        masked = torch.stack([row.nonzero()[:, 0] for row in hidden])
        return complement(masked, grid.count), masked


class Networks:
    """The weights of all candidates, and a step of any of them."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.method = setting, setting.method()
        self.clips = setting.clips()
        float32 = {name: target.teacher for name, target in self.method.targets.items()}  # type: ignore[attr-defined]
        self.teachers: dict[torch.dtype, dict[str, Teacher]] = {torch.float32: float32}
        fast = setting.default_teacher_dtype()
        if fast not in self.teachers:
            torch.manual_seed(0)
            student, *frozen = setting.networks()
            self.teachers[fast] = {
                role: matched_teacher(role, Teacher.of(network, student, dtype=fast), student)
                for role, network in zip(float32, frozen, strict=True)
            }
        self.optimizer = torch.optim.AdamW([p for p in self.method.parameters() if p.requires_grad], lr=1e-6)
        self.clock = Clock(setting.device)

    def loss(self, candidate: Candidate, hidden: Tensor | None = None) -> Tensor:
        """The loss of a candidate, with masks of its own or given ones."""
        with self.explicit_attention(not candidate.ours):
            return self._our_loss(candidate, hidden) if candidate.ours else self._explicit_loss(candidate, hidden)

    def _our_loss(self, candidate: Candidate, hidden: Tensor | None) -> Tensor:
        method, clock = self.method, self.clock
        method.clock = lambda _name: clock.part("teachers")
        method.masks_per_clip = candidate.masks
        method.masking = MASKING if hidden is None else Given(hidden)
        for name, target in method.targets.items():
            target.teacher = self.teachers[candidate.teacher_dtype][name]  # type: ignore[attr-defined]
        return method(self.clips).loss

    def _explicit_loss(self, candidate: Candidate, hidden: Tensor | None) -> Tensor:
        teachers = self.teachers[candidate.teacher_dtype]
        grid = self.method.student.grid
        clips = self.clips.repeat_interleave(candidate.masks, dim=0)
        mask = python_masks(MASKING, len(clips), grid).to(clips.device) if hidden is None else hidden
        with self.clock.part("teachers"), torch.no_grad():
            seen = clips.to(candidate.teacher_dtype)
            step = clips.shape[2] // grid.t
            image = plain_image_features(teachers["image"].backbone, seen, step, candidate.every_frame)
            video = plain_features(teachers["video"].backbone, seen)
        net = self.method.student.net
        tokens = net.patch_embed(clips) + net.pos_embed
        tokens = tokens[~mask].reshape(len(clips), -1, tokens.shape[-1])
        tokens = net.norm(net.blocks(tokens))
        total = torch.zeros((), device=clips.device)
        for name, values in (("image", image), ("video", video)):
            goal = values[mask].reshape(len(clips), -1, values.shape[-1]).float()
            prediction = plain_decode(self.method.decoders[name], tokens, mask)
            total = total + F.smooth_l1_loss(prediction.float(), goal)
        return total

    @contextmanager
    def explicit_attention(self, wanted: bool) -> Iterator[None]:
        """timm's own attention modules multiply attention out when `fused_attn` is off."""
        nets = [self.method, *(teacher.network for both in self.teachers.values() for teacher in both.values())]
        attentions = [part for net in nets for part in net.modules() if isinstance(part, Attention)]
        for part in attentions:
            part.fused_attn = not wanted
        try:
            yield
        finally:
            for part in attentions:
                part.fused_attn = True

    def backward_and_update(self, loss: Tensor) -> None:
        with self.clock.part("backward"):
            loss.backward()
        with self.clock.part("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
