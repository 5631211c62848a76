"""What `masked_teacher.py` compares, and its table and figure."""

import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from study import half_width

TEACHERS = {
    "usual": "trained as usual",
    "dropped": "patch dropout 0.5 from the start",
    "tuned": "the usual one, tuned with patch dropout 0.5",
}
# Name -> arguments of `maskedkd` beyond the common ones.
ARMS: dict[str, dict[str, Any]] = {
    "whole": {"keep": 1.0},
    "student 50%": {"keep": 0.5},
    "random 50%": {"keep": 0.5, "criterion": "random"},
    "student+random 50%": {"keep": 0.5, "criterion": "student+random"},
    "auto 50%": {"keep": 0.5, "criterion": "auto"},
    "agree 0.9": {"keep": "agree:0.9"},
    "agree 0.9, auto": {"keep": "agree:0.9", "criterion": "auto"},
    "budget 0.5": {"keep": "budget:0.5@1.0->0.25"},
    "mass 0.9": {"keep": "mass:0.9"},
}
UNTUNED = ("student+random 50%", "agree 0.9, auto", "budget 0.5", "mass 0.9")  # not run with the tuned teacher
LABELS = "labels alone"
WHOLE, PAPER = "whole", "student 50%"  # with what every arm is compared
DRAWN = ("whole", "student 50%", "random 50%", "auto 50%", "agree 0.9")


def settings() -> dict[str, tuple[str | None, dict[str, Any]]]:
    """Name -> teacher (None trains on labels alone) and arguments of `maskedkd`."""
    return {
        LABELS: (None, {"alpha": 0.0}),
        **{
            f"{kind}: {arm}": (kind, options)
            for kind in TEACHERS
            for arm, options in ARMS.items()
            if kind != "tuned" or arm not in UNTUNED
        },
    }


def summarise(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each setting: accuracies by seed, their mean and interval, the masked teacher, and its cost."""
    table: dict[str, dict[str, Any]] = {}
    for name in settings():
        runs = {run["seed"]: run for run in sorted(results, key=lambda run: run["seed"]) if run["name"] == name}
        if not runs:
            continue
        scores = {seed: run["top1"] for seed, run in runs.items()}
        kept = [statistics.mean(curve) for run in runs.values() if None not in (curve := run["keep_curve"])]
        table[name] = {
            "top1": scores,
            "mean": statistics.mean(scores.values()),
            "half": half_width(list(scores.values())),
            "teacher": mean_of(run["teacher_curve"][-1] for run in runs.values()),
            "agreement": mean_of(run["agreement_curve"][-1] for run in runs.values()),
            "kept": statistics.mean(kept) if kept else None,
            "cost": mean_of(None if run["saved"] is None else 1 - run["saved"] for run in runs.values()),
            "seconds": statistics.mean(run["seconds"] for run in runs.values()),
        }
    for name, row in table.items():
        kind, _, arm = name.partition(": ")
        for other in (WHOLE, PAPER):
            if arm and arm != other and f"{kind}: {other}" in table:
                row[f"minus {other}"] = difference(row["top1"], table[f"{kind}: {other}"]["top1"])
    return table


def mean_of(values: Iterable[float | None]) -> float | None:
    """Of those that there are."""
    there = [value for value in values if value is not None]
    return statistics.mean(there) if there else None


def difference(ours: dict[int, float], theirs: dict[int, float]) -> dict[str, float]:
    """Mean and half width of the differences, paired by seed."""
    gaps = [score - theirs[seed] for seed, score in ours.items() if seed in theirs]
    return {"mean": statistics.mean(gaps), "half": half_width(gaps)} if gaps else {}


def verdict(gap: dict[str, float]) -> str:
    """Of a difference: better, worse, or not resolved by these seeds."""
    if gap["mean"] - gap["half"] > 0:
        return "better"
    return "worse" if gap["mean"] + gap["half"] < 0 else "not resolved"


def markdown(content: dict[str, Any], subject: str) -> str:
    """The committed table.

    Args:
        content: meta, preflight and table.
        subject: about data and networks.
    """
    meta, table = content["meta"], content["table"]
    fewest = min(len(row["top1"]) for row in table.values())
    seeds = str(meta["seeds"]) if fewest == meta["seeds"] else f"{fewest} to {meta['seeds']}"
    lines = [
        "# When masking hurts",
        "",
        f"`{meta['command']}` on {meta['hardware']['cpu']} ({meta['hardware']['cpu_cores']} cores, shared), torch "
        f"{meta['hardware']['torch']}, {meta['seconds'] / 60:.0f} minutes of students in all, one thread each. {seeds} "
        f"seeds, {meta['epochs']} epochs. {subject}",
        "",
        "## Teachers before any student",
        "",
        "Top-1 % on the test images under masks; in brackets how often the masked teacher names the class that the "
        "whole one names (`vitdistill evaluate`).",
        "",
        *preflight_table(content["preflight"]),
        "",
        "## Students",
        "",
        *overview(table),
    ]
    for kind, words in TEACHERS.items():
        names = [LABELS, *(f"{kind}: {arm}" for arm in ARMS)]
        if sum(name in table for name in names) > (LABELS in table):
            lines += ["", f"## Teacher: {words}", "", *students_table(table, names)]
    lines += [
        "",
        "± is half of the 95% confidence interval over the seeds (t); differences are paired by seed. Masked teacher: "
        "its top-1 on the training images of the last epoch, and its agreement with the whole one. Patches: mean over "
        "the epochs. Cost: of the teacher's passes over the whole training, against a "
        "teacher that sees everything.",
        "",
        *findings(table),
    ]
    return "\n".join(lines) + "\n"


def preflight_table(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A line a teacher, a column a mask."""
    rows = next(iter(found.values()))
    heads = [f"{row['kept']} by {row['criterion']}" if row["criterion"] else "whole" for row in rows]
    heads = [head.replace("by random", "at random").replace("by teacher", "by its attention") for head in heads]
    lines = [f"| teacher | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for kind, masks in found.items():
        cells = [
            f"{row['top1']:.1f} ({100 * row['agreement']:.0f}%)" if row["criterion"] else f"{row['top1']:.1f}"
            for row in masks
        ]
        lines.append(f"| {TEACHERS[kind]} | {' | '.join(cells)} |")
    return lines


def overview(table: dict[str, dict[str, Any]]) -> list[str]:
    """Students' accuracy: a line an arm, a column a teacher."""
    kinds = [kind for kind in TEACHERS if any(name.startswith(f"{kind}: ") for name in table)]
    lines = [f"| teacher sees | {' | '.join(TEACHERS[kind] for kind in kinds)} |", f"|---|{'---:|' * len(kinds)}"]
    if LABELS in table:
        lines.append(f"| nothing ({LABELS}) | {signed(table[LABELS], '.1f')} |{' |' * (len(kinds) - 1)}")
    for arm in ARMS:
        cells = []
        for row in (table.get(f"{kind}: {arm}") for kind in kinds):
            cost = f" (cost {row['cost']:.0%})" if row and row["cost"] is not None else ""
            cells.append(f"{signed(row, '.1f')}{cost}")
        if set(cells) != {"-"}:
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def students_table(table: dict[str, dict[str, Any]], names: list[str]) -> list[str]:
    lines = [
        "| teacher sees | seeds | student, top-1 % | against whole | against student 50% | masked teacher, top-1 % "
        "| agreement % | patches | cost |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        if name not in table:
            continue
        row = table[name]
        gaps = [signed(row.get(f"minus {other}")) for other in (WHOLE, PAPER)]
        numbers = [shown(row["teacher"], ".1f"), shown(row["agreement"], ".0f"), shown(row["kept"], ".1f")]
        cells = [str(len(row["top1"])), signed(row, ".1f"), *gaps, *numbers]
        lines.append(f"| {name.partition(': ')[2] or name} | {' | '.join(cells)} | {shown(row['cost'], '.0%')} |")
    return lines


def shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def signed(found: dict[str, Any] | None, form: str = "+.1f") -> str:
    """A mean with its interval; of one seed without."""
    if not found:
        return "-"
    return format(found["mean"], form) + (f" ± {found['half']:.1f}" if math.isfinite(found["half"]) else "")


def findings(table: dict[str, dict[str, Any]]) -> list[str]:
    """What the paired differences settle, in words."""
    lines = ["## What this settles", ""]
    for kind, words in TEACHERS.items():
        for other, meant in ((WHOLE, "the whole teacher"), (PAPER, "the student's choice of half the patches")):
            kinds: dict[str, list[str]] = {}
            for arm in ARMS:
                gap = table.get(f"{kind}: {arm}", {}).get(f"minus {other}")
                if gap and len(table[f"{kind}: {arm}"]["top1"]) > 1:
                    kinds.setdefault(verdict(gap), []).append(f"{arm} ({signed(gap)})")
            if kinds:
                verdicts = [name for name in ("better", "worse", "not resolved") if name in kinds]
                parts = [f"{name}: {', '.join(kinds[name])}" for name in verdicts]
                lines.append(f"- Teacher: {words}; against {meant}: {'; '.join(parts)}.")
    return [
        *lines,
        "",
        "The verdicts are not corrected for their number: of many true null differences one in twenty would seem "
        "resolved. What is not resolved may still differ by as much as its interval allows.",
    ]


def figure(results: list[dict[str, Any]], path: Path) -> None:
    """Agreement and masked teacher above, students below, over the epochs; a column a teacher."""
    from matplotlib.figure import Figure

    there = [kind for kind in TEACHERS if any(run["name"].startswith(f"{kind}: ") for run in results)]
    picture = Figure(figsize=(3.6 * len(there) + 1, 8), layout="constrained")
    axes = picture.subplots(3, len(there), sharex=True, sharey="row", squeeze=False)
    colours = dict(zip(DRAWN, ("0.2", "#D55E00", "#0072B2", "#009E73", "#CC79A7"), strict=True))
    titles = ("masked agrees with whole, %", "teacher as masked, top-1 %", "student, top-1 %")
    for column, kind in enumerate(there):
        for row, key in enumerate(("agreement_curve", "teacher_curve", "curve")):
            panel = axes[row][column]
            for arm, colour in colours.items():
                curves = [run[key] for run in results if run["name"] == f"{kind}: {arm}" and None not in run[key]]
                if not curves:
                    continue
                values, epochs = np.array(curves), np.arange(1, len(curves[0]) + 1)
                panel.plot(epochs, values.mean(0), color=colour, label=arm)
                panel.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
            panel.grid(alpha=0.3)
            if column == 0:
                panel.set_ylabel(titles[row])
        axes[0][column].set_title(TEACHERS[kind], fontsize=9)
        axes[-1][column].set_xlabel("epoch")
    axes[-1][0].legend(fontsize=7, loc="lower right")
    picture.suptitle("mean and range over the seeds", fontsize=8)
    picture.savefig(path)
