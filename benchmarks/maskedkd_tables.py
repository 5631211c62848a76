"""The tables and verdicts of `maskedkd_step.py`, out of what it measured."""

from typing import Any

from common import AUTHORS, met

OURS, OURS_FULL = "ours, 50% kept", "ours, all kept"
MASKED_AUTHORS = f"{AUTHORS}, 50% kept"
TIMM = "timm LogitDistillationTask, all kept"
# What the measurements are held to on two CPU cores.
LEAST_GAIN, MOST_SALIENCY, LEAST_OVER_AUTHORS, LEAST_OVER_TIMM = 0.93, 0.01, 0.95, 1.3


def markdown(result: dict[str, Any]) -> str:
    """The tables, for people."""
    machine = result["hardware"]
    lines = [
        f"# MaskedKD's step on {result['machine']}",
        "",
        f"`python benchmarks/maskedkd_step.py`. {machine['cpu']}, {machine['cpu_cores']} cores, "
        f"{machine['threads']} threads, GPU {machine['gpu'] or 'none'}; torch {machine['torch']}, "
        f"timm {machine['timm']}. Medians of {result['repeats']} rounds in which the candidates take turns; "
        "spread is between quartiles. "
        "Peak memory is what a pass or step allocates above weights, gradients and optimizer state that stay.",
        "",
        f"All candidates of a setting compute in one dtype. '{MASKED_AUTHORS}' masks too, with explicit attention in "
        "every block of both networks. timm's task is the weaker baseline: its teacher sees every patch.",
        "",
        *(f"- {line}" for line in verdicts(result)),
    ]
    for part in result["settings"]:
        lines += ["", f"## {part['label']}", "", *step_table(result, part), "", saliency_line(result, part)]
        for teacher, rows in part["teacher_forward"].items():
            lines += ["", *forward_table(teacher, rows)]
    return "\n".join(lines) + "\n"


def forward_table(teacher: str, measured: list[dict[str, Any]]) -> list[str]:
    rows = [
        f"Teacher's forward pass, {teacher}:",
        "",
        "| patches | ms/image | images/s | peak MiB | gain | limit (MACs) | gain / limit |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in measured:
        rows.append(
            f"| {row['patches']} | {row['ms_per_image']:.3f} | {row['images_per_s']:,.1f} "
            f"| {row['peak_memory_bytes'] / 2**20:,.1f} | {row['gain']:.2f}x | {row['mac_ratio']:.2f}x "
            f"| {row['gain_share_of_limit']:.1%} |"
        )
    return rows


def saliency_line(result: dict[str, Any], part: dict[str, Any]) -> str:
    step = part["student_step"]
    return (
        f"Saliency and selection take {step['saliency']['median_ms']:.2f} ms, "
        f"{step['saliency_share_of_step']:.2%} of the step of the student {result['student']} "
        f"({step['step']['median_ms']:.1f} ms without them; with them {step['step_ratio']:.3f} times as long)."
    )


def step_table(result: dict[str, Any], part: dict[str, Any]) -> list[str]:
    steps = part["training_step"]
    rows = [
        f"Whole training step, {result['teacher']} -> {result['student']} "
        f"(masking half can gain at most {steps['speedup_limit_of_masking']:.2f}x):",
        "",
        "| candidate | ms/step | spread | images/s | peak MiB | its time over ours |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in steps["candidates"].items():
        memory = "" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**20:,.0f}"
        faster = "" if name == OURS else f"{steps['speedup_of_ours'][name]:.2f}x"
        rows.append(
            f"| {name} | {row['median_ms']:.1f} | {row['spread_ms']:.1f} | {row['images_per_s']:,.1f} "
            f"| {memory} | {faster} |"
        )
    return rows


def verdicts(result: dict[str, Any]) -> list[str]:
    """The expectations, each with what was measured in the first setting."""
    part = result["settings"][0]
    half = part["teacher_forward"][result["forward_teacher"]][2]["gain_share_of_limit"]
    saliency = part["student_step"]["saliency_share_of_step"]
    authors, timm = (part["training_step"]["speedup_of_ours"][name] for name in (MASKED_AUTHORS, TIMM))
    return [
        f"{met(authors >= LEAST_OVER_AUTHORS)}: {authors:.2f}x over a step {AUTHORS}, in equal dtypes; "
        f"expected no slower (at least {LEAST_OVER_AUTHORS}x)",
        f"{met(timm >= LEAST_OVER_TIMM)}: {timm:.2f}x over timm's task, the weaker baseline, whose teacher sees every "
        f"patch; expected at least {LEAST_OVER_TIMM}x",
        f"{met(half >= LEAST_GAIN)}: gain at 50% is {half:.1%} of the MAC ratio, expected at least {LEAST_GAIN:.0%}",
        f"{met(saliency < MOST_SALIENCY)}: saliency is {saliency:.2%} of the student's step, "
        f"expected below {MOST_SALIENCY:.0%}",
    ]
