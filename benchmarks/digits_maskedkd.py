"""Which of MaskedKD's findings hold on handwritten digits: every criterion and ablation, several seeds.

    python benchmarks/digits_maskedkd.py                 # 5 seeds, two processes: about 20 minutes on two cores
    python benchmarks/digits_maskedkd.py --seeds 3 --jobs 1

Writes benchmarks/results/digits_maskedkd.{json,md,svg}. Runs are the verb `maskedkd` with the demo's settings.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from study import Finding, chosen, findings_table, in_words, judge, parser_of, run_all, spread, write

# Name -> arguments of `maskedkd` beyond the common ones.
SETTINGS: dict[str, dict[str, Any]] = {
    "no teacher": {"alpha": 0.0},
    "full teacher": {"keep": 1.0},
    "student 75%": {"keep": 0.75},
    "student 50%": {"keep": 0.5},
    "student 25%": {"keep": 0.25},
    "random 50%": {"keep": 0.5, "criterion": "random"},
    "bottom 50%": {"keep": 0.5, "order": "bottom"},
    "teacher's attention 50%": {"keep": 0.5, "criterion": "teacher"},
    "patch-patch 50%": {"keep": 0.5, "saliency": "patch"},
    "first layer 50%": {"keep": 0.5, "saliency_layer": "first"},
    "middle layer 50%": {"keep": 0.5, "saliency_layer": "middle"},
    "masked student 75%": {"keep": 0.75, "mask": "student"},
    "masked student 50%": {"keep": 0.5, "mask": "student"},
}

FINDINGS: tuple[Finding, ...] = (
    ("A teacher helps (Table 2)", "full teacher", "no teacher", True),
    ("75% of the patches cost no accuracy (Table 2)", "student 75%", "full teacher", False),
    ("50% of the patches cost no accuracy (Table 2)", "student 50%", "full teacher", False),
    ("25% of the patches cost a little (Table 2)", "full teacher", "student 25%", True),
    ("The student's attention beats random patches (Sec. 5.1, Table 6c)", "student 50%", "random 50%", True),
    ("Bottom-k is much worse (Table 6c)", "student 50%", "bottom 50%", True),
    ("The student's attention beats the teacher's (Sec. 5.1)", "student 50%", "teacher's attention 50%", True),
    ("Class-patch beats patch-patch attention (Table 6a)", "student 50%", "patch-patch 50%", True),
    ("The last layer beats the first (Table 6b)", "student 50%", "first layer 50%", True),
    ("The last layer is no worse than the middle (Table 6b)", "student 50%", "middle layer 50%", False),
    ("Masking the student hurts (Sec. 5.3)", "student 50%", "masked student 50%", True),
    ("Masking the student hurts even at 75% (Sec. 5.3)", "student 75%", "masked student 75%", True),
)


def run_one(name: str, seed: int, epochs: int, folder: str) -> dict[str, Any]:
    """Train one student; its final accuracy, best accuracy, costs and times."""
    import torch

    torch.set_num_threads(1)
    from vitdistill import Augment, Optim, maskedkd

    out = Path(folder) / f"{name.replace(' ', '_').replace('%', '')}-{seed}"
    info = maskedkd(
        student="digits_vit_small",
        teacher="digits-teacher",
        data="digits",
        out=str(out),
        epochs=epochs,
        batch_size=64,
        drop_path=0.0,
        augment=Augment(recipe="none"),
        optim=Optim(lr=3e-3, lr_batch=64, warmup_epochs=3),
        seed=seed,
        **{"criterion": "student", **SETTINGS[name]},
    )
    rows = (out / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val/top1")
    curve = [float(row.split(",")[column]) for row in rows[1:]]
    return {
        "name": name,
        "seed": seed,
        "top1": info["accuracy"]["top1"],
        "curve": curve,
        "tokens": info["tokens"],
        "teacher_mmacs": (info["cost"].get("teacher_gmacs_per_image") or 0.0) * 1e3,
        "seconds": info["seconds"],
    }


def earlier_results(path: Path, only: list[str], epochs: int) -> list[dict[str, Any]]:
    """With --only: the runs of the other settings in an earlier result of as many epochs, to be kept."""
    if not only or not path.is_file():
        return []
    content = json.loads(path.read_text())
    if content["meta"]["epochs"] != epochs:
        raise SystemExit(f"{path} has runs of {content['meta']['epochs']} epochs, not {epochs}; choose another --out")
    return [run for run in content["runs"] if run["name"] not in only]


def summarise(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per setting: accuracy by seed, mean, standard deviation, early accuracy, cost."""
    table: dict[str, dict[str, Any]] = {}
    for name in SETTINGS:
        runs = sorted((run for run in results if run["name"] == name), key=lambda run: run["seed"])
        if not runs:
            continue
        scores = [run["top1"] for run in runs]
        early = [run["curve"][len(run["curve"]) // 4 - 1] for run in runs]
        table[name] = {
            "top1": scores,
            "mean": spread(scores)[0],
            "sd": spread(scores)[1],
            "early_mean": spread(early)[0],
            "early_sd": spread(early)[1],
            "tokens": runs[0]["tokens"],
            "teacher_mmacs": runs[0]["teacher_mmacs"],
            "seconds": statistics.mean(run["seconds"] for run in runs),
        }
    return table


def markdown(table: dict[str, dict[str, Any]], verdicts: list[dict[str, Any]], meta: dict[str, Any]) -> str:
    """The committed table."""
    lines = [
        "# MaskedKD on handwritten digits",
        "",
        f"`{meta['command']}` on {meta['hardware']['cpu']} ({meta['hardware']['cpu_cores']} cores), "
        f"torch {meta['hardware']['torch']}, {meta['seconds'] / 60:.0f} minutes. {meta['seeds']} seeds, "
        f"{meta['epochs']} epochs, batch 64, 1437 training and 360 test images of 12x12 pixels, patch 2 (36 patches). "
        "Student 48 wide, 3 blocks; teacher 96 wide, 4 blocks (bundled `digits-teacher`).",
        "",
        "| setting | top-1 % (mean ± sd) | after a quarter of the epochs | teacher patches | teacher MMACs/image |",
        "|---|---|---|---|---|",
    ]
    for name, row in table.items():
        tokens = (
            "-"
            if not row["tokens"] or not row["teacher_mmacs"]
            else f"{row['tokens']['kept']} of {row['tokens']['of']}"
        )
        if name.startswith("masked student"):
            tokens = f"36 of 36 (student {tokens})"
        cost = f"{row['teacher_mmacs']:.2f}" if row["teacher_mmacs"] else "-"
        lines.append(
            f"| {name} | {row['mean']:.2f} ± {row['sd']:.2f} | {row['early_mean']:.2f} ± {row['early_sd']:.2f} "
            f"| {tokens} | {cost} |"
        )
    lines += [
        "",
        "`teacher's attention` costs a second pass, up to the last queries and keys, which the last column counts.",
        "",
    ]
    lines += findings_table(verdicts)
    words = in_words(verdicts) + stuck_runs(table)
    return "\n".join([*lines, "", words]) + "\n"


def stuck_runs(table: dict[str, dict[str, Any]]) -> str:
    """Runs that never learned, in words; empty when there is none."""
    stuck = [
        f"{name}, seed {seed} ({score:.1f}%)"
        for name, row in table.items()
        for seed, score in enumerate(row["top1"])
        if score < 50
    ]
    return f"Runs that never learned: {', '.join(stuck)}." if stuck else ""


def figure(table: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy against the teacher's cost, one point a setting, with its spread."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = picture.subplots()
    order = [name for name in ("full teacher", "student 75%", "student 50%", "student 25%") if name in table]
    curve = [table[name] for name in order]
    axes.errorbar(
        [row["teacher_mmacs"] for row in curve],
        [row["mean"] for row in curve],
        [row["sd"] for row in curve],
        marker="o",
        color="#0072B2",
        capsize=3,
        label="student's attention",
    )
    markers = iter("sD^v<>PX*h")
    for name, row in table.items():
        if name not in order and name != "no teacher":
            axes.errorbar(
                row["teacher_mmacs"], row["mean"], row["sd"], marker=next(markers), capsize=3, ls="none", label=name
            )
    if "no teacher" in table:
        axes.axhline(table["no teacher"]["mean"], color="0.4", ls="--", label="no teacher")
    axes.set_xlabel("teacher MMACs per image (masked students: the teacher sees all)")
    axes.set_ylabel("top-1 on 360 test digits, % (mean ± sd over seeds)")
    axes.legend(fontsize=7, loc="lower right")
    axes.grid(alpha=0.3)
    picture.savefig(path)


def main() -> int:
    parser = parser_of(__doc__, seeds=5, epochs=24, only="settings to run again; others stay as they were")
    options = parser.parse_args()
    from vitdistill.costing.measure import hardware

    started = time.time()
    earlier = earlier_results(options.out / "digits_maskedkd.json", options.only, options.epochs)
    names = chosen(SETTINGS, options.only)
    results = [*earlier, *run_all(run_one, names, options.seeds, options.jobs, options.epochs)]
    meta = {
        "command": "python " + " ".join(["benchmarks/digits_maskedkd.py", "--seeds", str(options.seeds)]),
        "hardware": hardware(),
        "seeds": options.seeds,
        "epochs": options.epochs,
        "seconds": sum(run["seconds"] for run in results) / options.jobs if earlier else time.time() - started,
    }
    table = summarise(results)
    verdicts = judge(table, FINDINGS)
    content = {"meta": meta, "table": table, "findings": verdicts, "runs": results}
    write(options.out, "digits_maskedkd", content, markdown(table, verdicts, meta))
    figure(table, options.out / "digits_maskedkd.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
