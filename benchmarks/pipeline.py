"""Student and teacher at once: the forward phase of MaskedKD in parts, against what the time model predicts.

    python benchmarks/pipeline.py                      # writes benchmarks/results/pipeline_<machine>.{json,md}
    python benchmarks/pipeline.py --smoke              # tiny networks, seconds, writes nothing

On a CPU with two cores or more: student and teacher in a thread each, both with one thread for their operators. Timed
in turns: the student's pass with its graph kept, the masked teacher's pass, both one after the other on one thread and
on two, and both at once in 2, 4 and 8 parts. Predicted is `costing.pipeline.forward_time` of the two passes alone, with
no overhead. Networks are cut to a few blocks and small images; weights are random.

Two threads for the operators of one pass after the other use both cores as well, without any parts. That row says
whether pipelining pays on such a machine; on two GPUs there is no such choice.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from common import machine_name, met, parser_of, write
from vitdistill.costing.measure import compare, hardware
from vitdistill.costing.pipeline import forward_time
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.methods.pipelining.pipeline import Pipeline
from vitdistill.models.build import build

STUDENT, TEACHER, KEEP = "deit_tiny_patch16_224", "deit_small_patch16_224", 0.5
PARTS = (2, 4, 8)
ONE, TWO = "in series, one thread", "in series, two threads"
LEAST_EFFICIENCY = 0.75


def measure(batch: int, depth: int, size: int, repeats: int) -> dict[str, Any]:
    """Medians in milliseconds, and what is predicted from the two passes alone."""
    torch.manual_seed(0)
    args = {"img_size": size, "depth": depth, "num_classes": 10}
    method = MaskedKD(build(STUDENT, args=args), build(TEACHER, args=args), keep=KEEP).train()
    images = torch.randn(batch, 3, size, size)
    lesson = method.lessons[0]

    def student() -> Any:
        return method.student_pass(images, None, 0.0)

    seen = student()
    keep = method.kept(lesson, images, seen, 0.0)

    def series() -> None:
        method.taught(lesson, images, student(), 0.0)

    def on(threads: int, work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            torch.set_num_threads(threads)
            work()

        return run

    work = {
        "student": on(1, student),
        "teacher": on(1, lambda: lesson.teacher(images, keep=keep)),
        ONE: on(1, series),
        TWO: on(2, series),
        # A lane gives half of the threads to each.
        **{str(parts): on(2, partial(Pipeline(parts).passes, method, images, 0.0)) for parts in PARTS},
    }
    timings = compare(work, repeats, warmup=2)
    times = {name: timings[name].median_ms for name in work}
    rows = []
    for parts in (1, *PARTS):
        name = ONE if parts == 1 else str(parts)
        predicted = forward_time(times["student"], times["teacher"], parts)
        rows.append(
            {
                "parts": parts,
                "predicted_ms": predicted,
                "measured_ms": times[name],
                "spread_ms": timings[name].spread_ms,
                "efficiency": predicted / times[name],
                "gain_over_one_thread": timings.ratio(ONE, name),
                "gain_over_two_threads": timings.ratio(TWO, name),
            }
        )
    return {"batch": batch, "student_ms": times["student"], "teacher_ms": times["teacher"], "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    machine = result["hardware"]
    lines = [
        f"# Student and teacher at once on {result['machine']}",
        "",
        f"`python benchmarks/pipeline.py`. {machine['cpu']}, {machine['cpu_cores']} cores; torch {machine['torch']}. "
        f"{STUDENT} learns from {TEACHER}, both with {result['depth']} blocks and images of {result['size']} pixels, "
        f"{KEEP:.0%} of the patches kept. Forward phase: the student's pass with its graph, the ranking, the masked "
        f"teacher's pass. One thread each; medians of {result['repeats']} rounds in which all take turns. Predicted "
        "from the two passes alone, without overhead; efficiency is predicted over measured.",
    ]
    for part in result["settings"]:
        lines += [
            "",
            f"## Batch {part['batch']}",
            "",
            f"Student alone {part['student_ms']:.1f} ms, teacher alone {part['teacher_ms']:.1f} ms.",
            "",
            "| parts | predicted ms | measured ms | spread | efficiency | gain over series, one thread | two threads |",
            "|---:|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {row['parts']} | {row['predicted_ms']:.1f} | {row['measured_ms']:.1f} | {row['spread_ms']:.1f} "
            f"| {row['efficiency']:.2f} | {row['gain_over_one_thread']:.2f}x | {row['gain_over_two_threads']:.2f}x |"
            for row in part["rows"]
        ]
        best = max(row["efficiency"] for row in part["rows"][1:])
        lines += ["", f"- {met(best >= LEAST_EFFICIENCY)}: within 25% of the prediction at best ({best:.2f})"]
    return "\n".join(lines) + "\n"


def options() -> argparse.Namespace:
    parser = parser_of(__doc__, smoke="two blocks, small images", device=False)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 32], help="images per step, one after another")
    parser.add_argument("--repeats", type=int, default=11, help="timed rounds")
    return parser.parse_args()


def main() -> None:
    given = options()
    depth, size, repeats = (2, 32, 2) if given.smoke else (4, 112, given.repeats)
    result = {
        "machine": given.machine or machine_name(torch.device("cpu")),
        "hardware": hardware(),
        "depth": depth,
        "size": size,
        "repeats": repeats,
        "settings": [measure(batch, depth, size, repeats) for batch in given.batch],
    }
    print(markdown(result))
    if not given.smoke:
        write(given.out, "pipeline", result, markdown(result))


if __name__ == "__main__":
    main()
