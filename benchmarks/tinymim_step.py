"""TinyMIM's training step against the authors' way of computing it, and a plain one; all on one machine in one run.

    python benchmarks/tinymim_step.py                 # writes benchmarks/results/tinymim_step_<machine>.{json,md}
    python benchmarks/tinymim_step.py --smoke         # tiny networks, seconds, writes nothing

On a CPU: float32 student, eager, ten to fifteen minutes on two cores. On a GPU: bfloat16 autocast, eager and
compiled, batches of 128. Weights are random (time and memory do not depend on them). For each of `PAIRS`:

1. a whole training step (teacher, student, relation loss, backward, AdamW) of the candidates, taking turns;
2. the split of that step into its parts;
3. the memory of the relation loss alone, from q, k, v to their gradients;
4. what the MACs alone allow.

Ours is what `vitdistill tinymim` runs by default on this machine. The first comparison is with a step computed as the
authors' code does it: whole blocks up to the compared one in both networks, attention multiplied out in each, and the
relations of all heads kept until the backward pass. Plain is the weaker baseline: it also runs what lies behind the
teacher's block, for nothing. As the teacher's default dtype is ours too, all are measured with both dtypes of it.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor

from common import AUTHORS, WIDE_ENOUGH, dtype_name, machine_name, parser_of, write
from tinymim_candidates import (
    IMPLEMENTATIONS,
    PAIRS,
    Candidate,
    Pair,
    Setting,
    all_heads_distance,
    bounded_distance,
    candidates,
)
from tinymim_tables import OURS, PARTS, PLAIN, SPLIT_ROUNDS, markdown, with_dtype
from vitdistill.costing.measure import Comparison, compare, hardware, peak_memory_bytes
from vitdistill.models.surgery.attention_heads import head_count
from vitdistill.training.clock import Clock
from vitdistill.types import QKV, Capture

# --- measuring ---------------------------------------------------------------------------------------------------


def check_candidates(setting: Setting) -> dict[str, dict[str, float]]:
    """With a float32 teacher, all must give the same loss and gradient, or their times cannot be compared.

    Returns:
        Loss and norm of the gradient of the patch embedding's weights, per implementation, in float32.

    Raises:
        AssertionError: when they differ by more than 0.1%.
    """
    exact = replace(setting, dtype=torch.float32, compiled=False, batch=2)
    images = exact.images()
    seen = {}
    for name, make in IMPLEMENTATIONS.items():
        candidate = make(exact, torch.float32)
        loss = candidate.loss(images)
        loss.backward()
        grad = candidate.net.get_submodule("patch_embed").get_parameter("proj.weight").grad
        assert grad is not None
        seen[name] = {"loss": loss.item(), "patch_embed_grad_norm": grad.norm().item()}
        parts = candidate.distance(candidate.student(images), candidate.teacher(images)).item()
        assert abs(parts - loss.item()) <= 1e-5 * abs(parts), (name, parts, loss.item())
    for what, value in seen[PLAIN].items():
        for name, figures in seen.items():
            assert abs(figures[what] - value) <= 1e-3 * abs(value), (setting.label(), name, seen)
    return seen


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
                "peak_memory_bytes": memory.get(name),
                # The first round warms up.
                "split_ms": {part: median(split[part] for split in splits[name][1:]) for part in PARTS},
            }
            for name in runners
        },
        "speedups": speedups(setting, timings),
    }


def speedups(setting: Setting, timings: Comparison) -> dict[str, dict[str, float]]:
    """How many times as long the others' steps take as ours, by the dtypes of the teachers: first in equal ones."""
    fast = setting.default_teacher_dtype()
    gains: dict[str, dict[str, float]] = {AUTHORS: {}, PLAIN: {}}
    for name, by_dtype in gains.items():
        for dtype in dict.fromkeys((fast, torch.float32)):
            if with_dtype(OURS, dtype) in timings:
                by_dtype[f"{dtype_name(dtype)} in both"] = timings.ratio(
                    with_dtype(name, dtype), with_dtype(OURS, dtype)
                )
        if fast != torch.float32:
            float32, mine = with_dtype(name, torch.float32), with_dtype(OURS, fast)
            by_dtype[f"float32, ours {dtype_name(fast)}"] = timings.ratio(float32, mine)
    return gains


def measure_relations(setting: Setting) -> dict[str, Any]:
    """Part 3: bytes above the inputs, from q, k, v to the gradients of the student's."""
    student, teacher = setting.student(meta=True), setting.teacher(meta=True)
    heads, tokens = head_count(student, -1), student.specials + student.grid.count
    shape = (setting.batch, heads, tokens)

    def qkv(width: int, dtype: torch.dtype, grad: bool = False) -> QKV:
        one = (torch.randn(*shape, width // heads, device=setting.device, dtype=dtype) for _ in "qkv")
        q, k, v = (part.requires_grad_(grad) for part in one)
        return QKV(q, k, v, student.specials)

    def peak(distance: Callable[[QKV, QKV], Tensor], teacher_dtype: torch.dtype) -> int:
        own, other = qkv(student.width, setting.dtype, grad=True), qkv(teacher.width, teacher_dtype)

        def work() -> None:
            with setting.autocast():
                loss = distance(own, other)
            loss.backward()
            own.q.grad = own.k.grad = own.v.grad = None

        work()
        return peak_memory_bytes(work, setting.device)

    return {
        "shape": [*shape, tokens],
        "one_float32_relation_bytes": 4 * setting.batch * heads * tokens**2,
        OURS: peak(bounded_distance, setting.default_teacher_dtype()),
        AUTHORS: peak(all_heads_distance, setting.dtype),
    }


def count_macs(setting: Setting) -> dict[str, float]:
    """Part 4: MACs of one image's step; the backward pass is two forward passes of what the loss reaches."""
    student, teacher, block = setting.student(meta=True), setting.teacher(meta=True), setting.pair.block - 1
    reached = student.macs(capture=Capture.at(-1, "qkv", head=False)).total
    steps = {
        OURS: teacher.macs(capture=Capture.at(block, "qkv", head=False)).total + reached,
        AUTHORS: sum(
            network.macs(capture=Capture.at(last, "output", head=False)).total
            for network, last in ((teacher, block), (student, -1))
        ),
        PLAIN: teacher.macs().total + student.macs().total,
    }
    return {name: forward + 2 * reached for name, forward in steps.items()}


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
        "dtype": dtype_name(setting.dtype),
        "compiled": setting.compiled,
        "default_teacher_dtype": dtype_name(setting.default_teacher_dtype()),
        "macs": count_macs(setting),
        "training_step": measure_steps(setting),
        "relation_memory": measure_relations(setting),
    }


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
