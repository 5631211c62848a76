"""The tables and verdicts of `mvd_step.py`, out of what it measured."""

from typing import Any

from common import met

MASKS = (1, 2, 4)  # per clip
PARTS = ("teachers", "student, decoders, loss", "backward", "optimizer")
# What the measurements are held to, and the specification's GMACs per clip.
LEAST_SPEEDUP, MAC_TOLERANCE = 1.5, 0.03
SPECIFIED = "B <- B"
SPEC_GMACS = {"image teacher": 140, "video teacher": 178, "student encoder": 14, "decoders": 59}

Factor = dict[str, float]  # median, low and high over the rounds


def with_masks(name: str, masks: int) -> str:
    """A candidate's name with so many masks per clip."""
    return f"{name}, {masks} masks" if masks > 1 else name


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
        "of both implementations were checked to agree with the same weights and masks.",
        "",
        "Ours is what `vitdistill mvd` runs by default, without drop path. Plain multiplies attention out, sends all "
        "16 frames through the image teacher and every clip through both teachers once per mask, picks tokens with "
        "boolean indices and makes its masks in Python. Decoding, cropping and transfer of clips are not in the step. "
        "Both run timm's blocks, so matrix products, norms and MLPs are the same code in both.",
        "",
        *(f"- {line}" for line in verdicts(result)),
    ]
    for part in result["settings"]:
        lines += ["", *section(part)]
    return "\n".join(lines) + "\n"


def section(part: dict[str, Any]) -> list[str]:
    """One pair's tables."""
    lines = [f"## {part['label']}", "", *macs_table(part), "", *step_table(part), "", causes(part)]
    return [*lines, "", *masks_table(part), "", MASKS_NOTE]


MASKS_NOTE = (
    "Several masks of a clip are less varied than as many clips, so this is time per prediction, not per gain in "
    "accuracy. Plain's step with several masks is its step on as many more clips; where it was not timed, its time is "
    "that of one mask times their number."
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
        "| masks per clip | ours, ms per clip and mask | faster than one mask | limit (MACs) | faster than plain "
        "| limit (MACs) |",
        "|---:|" + "---:|" * 5,
    ]
    for masks, gain in part["training_step"]["masks"].items():
        time = rows[with_masks("ours", int(masks))]["ms_per_clip_and_mask"]
        limit = limits[masks]
        over_plain = _range(gain["over_plain"]) + ("" if gain["plain_measured"] else ", not timed")
        lines.append(
            f"| {masks} | {time:,.1f} | {_range(gain['over_one_mask'])} | {limit['over_one_mask']:.2f}x "
            f"| {over_plain} | {limit['over_plain']:.2f}x |"
        )
    return lines


def causes(part: dict[str, Any]) -> str:
    """Which part of the gain comes from where."""
    gain, macs = part["training_step"]["speedups"], part["macs"]
    code = (
        f"In equal dtypes{' (float32)' if part['dtype'] == 'float32' else ''} ours is "
        f"{_range(gain['code alone'])} as fast as plain; leaving out the frames that the target does not use is worth "
        f"{_range(gain['frames alone, in plain'])} in the plain code, and against a plain implementation that "
        f"leaves them out ours is {_range(gain['code alone, plain without unused frames'])} as fast. In MACs the "
        f"frames are worth {macs['limits']['1']['over_plain']:.2f}x; the rest is fused attention and gathered tokens."
    )
    whole = f"Ours takes 1/{gain['ours']['median']:.2f} of plain's time with one mask per clip."
    if "dtype alone, in ours" not in gain:
        return f"{whole} {code}"
    return (
        f"{whole} {code} Bfloat16 teachers, ours by default on this processor, are worth "
        f"{_range(gain['dtype alone, in ours'])} in ours and {_range(gain['dtype alone, in plain'])} in the plain "
        f"code; with them in both, ours is {_range(gain['code alone, bfloat16 teachers'])} as fast."
    )


def _range(value: Factor) -> str:
    return f"{value['median']:.2f}x ({value['low']:.2f}-{value['high']:.2f})"


def verdicts(result: dict[str, Any]) -> list[str]:
    """The expectations, each with what was measured."""
    lines = []
    for part in result["settings"]:
        factors, gains = part["training_step"]["speedups"], part["training_step"]["masks"]
        several = ", ".join(f"{gains[str(m)]['over_one_mask']['median']:.2f}x with {m}" for m in MASKS[1:])
        lines += [
            f"{met(factors['ours']['median'] >= LEAST_SPEEDUP)}: {part['label']}: step "
            f"{_range(factors['ours'])} as fast as plain with one mask per clip "
            f"({factors['code alone']['median']:.2f}x in equal dtypes), expected at least {LEAST_SPEEDUP}x",
            f"{part['label']}: per clip and mask, over one mask: {several}",
        ]
        if part["pair"] == SPECIFIED:
            off = {name: part["macs"]["parts"][name] / 1e9 / spec - 1 for name, spec in SPEC_GMACS.items()}
            worst = max(off.values(), key=abs)
            lines.append(
                f"{met(abs(worst) <= MAC_TOLERANCE)}: {part['pair']}: MACs of the parts within {abs(worst):.1%} of "
                f"the specification, expected {MAC_TOLERANCE:.0%}"
            )
    return lines
