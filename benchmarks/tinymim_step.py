"""TinyMIM's training step against a plain implementation of it; both on one machine in one run.

    python benchmarks/tinymim_step.py                 # writes benchmarks/results/tinymim_step_<machine>.{json,md}
    python benchmarks/tinymim_step.py --smoke         # tiny networks, seconds, writes nothing

On a CPU: float32 student, eager, ten to fifteen minutes on two cores. On a GPU: bfloat16 autocast, eager and
compiled, batches of 128. Weights are random (time and memory do not depend on them). For each of `PAIRS`:

1. a whole training step (teacher, student, relation loss, backward, AdamW) of the candidates, taking turns;
2. the split of that step into its parts;
3. the memory of the relation loss alone, from q, k, v to their gradients;
4. what the MACs alone allow.

Ours is what `vitdistill tinymim` runs by default on this machine. The plain implementation multiplies attention out
in every block of both networks, runs both networks whole, and keeps the relations of all heads until the backward
pass. As the teacher's default dtype is ours too, both are measured with both dtypes of the teacher.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import product
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common import machine_name, met, parser_of, write
from vitdistill.costing.measure import Comparison, compare, hardware, peak_memory_bytes
from vitdistill.losses.relations import relation_kl
from vitdistill.methods.tinymim import TinyMIM
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.surgery.attention_heads import head_count, set_heads
from vitdistill.models.teacher import Teacher
from vitdistill.training.clock import Clock
from vitdistill.training.precision import cpu_has_bf16, has_bf16
from vitdistill.types import QKV, Capture
from vitdistill.verbs.common import WIDE_ENOUGH

OURS, OURS_FLOAT32 = "ours", "ours, float32 teacher"
PLAIN, PLAIN_BFLOAT16 = "plain", "plain, bfloat16 teacher"
RELATIONS = (("q", "k"), ("v", "v"))
PARTS = ("teacher", "student forward", "loss", "backward", "optimizer")
SPLIT_ROUNDS = 3
# What the measurements are held to.
LEAST_SPEEDUP, MOST_RELATION_MEMORY = 1.4, 0.6


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
        backbone = build(name, args={"num_classes": 0, **args}, meta=meta)
        return backbone if meta else backbone.to(self.device)

    def images(self) -> Tensor:
        torch.manual_seed(2)
        return torch.randn(self.batch, 3, *self.student(meta=True).image_size, device=self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def default_teacher_dtype(self) -> torch.dtype | None:
        """What `vitdistill tinymim --teacher_dtype auto` takes on this device; None is float32."""
        on_cpu = self.teacher(meta=True).width >= WIDE_ENOUGH and cpu_has_bf16()
        fast = has_bf16() if self.device.type == "cuda" else on_cpu
        return torch.bfloat16 if fast else None

    def label(self) -> str:
        mode = "compiled" if self.compiled else "eager"
        return f"{self.pair.name}: {_name(self.dtype)} student, {mode}, batch {self.batch}"


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype or torch.float32).removeprefix("torch.")


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


def ours(setting: Setting, teacher_dtype: torch.dtype | None) -> Candidate:
    """vitdistill.TinyMIM; without colour jitter, which the plain implementation has not."""
    guest = Teacher(setting.teacher(), dtype=teacher_dtype)
    method = TinyMIM(setting.student(), guest, teacher_block=setting.pair.block, color_jitter=0)
    if setting.compiled:
        method.student.compile_blocks()
        guest.network.compile_blocks()
    return Candidate(
        method.student.net,
        loss=lambda images: method(images).loss,
        teacher=lambda images: guest(images, capture=method.teacher_capture()).qkv(method.teacher_block),
        student=lambda images: method.student(images, capture=method.student_capture()).qkv(method.student_block),
        distance=bounded_distance,
    )


def bounded_distance(student: QKV, teacher: QKV) -> Tensor:
    """QK and VV as `TinyMIM` adds them up."""
    return torch.stack(
        [relation_kl(*((getattr(x, a), getattr(x, b)) for x in (student, teacher))) for a, b in RELATIONS]
    ).sum()


def plain(setting: Setting, teacher_dtype: torch.dtype | None) -> Candidate:
    """TinyMIM written down directly, over timm's own modules."""
    pupil, guest = setting.student(), setting.teacher()
    for backbone in (pupil, guest):
        if setting.compiled:
            backbone.compile_blocks()
        for module in backbone.modules():
            if isinstance(module, Attention):
                module.fused_attn = False
    net, frozen = pupil.net, guest.net.eval().requires_grad_(False).to(teacher_dtype or torch.float32)

    @torch.no_grad()
    def teacher(images: Tensor) -> QKV:
        return whole_pass(frozen, images.to(teacher_dtype or images.dtype), setting.pair.block - 1)

    def student(images: Tensor) -> QKV:
        return whole_pass(net, images, len(net.blocks) - 1)

    return Candidate(
        net,
        loss=lambda images: plain_distance(student(images), teacher(images)),
        teacher=teacher,
        student=student,
        distance=plain_distance,
    )


def whole_pass(net: VisionTransformer, images: Tensor, block: int) -> QKV:
    """The network to its final norm; returns q, k and v of one block, which runs eagerly to be read."""
    found: list[Tensor] = []
    attention: Any = net.blocks[block].attn
    tokens = net.norm_pre(net._pos_embed(net.patch_embed(images)))
    handle = attention.qkv.register_forward_hook(lambda _module, _inputs, out: found.append(out))
    for index, module in enumerate(net.blocks):
        tokens = module.forward(tokens) if index == block else module(tokens)
    handle.remove()
    net.norm(tokens)
    return QKV(*found[0].unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4))


def plain_distance(student: QKV, teacher: QKV) -> Tensor:
    """KL of whole relations, all heads at once, as `F.kl_div` keeps them for the backward pass."""
    teacher = QKV(*(part.to(student.q.dtype) for part in teacher))
    total = torch.zeros((), device=student.q.device)
    for a, b in RELATIONS:
        own, other = (plain_relation(getattr(x, a), getattr(x, b)) for x in (student, teacher))
        total = total + F.kl_div(own.log(), other, reduction="none").sum(dim=-1).mean()
    return total


def plain_relation(a: Tensor, b: Tensor) -> Tensor:
    return ((a * a.shape[-1] ** -0.5) @ b.transpose(-2, -1)).softmax(dim=-1)


def candidates(setting: Setting) -> dict[str, Callable[[], Candidate]]:
    """The candidates by name; without a faster dtype for the teacher, two are the same as the others."""
    fast = setting.default_teacher_dtype()
    if fast is None:
        return {OURS: lambda: ours(setting, None), PLAIN: lambda: plain(setting, None)}
    return {
        OURS: lambda: ours(setting, fast),
        OURS_FLOAT32: lambda: ours(setting, torch.float32),
        PLAIN: lambda: plain(setting, None),
        PLAIN_BFLOAT16: lambda: plain(setting, fast),
    }


def check_candidates(setting: Setting) -> dict[str, dict[str, float]]:
    """With a float32 teacher, both must give the same loss and gradient, or their times cannot be compared.

    Returns:
        Loss and norm of the gradient of the patch embedding's weights, per candidate, in float32.

    Raises:
        AssertionError: when they differ by more than 0.1%.
    """
    exact = replace(setting, dtype=torch.float32, compiled=False, batch=2)
    images = exact.images()
    seen = {}
    for name, make in ((OURS_FLOAT32, ours), (PLAIN, plain)):
        candidate = make(exact, torch.float32)
        loss = candidate.loss(images)
        loss.backward()
        grad = candidate.net.get_submodule("patch_embed").get_parameter("proj.weight").grad
        assert grad is not None
        seen[name] = {"loss": loss.item(), "patch_embed_grad_norm": grad.norm().item()}
        parts = candidate.distance(candidate.student(images), candidate.teacher(images)).item()
        assert abs(parts - loss.item()) <= 1e-5 * abs(parts), (name, parts, loss.item())
    for what, value in seen[PLAIN].items():
        assert abs(seen[OURS_FLOAT32][what] - value) <= 1e-3 * abs(value), (setting.label(), seen)
    return seen


# --- measuring ---------------------------------------------------------------------------------------------------


class Runner:
    """One candidate's training step, whole or with its parts timed."""

    def __init__(self, setting: Setting, candidate: Candidate, images: Tensor) -> None:
        self.setting, self.candidate, self.images = setting, candidate, images
        trained = [parameter for parameter in candidate.net.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6)
        self.clock = Clock(setting.device)

    def step(self) -> None:
        with self.setting.autocast():
            loss = self.candidate.loss(self.images)
        loss.backward()
        self._update()

    def split(self) -> dict[str, float]:
        """Milliseconds of each of `PARTS` in one step."""
        part = self.clock.part
        self.clock.reset()
        with self.setting.autocast():
            with part("teacher"):
                teacher = self.candidate.teacher(self.images)
            with part("student forward"):
                student = self.candidate.student(self.images)
            with part("loss"):
                loss = self.candidate.distance(student, teacher)
        with part("backward"):
            loss.backward()
        with part("optimizer"):
            self._update()
        return self.clock.totals()

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def measure_steps(setting: Setting) -> dict[str, Any]:
    """Parts 1 and 2."""
    images = setting.images()
    runners = {name: Runner(setting, make(), images) for name, make in candidates(setting).items()}
    for runner in runners.values():
        runner.step()  # optimizer moments, and compilation
    # Memory on a CPU is counted per operator, and compiled code hides its operators.
    seen = runners if setting.device.type == "cuda" or not setting.compiled else {}
    memory = {name: peak_memory_bytes(runner.step, setting.device) for name, runner in seen.items()}
    steps = {name: runner.step for name, runner in runners.items()}
    timings = compare(steps, setting.repeats, warmup=1, device=setting.device)
    splits: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
    for _ in range(SPLIT_ROUNDS + 1):
        for name, runner in runners.items():
            splits[name].append(runner.split())
    return {
        "candidates": {
            name: {
                **timings[name].as_dict(setting.batch),
                "over_plain": timings.ratio(PLAIN, name),
                "peak_memory_bytes": memory.get(name),
                # The first round warms up.
                "split_ms": {part: median(split[part] for split in splits[name][1:]) for part in PARTS},
            }
            for name in runners
        },
        "speedups": speedups(timings),
    }


def speedups(timings: Comparison) -> dict[str, float]:
    """The whole gain and its two causes, each with the other held fixed in either way."""
    found = {"ours": timings.ratio(PLAIN, OURS)}
    if OURS_FLOAT32 in timings:
        found |= {
            "dtype alone, in plain": timings.ratio(PLAIN, PLAIN_BFLOAT16),
            "dtype alone, in ours": timings.ratio(OURS_FLOAT32, OURS),
            "code alone, float32 teacher": timings.ratio(PLAIN, OURS_FLOAT32),
            "code alone, bfloat16 teacher": timings.ratio(PLAIN_BFLOAT16, OURS),
        }
    return found


def measure_relations(setting: Setting) -> dict[str, Any]:
    """Part 3: bytes above the inputs, from q, k, v to the gradients of the student's."""
    student, teacher = setting.student(meta=True), setting.teacher(meta=True)
    heads, tokens = head_count(student, -1), student.specials + student.grid.count
    shape = (setting.batch, heads, tokens)

    def qkv(width: int, dtype: torch.dtype, grad: bool = False) -> QKV:
        one = (torch.randn(*shape, width // heads, device=setting.device, dtype=dtype) for _ in "qkv")
        return QKV(*(part.requires_grad_(grad) for part in one))

    def peak(distance: Callable[[QKV, QKV], Tensor], teacher_dtype: torch.dtype) -> int:
        own, other = qkv(student.width, setting.dtype, grad=True), qkv(teacher.width, teacher_dtype)

        def work() -> None:
            with setting.autocast():
                loss = distance(own, other)
            loss.backward()
            for part in own:
                part.grad = None

        work()
        return peak_memory_bytes(work, setting.device)

    return {
        "shape": [*shape, tokens],
        "one_float32_relation_bytes": 4 * setting.batch * heads * tokens**2,
        OURS: peak(bounded_distance, setting.default_teacher_dtype() or setting.dtype),
        PLAIN: peak(plain_distance, setting.dtype),
    }


def count_macs(setting: Setting) -> dict[str, float]:
    """Part 4: MACs of one image's step; the backward pass is two forward passes of what the loss reaches."""
    student, teacher = setting.student(meta=True), setting.teacher(meta=True)
    reached = student.macs(capture=Capture.at(-1, "qkv", head=False)).total
    stopped = teacher.macs(capture=Capture.at(setting.pair.block - 1, "qkv", head=False)).total
    ours_total = stopped + 3 * reached
    plain_total = teacher.macs().total + student.macs().total + 2 * reached
    return {OURS: ours_total, PLAIN: plain_total, "ratio": plain_total / ours_total}


def measure(setting: Setting) -> dict[str, Any]:
    """All parts in one setting."""
    torch._dynamo.reset()
    print(f"measuring {setting.label()} ...", flush=True)
    return {
        "label": setting.label(),
        "pair": setting.pair.name,
        "teacher": setting.pair.teacher,
        "teacher_block": setting.pair.block,
        "teacher_depth": setting.teacher(meta=True).depth,
        "student": setting.pair.student,
        "heads": [head_count(setting.student(meta=True), 0), head_count(setting.student(meta=True), -1)],
        "batch": setting.batch,
        "dtype": _name(setting.dtype),
        "compiled": setting.compiled,
        "default_teacher_dtype": _name(setting.default_teacher_dtype()),
        "macs": count_macs(setting),
        "training_step": measure_steps(setting),
        "relation_memory": measure_relations(setting),
    }


# --- results -----------------------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The tables, for people."""
    machine = result["hardware"]
    lines = [
        f"# TinyMIM's step on {result['machine']}",
        "",
        f"`{result['command']}`. {machine['cpu']}, {machine['cpu_cores']} cores, {machine['threads']} threads, "
        f"GPU {machine['gpu'] or 'none'}; torch {machine['torch']}, timm {machine['timm']}. "
        f"Medians of {result['repeats']} rounds in which the candidates take turns; spread is between quartiles, and "
        f"factors are medians over the rounds; the parts of a step are medians of {SPLIT_ROUNDS} rounds "
        "of their own. Peak memory is what a step allocates "
        "above weights and optimizer state that stay. Random weights; before timing, loss and gradient of both "
        "implementations were checked to agree.",
        "",
        "Ours is what `vitdistill tinymim` runs by default. Plain multiplies attention out in every block, runs both "
        "networks to their ends and keeps the relations of all heads. Ours computes the gradient of q, k and v while "
        "it computes the loss, so part of its backward pass counts as loss.",
        "",
        *(f"- {line}" for line in verdicts(result)),
    ]
    for part in result["settings"]:
        lines += ["", f"## {part['label']}", "", pair_line(part), "", *step_table(part), "", causes(part)]
        lines += ["", memory_line(part)]
    return "\n".join(lines) + "\n"


def pair_line(part: dict[str, Any]) -> str:
    before, after = part["heads"]
    return (
        f"{part['teacher']}, block {part['teacher_block']} of {part['teacher_depth']}, teaches {part['student']}, "
        f"whose last block has {after} heads instead of {before}."
    )


def step_table(part: dict[str, Any]) -> list[str]:
    rows = part["training_step"]["candidates"]
    lines = [
        f"| candidate | ms/step | spread | images/s | over plain | peak MiB | {' ms | '.join(PARTS)} ms |",
        "|---|" + "---:|" * (5 + len(PARTS)),
    ]
    for name, row in rows.items():
        memory = "" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**20:,.0f}"
        split = " | ".join(f"{row['split_ms'][name]:,.1f}" for name in PARTS)
        lines.append(
            f"| {name} | {row['median_ms']:,.1f} | {row['spread_ms']:,.1f} | {row['images_per_s']:,.1f} "
            f"| {row['over_plain']:.2f}x | {memory} | {split} |"
        )
    return lines


def causes(part: dict[str, Any]) -> str:
    """Which part of the gain comes from where."""
    gain, limit = part["training_step"]["speedups"], part["macs"]["ratio"]
    macs = (
        f"In MACs, stopping teacher and student inside the compared block is worth {limit:.2f}x; the rest of that "
        "factor is fused attention and bounded relations."
    )
    whole = f"Ours takes 1/{gain['ours']:.2f} of plain's time"
    if len(gain) == 1:
        return f"{whole}, with a float32 teacher in both. {macs}"
    dtype = (
        f"the teacher's dtype alone (bfloat16 instead of float32) is worth {gain['dtype alone, in plain']:.2f}x in the "
        f"plain code and {gain['dtype alone, in ours']:.2f}x in ours"
    )
    if part["dtype"] != "float32":
        dtype = (
            "none of it is the teacher's dtype, since plain computes in bfloat16 too; keeping the weights in it, "
            f"instead of casting them in every pass, is worth {gain['dtype alone, in plain']:.2f}x in the plain code "
            f"(a teacher really in float32 would make ours {gain['dtype alone, in ours']:.2f} times as slow)"
        )
    code = f"{gain['code alone, bfloat16 teacher']:.2f}x with bfloat16 weights of the teacher in both"
    if part["dtype"] == "float32":
        code += f" and {gain['code alone, float32 teacher']:.2f}x with float32 ones"
    return f"{whole}: {dtype}; stopping early, fused attention and bounded relations are worth {code}. {macs}"


def memory_line(part: dict[str, Any]) -> str:
    memory = part["relation_memory"]
    one = memory["one_float32_relation_bytes"]
    mine, other = (f"{memory[name] / 2**20:,.1f} MiB ({memory[name] / one:.2f} such tensors)" for name in (OURS, PLAIN))
    return (
        f"Relation loss alone (Q-K and V-V, from q, k, v to their gradients): one relation of all heads, "
        f"{tuple(memory['shape'])} in float32, is {one / 2**20:,.1f} MiB; ours takes {mine}, plain {other}, "
        f"{memory[OURS] / memory[PLAIN]:.2f} of it."
    )


def verdicts(result: dict[str, Any]) -> list[str]:
    """The expectations, each with what was measured."""
    lines = []
    for part in result["settings"]:
        factors = part["training_step"]["speedups"]
        gain, same = factors["ours"], factors.get("code alone, bfloat16 teacher")
        alike = "" if same is None else f" ({same:.2f}x with the teacher's weights in one dtype)"
        share = part["relation_memory"][OURS] / part["relation_memory"][PLAIN]
        lines += [
            f"{met(gain >= LEAST_SPEEDUP)}: {part['label']}: step {gain:.2f}x faster than plain{alike}, "
            f"expected at least {LEAST_SPEEDUP}x",
            f"{met(share <= MOST_RELATION_MEMORY)}: {part['label']}: relations take {share:.2f} of plain's memory, "
            f"expected at most {MOST_RELATION_MEMORY}",
        ]
    return lines


# --- command -----------------------------------------------------------------------------------------------------


def smoke_pair() -> Pair:
    """Tiny, but wide enough for the teacher's default dtype to be the device's fast one."""
    teacher = {"img_size": 64, "embed_dim": WIDE_ENOUGH, "depth": 4, "num_heads": 4}
    student = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return Pair("smoke", "vit_tiny_patch16_224", "vit_tiny_patch16_224", 3, 4, teacher, student)


def settings(options: argparse.Namespace) -> list[Setting]:
    """What to measure on this machine."""
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    pairs = (smoke_pair(),) if options.smoke else PAIRS
    return [
        Setting(
            pair,
            batch=options.batch or (128 if gpu and not options.smoke else pair.cpu_batch),
            repeats=2 if options.smoke else options.repeats,
            device=device,
            dtype=torch.bfloat16 if gpu else torch.float32,
            compiled=compiled,
        )
        for compiled, pair in product([False, True] if gpu or options.compile else [False], pairs)
    ]


def main() -> None:
    parser = parser_of(__doc__, smoke="tiny networks")
    parser.add_argument("--batch", type=int, help="images per step of every pair; by default 128 on a GPU, else 4 or 8")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--compile", action="store_true", help="measure compiled blocks on a CPU as well")
    options = parser.parse_args()

    todo = settings(options)
    checks = {setting.pair.name: check_candidates(setting) for setting in todo if not setting.compiled}
    result = {
        "machine": options.machine or machine_name(todo[0].device),
        "command": "python benchmarks/tinymim_step.py",
        "hardware": hardware(),
        "repeats": todo[0].repeats,
        "checks": checks,
        "settings": [measure(setting) for setting in todo],
    }
    print(markdown(result))
    if not options.smoke:
        write(options.out, "tinymim_step", result, markdown(result))


if __name__ == "__main__":
    main()
