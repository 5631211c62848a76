"""MVD's training step against a plain implementation of it; both on one machine in one run.

    python benchmarks/mvd_step.py                     # writes benchmarks/results/mvd_step_<machine>.{json,md}
    python benchmarks/mvd_step.py --smoke             # tiny networks, seconds, writes nothing

Clips of 16 frames of 224 pixels, tube masks of 90%, image and video teacher ViT-B, students ViT-S and ViT-B, random
weights (time and memory do not depend on them), eager. On a CPU: float32 student, one clip per step, about ten minutes
on two cores. On a GPU: bfloat16 autocast, 32 clips. For each of `PAIRS`:

1. MACs of the parts, from the product's own count, against the specification's;
2. a whole training step (teachers, student, decoders, loss, backward, AdamW) of the candidates, taking turns;
3. the same with several masks per clip.

Ours is what `vitdistill mvd` runs by default on this machine, but for drop path, which is off. The plain
implementation multiplies attention out, sends every frame through the image teacher and every clip through both
teachers once per mask, picks tokens with boolean indices, and makes its masks in Python. As frames that the target
does not use are easily left out, a plain implementation without them is measured as well; as the teachers' default
dtype is ours too, both are measured with both dtypes of the teachers.
"""

import argparse
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor

from common import machine_name, parser_of, write
from mvd_plain import plain_decode, plain_features, plain_image_features, python_masks
from mvd_tables import MASKS, PARTS, Factor, markdown, section, verdicts, with_masks
from vitdistill.costing.measure import Comparison, compare, hardware, peak_memory_bytes
from vitdistill.methods.mvd import MVD
from vitdistill.methods.options import FeatureDecoder
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.decoder import Decoder
from vitdistill.models.macs import block_macs
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.gather import complement
from vitdistill.tokens.masking import Masking
from vitdistill.training.clock import Clock
from vitdistill.training.precision import cpu_has_bf16, has_bf16
from vitdistill.types import Capture, TokenGrid
from vitdistill.verbs.common import WIDE_ENOUGH

MASKING = Masking(0.9, "tube")
LAST = Capture.at(-1, "output", head=False)


@dataclass(frozen=True)
class Pair:
    """A student and its two teachers.

    Attributes:
        name: in the paper's words, student <- teachers.
        student: timm name; decoders are two blocks of its width and heads, as in the paper's table.
        teacher_args, student_args: more arguments of the architectures.
        plain_masks: masks per clip that plain is timed with on a CPU; its step with m masks is its step on m times
            as many clips, so one of the pairs is enough.
    """

    name: str
    student: str
    teacher_args: dict[str, Any] = field(default_factory=dict)
    student_args: dict[str, Any] = field(default_factory=dict)
    plain_masks: tuple[int, ...] = (1,)

    image_teacher = "vit_base_patch16_224.mae"
    video_teacher = "video_vit_base_patch16_224"


PAIRS = (
    Pair("S <- B", "video_vit_small_patch16_224", plain_masks=(1, 2)),
    Pair("B <- B", "video_vit_base_patch16_224"),
)


def small_pair() -> Pair:
    """Tiny, but wide enough for the teachers' default dtype to be the device's fast one."""
    teacher = {"img_size": 64, "embed_dim": WIDE_ENOUGH, "depth": 2, "num_heads": 3}
    student = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return Pair("small", "video_vit_small_patch16_224", teacher, student, plain_masks=(1, 2))


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
            backbone = build(name, args={"num_classes": 0, **args}, meta=meta)
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
        guests = (Teacher(net, mean=student.input.mean, std=student.input.std) for net in (image, video))
        image_teacher, video_teacher = guests
        return MVD(
            student,
            image_teacher=image_teacher,
            video_teacher=video_teacher,
            mask_ratio=MASKING.ratio,
            mask=MASKING.kind,
            decoder=self.decoder(student),
        ).to(self.device)

    def clips(self) -> Tensor:
        torch.manual_seed(2)
        shape = self.networks(meta=True)[0].input_shape
        return torch.randn(self.batch, *shape, device=self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def default_teacher_dtype(self) -> torch.dtype:
        """What `vitdistill mvd --teacher_dtype auto` takes on this device."""
        width = min(teacher.width for teacher in self.networks(meta=True)[1:])
        fast = has_bf16() if self.device.type == "cuda" else width >= WIDE_ENOUGH and cpu_has_bf16()
        return torch.bfloat16 if fast else torch.float32

    def label(self) -> str:
        return f"{self.pair.name}: {_name(self.dtype)} student, batch {self.batch}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- the candidates ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """One way of doing a step. All share one set of weights, since several sets would not fit into memory.

    Attributes:
        plain: the plain implementation instead of vitdistill.MVD.
        teacher_dtype: of the teachers' weights; where it is float32, autocast (if any) covers plain's teachers.
        masks: per clip.
        every_frame: plain only: whether the image teacher sees also the frames that the target does not use.
    """

    plain: bool = False
    teacher_dtype: torch.dtype = torch.float32
    masks: int = 1
    every_frame: bool = True

    def over(self, **changes: Any) -> "Candidate":
        return Candidate(**{**self.__dict__, **changes})


def candidates(setting: Setting) -> dict[str, Candidate]:
    """The candidates by name.

    Ours and plain with one mask come first under their plain names; the others differ in what the name says. Under
    autocast plain's teachers compute in its dtype as well, so the comparison of dtypes is left out.
    """
    fast = setting.default_teacher_dtype()
    ours, plain = Candidate(teacher_dtype=fast), Candidate(plain=True)
    found = {"ours": ours, "plain": plain, EIGHT_FRAMES: plain.over(every_frame=False)}
    if has_two_dtypes(setting):
        found[OURS_FLOAT32] = ours.over(teacher_dtype=torch.float32)
        found[PLAIN_FAST] = plain.over(teacher_dtype=fast)
    for masks in MASKS[1:]:
        found[with_masks("ours", masks)] = ours.over(masks=masks)
    for masks in plain_masks(setting)[1:]:
        found[with_masks("plain", masks)] = plain.over(masks=masks)
    return found


OURS_FLOAT32, PLAIN_FAST = "ours, float32 teachers", "plain, bfloat16 teachers"
EIGHT_FRAMES = "plain, only the frames that are used"


def has_two_dtypes(setting: Setting) -> bool:
    return setting.dtype == torch.float32 and setting.default_teacher_dtype() != torch.float32


def plain_masks(setting: Setting) -> tuple[int, ...]:
    """Four masks of 32 clips keep more attention matrices than a GPU has memory."""
    return (1, 2) if setting.device.type == "cuda" else setting.pair.plain_masks


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
            student, *guests = setting.networks()
            made = (Teacher(net, mean=student.input.mean, std=student.input.std, dtype=fast) for net in guests)
            self.teachers[fast] = dict(zip(float32, made, strict=True))
        self.optimizer = torch.optim.AdamW([p for p in self.method.parameters() if p.requires_grad], lr=1e-6)
        self.clock = Clock(setting.device)

    def loss(self, candidate: Candidate, hidden: Tensor | None = None) -> Tensor:
        """The loss of a candidate, with masks of its own or given ones."""
        with self.explicit_attention(candidate.plain):
            return self._plain_loss(candidate, hidden) if candidate.plain else self._our_loss(candidate, hidden)

    def _our_loss(self, candidate: Candidate, hidden: Tensor | None) -> Tensor:
        method, clock = self.method, self.clock
        method.clock = lambda _name: clock.part("teachers")
        method.masks_per_clip = candidate.masks
        method.masking = MASKING if hidden is None else Given(hidden)
        for name, target in method.targets.items():
            target.teacher = self.teachers[candidate.teacher_dtype][name]  # type: ignore[attr-defined]
        return method(self.clips).loss

    def _plain_loss(self, candidate: Candidate, hidden: Tensor | None) -> Tensor:
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
    def explicit_attention(self, plain: bool) -> Iterator[None]:
        """timm's own attention modules multiply attention out when `fused_attn` is off."""
        nets = [self.method, *(guest.network for guests in self.teachers.values() for guest in guests.values())]
        attentions = [part for net in nets for part in net.modules() if isinstance(part, Attention)]
        for part in attentions:
            part.fused_attn = not plain
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


# --- measuring ---------------------------------------------------------------------------------------------------


class Step:
    """A candidate's training step, with the time of its parts."""

    def __init__(self, networks: Networks, candidate: Candidate) -> None:
        self.networks, self.candidate = networks, candidate
        self.parts: list[dict[str, float]] = []

    def __call__(self) -> None:
        networks, clock = self.networks, self.networks.clock
        clock.reset()
        with clock.part("forward"), networks.setting.autocast():
            loss = networks.loss(self.candidate)
        networks.backward_and_update(loss)
        totals = clock.totals()
        totals[PARTS[1]] = totals.pop("forward") - totals["teachers"]
        self.parts.append(totals)

    def split(self) -> dict[str, float]:
        """Medians of the parts, in milliseconds."""
        return {name: median(parts[name] for parts in self.parts) for name in PARTS}


def check_candidates(setting: Setting) -> dict[str, dict[str, float]]:
    """With float32 teachers and the same weights and masks, all must give the same loss and gradient.

    Every variant is checked on small networks with two masks per clip; ours and plain on the measured ones too.

    Returns:
        Loss and norm of the gradient of the embedding's weights, of ours and plain on the measured networks.

    Raises:
        AssertionError: when they differ by more than 0.1%.
    """
    ours, plain = Candidate(), Candidate(plain=True)
    small = Setting(small_pair(), 2, 1, setting.device, torch.float32)
    variants = {"ours": ours, "plain": plain, EIGHT_FRAMES: plain.over(every_frame=False)}
    agreed(small, {name: candidate.over(masks=2) for name, candidate in variants.items()})
    exact = Setting(setting.pair, 1, 1, setting.device, torch.float32)
    return agreed(exact, {"ours": ours, "plain": plain})


def agreed(setting: Setting, checked: dict[str, Candidate]) -> dict[str, dict[str, float]]:
    """Loss and gradient of each candidate, after asserting that they agree."""
    networks = Networks(setting)
    random.seed(0)
    seen: dict[str, dict[str, float]] = {}
    hidden = None
    for name, candidate in checked.items():
        if hidden is None:
            count = setting.batch * candidate.masks
            hidden = python_masks(MASKING, count, networks.method.student.grid).to(setting.device)
        loss = networks.loss(candidate, hidden)
        loss.backward()
        grad = networks.method.student.net.get_parameter("patch_embed.proj.weight").grad
        assert grad is not None
        seen[name] = {"loss": loss.item(), "patch_embed_grad_norm": grad.norm().item()}
        networks.method.zero_grad(set_to_none=True)
    for what, value in seen["plain"].items():
        for name, found in seen.items():
            assert abs(found[what] - value) <= 1e-3 * abs(value), (setting.label(), name, seen)
    return seen


def measure_steps(setting: Setting) -> dict[str, Any]:
    """Parts 2 and 3."""
    networks = Networks(setting)
    todo = candidates(setting)
    steps = {name: Step(networks, candidate) for name, candidate in todo.items()}
    for parameter in networks.optimizer.param_groups[0]["params"]:
        parameter.grad = torch.zeros_like(parameter)
    networks.optimizer.step()  # makes the moments, which stay
    networks.optimizer.zero_grad(set_to_none=True)
    # Counting memory is a candidate's first step, and warms it up. On a CPU, where there is little to warm up and a
    # step takes seconds, only where the figure differs much.
    counted = steps if setting.device.type == "cuda" else ["ours", "plain", *(with_masks("ours", m) for m in MASKS[1:])]
    memory = {name: peak_memory_bytes(steps[name], setting.device) for name in counted}
    for step in steps.values():
        step.parts.clear()
    timings = compare(steps, setting.rounds, warmup=0, device=setting.device)
    return {
        "candidates": {
            name: {
                "masks_per_clip": todo[name].masks,
                "median_ms": timing.median_ms,
                "spread_ms": timing.spread_ms,
                "ms_per_clip_and_mask": timing.median_ms / setting.batch / todo[name].masks,
                "clips_per_s": 1000 * setting.batch / timing.median_ms,
                "peak_memory_bytes": memory.get(name),
                "split_ms": steps[name].split(),
            }
            for name, timing in timings.items()
        },
        "speedups": speedups(timings),
        "masks": mask_gains(timings, plain_masks(setting)),
    }


def factor(timings: Comparison, slow: str, fast: str, times: float = 1.0) -> Factor:
    """How many times as long `slow` takes as `fast`, times a constant, from neighbouring runs."""
    pairs = zip(timings[slow].samples_ms, timings[fast].samples_ms, strict=True)
    ratios = [times * a / b for a, b in pairs]
    return {"median": median(ratios), "low": min(ratios), "high": max(ratios)}


def speedups(timings: Comparison) -> dict[str, Factor]:
    """The whole gain with one mask per clip and its causes, each with the others held fixed."""
    found = {"ours": factor(timings, "plain", "ours")}
    alike = OURS_FLOAT32 if OURS_FLOAT32 in timings else "ours"
    found["frames alone, in plain"] = factor(timings, "plain", EIGHT_FRAMES)
    found["code alone"] = factor(timings, "plain", alike)
    found["code alone, plain without unused frames"] = factor(timings, EIGHT_FRAMES, alike)
    if OURS_FLOAT32 in timings:
        found["dtype alone, in plain"] = factor(timings, "plain", PLAIN_FAST)
        found["dtype alone, in ours"] = factor(timings, OURS_FLOAT32, "ours")
        found["code alone, bfloat16 teachers"] = factor(timings, PLAIN_FAST, "ours")
    return found


def mask_gains(timings: Comparison, measured: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Time per clip and mask with several masks, against one mask of ours and against plain."""
    gains: dict[str, dict[str, Any]] = {}
    for masks in MASKS:
        mine, other = (with_masks(name, masks) for name in ("ours", "plain"))
        known = masks in measured
        gains[str(masks)] = {
            "over_one_mask": factor(timings, "ours", mine, masks),
            "over_plain": factor(timings, other if known else "plain", mine, 1 if known else masks),
            "plain_measured": known,
        }
    return gains


def count_macs(setting: Setting) -> dict[str, Any]:
    """Part 1: MACs of a clip's forward pass, and of whole steps.

    The specification's figures are those of the blocks; teachers are counted with their embedding, which is within
    its rounding. The backward pass is two forward passes of student and decoders.
    """
    student, image, video = setting.networks(meta=True)
    grid, visible = student.grid, MASKING.visible(student.grid)
    with torch.device("meta"):
        options = setting.decoder(student)
        decoder = Decoder(
            grid,
            student.specials,
            student.width,
            video.width,
            width=options.width,
            depth=options.depth,
            heads=options.heads,
            positions="sincos_3d",
            key_bias=False,
        )
    blocks = sum(block_macs(block, grid.count, layernorm=False).total for block in decoder.blocks)
    around = decoder.embed.weight.numel() * visible + decoder.pred.weight.numel() * (grid.count - visible)
    encoder = student.macs(visible, capture=LAST, layernorm=False)
    frame = image.macs(capture=LAST, layernorm=False).total
    parts = {
        "image teacher": frame * grid.t,
        "video teacher": video.macs(capture=LAST, layernorm=False).total,
        "student encoder": encoder.blocks,
        "decoders": 2 * blocks,
        "embedding and linear maps of the decoders": encoder.patch_embed + 2 * around,
    }
    teachers = parts["image teacher"] + parts["video teacher"]
    trained = encoder.total + 2 * (blocks + around)
    unused = frame * (student.input.shape[1] - grid.t)
    steps = {masks: teachers + 3 * (trained - encoder.patch_embed) * masks + 3 * encoder.patch_embed for masks in MASKS}
    plain = teachers + unused + 3 * trained
    return {
        "parts": parts,
        "visible_tokens": visible,
        "tokens": grid.count,
        "teachers_share_of_step": teachers / steps[1],
        "limits": {
            str(masks): {"over_one_mask": masks * steps[1] / total, "over_plain": masks * plain / total}
            for masks, total in steps.items()
        },
        "limit_without_unused_frames": (plain - unused) / steps[1],
    }


def measure(setting: Setting) -> dict[str, Any]:
    """All parts in one setting."""
    print(f"measuring {setting.label()} ...", flush=True)
    result = {
        "label": setting.label(),
        "pair": setting.pair.name,
        "networks": {
            "student": setting.pair.student,
            "image teacher": setting.pair.image_teacher,
            "video teacher": setting.pair.video_teacher,
        },
        "batch": setting.batch,
        "dtype": _name(setting.dtype),
        "default_teacher_dtype": _name(setting.default_teacher_dtype()),
        "checks": check_candidates(setting),
        "macs": count_macs(setting),
        "training_step": measure_steps(setting),
    }
    print("\n".join(["", *section(result), ""]), flush=True)  # a pair takes minutes: not all is lost if one fails
    return result


# --- command -----------------------------------------------------------------------------------------------------


def settings(options: argparse.Namespace) -> list[Setting]:
    """What to measure on this machine."""
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    small = options.smoke
    pairs = (small_pair(),) if small else [pair for pair in PAIRS if pair.name.replace(" ", "") in options.pairs]
    precision = options.precision or ("bfloat16" if gpu else "float32")
    return [
        Setting(
            pair,
            batch=options.batch or (32 if gpu else 1),
            rounds=options.rounds or (10 if gpu else 2 if small else 3),
            device=device,
            dtype=getattr(torch, precision),
        )
        for pair in pairs
    ]


def main() -> None:
    """Parse the command line, measure, print, write."""
    names = [pair.name.replace(" ", "") for pair in PAIRS]
    parser = parser_of(__doc__, smoke="tiny networks")
    parser.add_argument("--batch", type=int, help="clips per step; by default 32 on a GPU and 1 on a CPU")
    parser.add_argument("--rounds", type=int, help="timed rounds; by default 10 on a GPU and 3 on a CPU")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], help="of the student; bfloat16 is autocast")
    parser.add_argument("--pairs", nargs="+", default=names, choices=names, help="student<-teachers")
    options = parser.parse_args()

    todo = settings(options)
    result = {
        "machine": options.machine or machine_name(todo[0].device),
        "command": "python benchmarks/mvd_step.py",
        "hardware": hardware(),
        "rounds": todo[0].rounds,
        "settings": [measure(setting) for setting in todo],
    }
    print("\n".join(verdicts(result)))
    if not options.smoke:
        write(options.out, "mvd_step", result, markdown(result))


if __name__ == "__main__":
    main()
