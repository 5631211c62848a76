"""The tables and verdicts of `mvd_step.py`, out of what it measured."""

from typing import Any

import torch

from common import AUTHORS, dtype_name, met

OURS, PLAIN = "ours", "plain"
MASKS = (1, 2, 4)  # per clip
PARTS = ("teachers", "student, decoders, loss", "backward", "optimizer")
# What the measurements are held to, and the specification's GMACs per clip.
LEAST_OVER_AUTHORS, LEAST_OVER_PLAIN, MAC_TOLERANCE = 1.1, 1.5, 0.03
SPECIFIED = "B <- B"
SPEC_GMACS = {"image teacher": 140, "video teacher": 178, "student encoder": 14, "decoders": 59}

Factor = dict[str, float]  # median, low and high over the rounds


def with_masks(name: str, masks: int) -> str:
    """A candidate's name with so many masks per clip."""
    return f"{name}, {masks} masks" if masks > 1 else name


def with_dtype(name: str, dtype: torch.dtype) -> str:
    """A candidate's name with a dtype of the teachers' weights."""
    return f"{name}, {dtype_name(dtype)} teachers"


def markdown(result: dict[str, Any]) -> str:
    """The tables, for people."""
    machine = result["hardware"]
    lines = [
        f"# MVD's step on {result['machine']}",
        "",
        f"`{result['command']}`. {machine['cpu']}, {machine['cpu_cores']} cores, {machine['threads']} threads, "
        f"GPU {machine['gpu'] or 'none'}; torch {machine['torch']}, timm {machine['timm']}. Medians of "
        f"{result['rounds']} rounds in which all candidates of a pair take turns; spread is between quartiles; factors "
        "are medians of the ratios of neighbouring runs, in brackets the least and the greatest. Peak memory is what a "
        "step allocates above weights and optimizer state that stay. Random weights; before timing, loss and gradient "
        "of all implementations were checked to agree with the same weights and masks.",
        "",
        f"Ours is what `vitdistill mvd` runs by default, without drop path. A step '{AUTHORS}' multiplies attention "
        "out, sends 8 of 16 frames through the image teacher and every clip through both teachers once per mask, picks "
        "tokens with boolean indices and makes its masks in Python. Plain is the weaker baseline: it sends all 16 "
        "frames through the image teacher, half of them for nothing. The others' teachers are in float32 but where the "
        "name says otherwise. Decoding, cropping and transfer of clips are not in the step. All run timm's blocks, so "
        "matrix products, norms and MLPs are the same code.",
        "",
        *(f"- {line}" for line in verdicts(result)),
    ]
    for part in result["settings"]:
        lines += ["", *section(part)]
    return "\n".join(lines) + "\n"


def section(part: dict[str, Any]) -> list[str]:
    """One pair's tables."""
    lines = [f"## {part['label']}", "", *gains_table(part), "", *step_table(part), ""]
    return [*lines, *masks_table(part), "", MASKS_NOTE, "", *macs_table(part)]


MASKS_NOTE = (
    "Several masks of a clip are less varied than as many clips, so this is time per prediction, not per gain in "
    "accuracy. The authors' step with several masks is their step on as many more clips; where it was not timed, its "
    "time is that of one mask times their number. Both in equal dtypes."
)


def macs_table(part: dict[str, Any]) -> list[str]:
    macs, known = part["macs"], part["pair"] == SPECIFIED
    lines = [
        f"MACs of a clip's forward pass: {macs['visible_tokens']} of {macs['tokens']} tokens are visible. With the "
        f"backward pass, the teachers are {macs['teachers_share_of_step']:.0%} of our step.",
        "",
        "| part | GMACs |" + (" specification | difference |" if known else ""),
        "|---|---:|" + ("---:|---:|" if known else ""),
    ]
    for name, count in macs["parts"].items():
        row = f"| {name} | {count / 1e9:,.1f} |"
        if known:
            spec = SPEC_GMACS.get(name)
            row += f" {spec} | {count / 1e9 / spec - 1:+.1%} |" if spec else " | |"
        lines.append(row)
    return lines


def step_table(part: dict[str, Any]) -> list[str]:
    lines = [
        f"| candidate | ms/step | spread | clips/s | peak MiB | {' ms | '.join(PARTS)} ms |",
        "|---|" + "---:|" * (4 + len(PARTS)),
    ]
    for name, row in part["training_step"]["candidates"].items():
        memory = "" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**20:,.0f}"
        split = " | ".join(f"{row['split_ms'][part_name]:,.0f}" for part_name in PARTS)
        lines.append(
            f"| {name} | {row['median_ms']:,.0f} | {row['spread_ms']:,.0f} | {row['clips_per_s']:,.2f} "
            f"| {memory} | {split} |"
        )
    return lines


def masks_table(part: dict[str, Any]) -> list[str]:
    limits, rows = part["macs"]["limits"], part["training_step"]["candidates"]
    lines = [
        f"| masks per clip | ours, ms per clip and mask | over a step {AUTHORS} | limit (MACs) | over one mask "
        "| limit (MACs) |",
        "|---:|" + "---:|" * 5,
    ]
    for masks, gain in part["training_step"]["masks"].items():
        time = rows[with_masks(OURS, int(masks))]["ms_per_clip_and_mask"]
        limit = limits[masks]
        over_authors = _range(gain["over_authors"]) + ("" if gain["authors_timed"] else ", not timed")
        lines.append(
            f"| {masks} | {time:,.1f} | {over_authors} | {limit['over_authors']:.2f}x "
            f"| {_range(gain['over_one_mask'])} | {limit['over_one_mask']:.2f}x |"
        )
    return lines


def gains_table(part: dict[str, Any]) -> list[str]:
    """How many times as long the others' steps take as ours with one mask per clip, and what the MACs alone allow."""
    lines = ["| step | dtype of the teachers | its time over ours | MACs over ours |", "|---|---|---:|---:|"]
    limits = {AUTHORS: part["macs"]["limits"]["1"]["over_authors"], PLAIN: part["macs"]["limit_over_plain"]}
    for name, gains in part["training_step"]["speedups"].items():
        what = f"{name} (the weaker baseline)" if name == PLAIN else name
        lines += [f"| {what} | {dtypes} | {_range(gain)} | {limits[name]:.2f}x |" for dtypes, gain in gains.items()]
    return lines


def _range(value: Factor) -> str:
    return f"{value['median']:.2f}x ({value['low']:.2f}-{value['high']:.2f})"


def verdicts(result: dict[str, Any]) -> list[str]:
    """The expectations, each with what was measured."""
    lines = []
    for part in result["settings"]:
        gains, masks, label = part["training_step"]["speedups"], part["training_step"]["masks"], part["label"]
        (dtypes, authors), *others = gains[AUTHORS].items()
        over_plain = list(gains[PLAIN].values())
        equal, plain = over_plain[0], over_plain[-1]
        also = "".join(f"; {_range(gain)} with {name}" for name, gain in others if name.endswith("both"))
        several = ", ".join(f"{masks[str(m)]['over_one_mask']['median']:.2f}x with {m}" for m in MASKS[1:])
        lines += [
            f"{met(authors['median'] >= LEAST_OVER_AUTHORS)}: {label}: {_range(authors)} over a step {AUTHORS}, in "
            f"equal dtypes (teachers' weights: {dtypes}{also}); expected at least {LEAST_OVER_AUTHORS}x",
            f"{met(plain['median'] >= LEAST_OVER_PLAIN)}: {label}: {_range(plain)} over plain, the weaker baseline, "
            f"with float32 teachers ({equal['median']:.2f}x in equal dtypes); expected at least {LEAST_OVER_PLAIN}x",
            f"{label}: per clip and mask, over one mask: {several}",
        ]
        if part["pair"] == SPECIFIED:
            off = {name: part["macs"]["parts"][name] / 1e9 / spec - 1 for name, spec in SPEC_GMACS.items()}
            worst = max(off.values(), key=abs)
            lines.append(
                f"{met(abs(worst) <= MAC_TOLERANCE)}: {part['pair']}: MACs of the parts within {abs(worst):.1%} of "
                f"the specification, expected {MAC_TOLERANCE:.0%}"
            )
    return lines
