"""MVD's training step against the authors' way of computing it, and a plain one; all on one machine in one run.

    python benchmarks/mvd_step.py                     # writes benchmarks/results/mvd_step_<machine>.{json,md}
    python benchmarks/mvd_step.py --smoke             # tiny networks, seconds, writes nothing

Clips of 16 frames of 224 pixels, tube masks of 90%, image and video teacher ViT-B, students ViT-S and ViT-B, random
weights (time and memory do not depend on them), eager. On a CPU: float32 student, one clip per step, about ten minutes
on two cores. On a GPU: bfloat16 autocast, 32 clips. For each of `PAIRS`:

1. MACs of the parts, from the product's own count, against the specification's;
2. a whole training step (teachers, student, decoders, loss, backward, AdamW) of the candidates, taking turns;
3. the same with several masks per clip.

Ours is what `vitdistill mvd` runs by default on this machine, but for drop path, which is off. The first comparison is
with a step computed as the authors' code does it: attention multiplied out, every second frame through the image
teacher, both teachers once per clip and mask, tokens picked with boolean indices, masks made in Python. Plain is the
weaker baseline: it sends all frames through the image teacher, half of them for nothing. As the teachers' default
dtype is ours too, all are measured with both dtypes of the teachers.
"""

import argparse
import random
from statistics import median
from typing import Any

import torch

from common import AUTHORS, dtype_name, machine_name, parser_of, write
from mvd_candidates import (
    LAST,
    MASKING,
    PAIRS,
    Candidate,
    Networks,
    Setting,
    authors_masks,
    candidates,
    equal_authors,
    has_two_dtypes,
    small_pair,
)
from mvd_plain import python_masks
from mvd_tables import MASKS, OURS, PARTS, PLAIN, Factor, markdown, section, verdicts, with_dtype, with_masks
from vitdistill.costing.measure import Comparison, compare, hardware, peak_memory_bytes
from vitdistill.models.decoder import Decoder
from vitdistill.models.macs import self_attention_macs

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

    Every variant is checked on small networks with two masks per clip; ours and the authors' on the measured ones too.

    Returns:
        Loss and norm of the gradient of the embedding's weights, of ours and the authors' on the measured networks.

    Raises:
        AssertionError: when they differ by more than 0.1%.
    """
    small = Setting(small_pair(), 2, 1, setting.device, torch.float32)
    variants = {OURS: Candidate(masks=2)}
    variants |= {AUTHORS: Candidate(ours=False, masks=2), PLAIN: Candidate(ours=False, masks=2, every_frame=True)}
    agreed(small, variants)
    exact = Setting(setting.pair, 1, 1, setting.device, torch.float32)
    return agreed(exact, {OURS: Candidate(), AUTHORS: Candidate(ours=False)})


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
    for what, value in seen[OURS].items():
        for name, figures in seen.items():
            assert abs(figures[what] - value) <= 1e-3 * abs(value), (setting.label(), name, seen)
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
    differing = [equal_authors(setting), *(with_masks(OURS, masks) for masks in MASKS)]
    counted = steps if setting.device.type == "cuda" else differing
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
        "speedups": speedups(setting, timings),
        "masks": mask_gains(setting, timings),
    }


def factor(timings: Comparison, slow: str, fast: str, times: float = 1.0) -> Factor:
    """How many times as long `slow` takes as `fast`, times a constant, from neighbouring runs."""
    pairs = zip(timings[slow].samples_ms, timings[fast].samples_ms, strict=True)
    ratios = [times * a / b for a, b in pairs]
    return {"median": median(ratios), "low": min(ratios), "high": max(ratios)}


def speedups(setting: Setting, timings: Comparison) -> dict[str, dict[str, Factor]]:
    """How many times as long the others' steps take as ours, by the dtypes of the teachers: first in equal ones."""
    fast = setting.default_teacher_dtype()
    if not has_two_dtypes(setting):
        return {name: {f"{dtype_name(fast)} in both": factor(timings, name, OURS)} for name in (AUTHORS, PLAIN)}
    return {
        name: {
            f"{dtype_name(fast)} in both": factor(timings, with_dtype(name, fast), OURS),
            "float32 in both": factor(timings, name, with_dtype(OURS, torch.float32)),
            f"float32, ours {dtype_name(fast)}": factor(timings, name, OURS),
        }
        for name in (AUTHORS, PLAIN)
    }


def mask_gains(setting: Setting, timings: Comparison) -> dict[str, dict[str, Any]]:
    """Time per clip and mask with several masks, against one mask of ours and against the authors' way, in equal
    dtypes."""
    gains: dict[str, dict[str, Any]] = {}
    for masks in MASKS:
        mine, other = (with_masks(name, masks) for name in (OURS, equal_authors(setting)))
        timed = masks in authors_masks(setting)
        over_authors = factor(timings, other, mine) if timed else factor(timings, equal_authors(setting), mine, masks)
        over_one_mask = factor(timings, OURS, mine, masks)
        gains[str(masks)] = {"over_one_mask": over_one_mask, "over_authors": over_authors, "authors_timed": timed}
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
            student.final_specials,
            student.width,
            video.width,
            width=options.width,
            depth=options.depth,
            heads=options.heads,
            positions="sincos_3d",
            key_bias=False,
        )
    blocks = sum(self_attention_macs(block, grid.count, layernorm=False).total for block in decoder.blocks)
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
    assert student.input.frames is not None
    unused = frame * (student.input.frames - grid.t)
    steps = {masks: teachers + 3 * (trained - encoder.patch_embed) * masks + 3 * encoder.patch_embed for masks in MASKS}
    authors = teachers + 3 * trained
    return {
        "parts": parts,
        "visible_tokens": visible,
        "tokens": grid.count,
        "teachers_share_of_step": teachers / steps[1],
        "limits": {
            str(masks): {"over_one_mask": masks * steps[1] / total, "over_authors": masks * authors / total}
            for masks, total in steps.items()
        },
        "limit_over_plain": (authors + unused) / steps[1],
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
        "dtype": dtype_name(setting.dtype),
        "default_teacher_dtype": dtype_name(setting.default_teacher_dtype()),
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
