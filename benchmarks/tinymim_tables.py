"""The tables and verdicts of `tinymim_step.py`, out of what it measured."""

from typing import Any

import torch

from common import AUTHORS, dtype_name, met

OURS, PLAIN = "ours", "plain"
PARTS = ("teacher", "student forward", "loss", "backward", "optimizer")
SPLIT_ROUNDS = 3
# What the measurements are held to.
LEAST_OVER_AUTHORS, LEAST_OVER_PLAIN, MOST_RELATION_MEMORY = 0.95, 1.4, 0.6


def with_dtype(name: str, dtype: torch.dtype) -> str:
    """A candidate's name with a dtype of the teacher's weights."""
    return f"{name}, {dtype_name(dtype)} teacher"


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
        "above weights and optimizer state that stay. Random weights; before timing, loss and gradient of all "
        "implementations were checked to agree.",
        "",
        f"The first of ours is what `vitdistill tinymim` runs by default. A step '{AUTHORS}' runs whole blocks up to "
        "the compared one in both networks, multiplies attention out in each and keeps the relations of all heads. "
        "Plain is the weaker baseline: it also runs what lies behind the teacher's block, for nothing. Under autocast "
        "(GPUs), their float32 teachers compute in bfloat16 too. Ours computes the gradient of q, k and v while it "
        "computes the loss, so part of its backward pass counts as loss.",
        "",
        *(f"- {line}" for line in verdicts(result)),
    ]
    for part in result["settings"]:
        lines += ["", f"## {part['label']}", "", pair_line(part), "", *gains_table(part), "", *step_table(part)]
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
        f"| candidate | ms/step | spread | images/s | peak MiB | {' ms | '.join(PARTS)} ms |",
        "|---|" + "---:|" * (4 + len(PARTS)),
    ]
    for name, row in rows.items():
        memory = "" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**20:,.0f}"
        split = " | ".join(f"{row['split_ms'][name]:,.1f}" for name in PARTS)
        lines.append(
            f"| {name} | {row['median_ms']:,.1f} | {row['spread_ms']:,.1f} | {row['images_per_s']:,.1f} "
            f"| {memory} | {split} |"
        )
    return lines


def gains_table(part: dict[str, Any]) -> list[str]:
    """How many times as long the others' steps take as ours, and what the MACs alone allow."""
    macs = part["macs"]
    lines = ["| step | dtype of the teacher | its time over ours | MACs over ours |", "|---|---|---:|---:|"]
    for name, gains in part["training_step"]["speedups"].items():
        what = f"{name} (the weaker baseline)" if name == PLAIN else name
        limit = macs[name] / macs[OURS]
        lines += [f"| {what} | {dtypes} | {gain:.2f}x | {limit:.2f}x |" for dtypes, gain in gains.items()]
    return lines


def memory_line(part: dict[str, Any]) -> str:
    memory = part["relation_memory"]
    one = memory["one_float32_relation_bytes"]
    mine, other = (
        f"{memory[name] / 2**20:,.1f} MiB ({memory[name] / one:.2f} such tensors)" for name in (OURS, AUTHORS)
    )
    return (
        f"Relation loss alone (Q-K and V-V, from q, k, v to their gradients): one relation of all heads, "
        f"{tuple(memory['shape'])} in float32, is {one / 2**20:,.1f} MiB; ours takes {mine}, all "
        f"heads at once {other}; {memory[OURS] / memory[AUTHORS]:.2f} of it."
    )


def verdicts(result: dict[str, Any]) -> list[str]:
    """The expectations, each with what was measured."""
    lines = []
    for part in result["settings"]:
        gains, label = part["training_step"]["speedups"], part["label"]
        (dtypes, authors), *others = gains[AUTHORS].items()
        over_plain = list(gains[PLAIN].values())
        equal, plain = over_plain[0], over_plain[-1]
        also = "".join(f"; {gain:.2f}x with {name}" for name, gain in others if name.endswith("both"))
        share = part["relation_memory"][OURS] / part["relation_memory"][AUTHORS]
        lines += [
            f"{met(authors >= LEAST_OVER_AUTHORS)}: {label}: {authors:.2f}x over a step {AUTHORS}, in equal dtypes "
            f"(teachers' weights: {dtypes}{also}); expected no slower (at least {LEAST_OVER_AUTHORS}x)",
            f"{met(plain >= LEAST_OVER_PLAIN)}: {label}: {plain:.2f}x over plain, the weaker baseline, with a float32 "
            f"teacher ({equal:.2f}x in equal dtypes); expected at least {LEAST_OVER_PLAIN}x",
            f"{met(share <= MOST_RELATION_MEMORY)}: {label}: relations take {share:.2f} of the memory of all "
            f"heads at once, expected at most {MOST_RELATION_MEMORY}",
        ]
    return lines
