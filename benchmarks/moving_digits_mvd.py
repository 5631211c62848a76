"""Which of MVD's findings hold on moving digits: teachers and ablations of the paper on two tasks, several seeds.

    python benchmarks/moving_digits_mvd.py                 # 4 seeds, two processes: about 35 minutes on two cores
    python benchmarks/moving_digits_mvd.py --seeds 1 --only "image teacher" "video teacher"

Writes benchmarks/results/moving_digits_mvd.{json,md,svg}, and every run as it ends into .jsonl beside them: called
again, the study goes on where it was. Each run is the verb `mvd` (or `videomae`) without labels,
then the verb `finetune` twice with few epochs: which digit moves (spatial, one frame is enough) and how it moves
(temporal, one frame says nothing).
"""

import os
import sys
from pathlib import Path
from typing import Any

from study import Finding, chosen, command_line, findings_table, in_words, judge, parser_of, run_all, spread, write
from vitdistill.studies.mvd import (
    DECODER,
    EPOCHS,
    FINETUNE_EPOCHS,
    IMAGE,
    PIXEL_DECODER,
    STUDENT,
    TASKS,
    VIDEO,
    pretraining,
    tuning,
)

BOTH = {**IMAGE, **VIDEO}
MASKS = (2, 4)  # per clip, beside one

# Name -> arguments of `mvd`; "pretrain" names another verb, or none. "same_time" takes as many epochs as fit into the
# time that "both teachers" takes.
SETTINGS: dict[str, dict[str, Any]] = {
    "scratch": {"pretrain": None},
    "scratch, as long as all": {"pretrain": None, "long": True},
    "VideoMAE": {"pretrain": "videomae"},
    "image teacher": IMAGE,
    "video teacher": VIDEO,
    "both teachers": BOTH,
    "both, 2 masks, same time": {**BOTH, "masks_per_clip": 2, "same_time": True},
    "both, 4 masks, same time": {**BOTH, "masks_per_clip": 4, "same_time": True},
    "both and pixels": {**BOTH, "pixel_weight": 1.0},
    "both, targets not normalised": {**BOTH, "normalise": False},
    "own average": {"bootstrap": 0.99, "normalise": True},
    "both, per token": {**BOTH, "per_token": True},
}
CLAIMS: tuple[Finding, ...] = (
    ("Distilling beats training from scratch", "both teachers", "scratch", True),
    ("Distilling beats scratch for as many epochs in all", "both teachers", "scratch, as long as all", True),
    ("Features of both teachers are better targets than pixels (Table 1)", "both teachers", "VideoMAE", True),
    ("Features of the image teacher are better targets than pixels", "image teacher", "VideoMAE", True),
    ("Features of the video teacher are better targets than pixels", "video teacher", "VideoMAE", True),
    ("Two teachers are no worse than the image teacher", "both teachers", "image teacher", False),
    ("Two teachers are no worse than the video teacher", "both teachers", "video teacher", False),
    ("A pixel branch does not help (Table 8)", "both teachers", "both and pixels", False),
    ("Frozen teachers beat the own average (Table 9)", "both teachers", "own average", True),
    ("Masked features beat per-token distillation (Table 10)", "both teachers", "both, per token", True),
)
# What the paper says of one task, or this project of its own addition.
ON_MOTION: tuple[Finding, ...] = (
    ("On motion the video teacher beats the image teacher (SSv2)", "video teacher", "image teacher", True),
)
ON_DIGIT: tuple[Finding, ...] = (
    ("On appearance the image teacher beats the video teacher (K400)", "image teacher", "video teacher", True),
)
OURS: tuple[Finding, ...] = (
    ("Ours: in the same time two masks per clip beat one", "both, 2 masks, same time", "both teachers", True),
    ("Ours: in the same time four masks per clip beat one", "both, 4 masks, same time", "both teachers", True),
)
FINDINGS = {"digit": CLAIMS + ON_DIGIT + OURS, "motion": CLAIMS + ON_MOTION + OURS}


def run_one(name: str, seed: int, epochs: int, folder: str) -> dict[str, Any]:
    """Pre-train one student and fine-tune it on both tasks."""
    import torch

    torch.set_num_threads(1)
    from vitdistill import finetune

    options = dict(SETTINGS[name])
    out = Path(folder) / f"{name.replace(' ', '_').replace(',', '')}-{seed}"
    kind = options.pop("pretrain", "mvd")
    longer = epochs if options.pop("long", False) else 0
    if options.pop("same_time", False):
        epochs = round(epochs * float(os.environ[time_of(options["masks_per_clip"])]))
    seconds = 0.0 if kind is None else pretrain(kind, options, out, seed, epochs)["seconds"]
    row: dict[str, Any] = {"name": name, "seed": seed, "epochs": 0 if kind is None else epochs, "seconds": seconds}
    for task, data in TASKS.items():
        model = {"model": "moving_digits_vit_small"} if kind is None else {"model": str(out)}
        tuned = finetune(**model, data=data, out=f"{out}-{task}", seed=seed, **tuning(FINETUNE_EPOCHS[task] + longer))
        row[task] = tuned["accuracy"]["top1"]
    return row


def pretrain(kind: str, options: dict[str, Any], out: Path, seed: int, epochs: int) -> dict[str, Any]:
    """One run without labels."""
    from vitdistill import mvd, videomae

    common: dict[str, Any] = {"out": str(out), "seed": seed, **pretraining(epochs)}
    if kind == "videomae":
        return videomae(**common, **PIXEL_DECODER)
    if options.get("per_token"):  # masks nothing and has no decoder
        del common["mask_ratio"]
        return mvd(**common, **options)
    return mvd(**common, **options, decoder=DECODER)


def time_of(masks: int) -> str:
    """The environment variable that tells the processes how many epochs with so many masks take the time of one."""
    return f"MOVING_DIGITS_EPOCHS_{masks}"


def measure_masks(epochs: int = 1) -> list[float]:
    """Time per epoch with one mask, over that with each of `MASKS`: short runs, of the same kind as the study's."""
    import tempfile

    import torch

    torch.set_num_threads(1)
    seconds: dict[int, list[float]] = {1: [], **{masks: [] for masks in MASKS}}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(2):
            for masks, times in seconds.items():
                out = Path(folder) / f"{masks}-{turn}"
                times.append(pretrain("mvd", {**BOTH, "masks_per_clip": masks}, out, 0, epochs)["seconds"])
    return [min(seconds[1]) / min(seconds[masks]) for masks in MASKS]


def constant_shares(clips: int = 128) -> dict[str, float]:
    """How much of each teacher's targets is the same everywhere: of their second moment, that of their mean.

    A target that is nearly a constant vector is nearly learned by a bias, whatever its teacher knows.
    """
    import torch

    from vitdistill.data.clips.sampling import Sampling
    from vitdistill.data.clips.transforms import eval_transform
    from vitdistill.data.open import open_source
    from vitdistill.methods.mvd import MVD
    from vitdistill.models.build import build

    videos: Any = open_source("moving_digits").val
    student: Any = build(STUDENT)
    teachers = {name: build(BOTH[name], pretrained=True) for name in ("image_teacher", "video_teacher")}
    method = MVD(student, **teachers, normalise=True, decoder=DECODER)
    transform = eval_transform(student.input.size[0], Sampling(frames=student.input.frames, stride=1))
    seen = torch.stack([transform(videos.load(index)[0]) for index in range(clips)]).float() / 255
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (student.input.mean, student.input.std))
    shares = {}
    with torch.inference_mode():
        kept, masked = method.masking.draw(clips, student.grid)  # teachers see whole clips, so any mask will do
        for name, target in method.targets.items():
            values = target.values((seen - mean) / std, kept, masked)
            shares[name] = (values.mean((0, 1)).square().mean() / values.square().mean()).item()
    return shares


def summarise(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per setting: accuracy on each task by seed, mean and deviation."""
    table: dict[str, dict[str, Any]] = {}
    for name in SETTINGS:
        runs = sorted((run for run in results if run["name"] == name), key=lambda run: run["seed"])
        if not runs:
            continue
        row: dict[str, Any] = {task: [run[task] for run in runs] for task in TASKS}
        row |= {f"{task}_mean_sd": spread(row[task]) for task in TASKS}
        table[name] = {**row, "epochs": runs[0]["epochs"], "seconds": spread([run["seconds"] for run in runs])[0]}
    return table


def markdown(table: dict[str, dict[str, Any]], verdicts: dict[str, list[dict[str, Any]]], meta: dict[str, Any]) -> str:
    """The committed table."""
    shares, times = meta["constant_share"], list(meta["epochs_in_the_time_of_one_mask"].values())
    lines = [
        "# MVD on moving digits",
        "",
        f"`{meta['command']}` on {meta['hardware']['cpu']} ({meta['hardware']['cpu_cores']} cores), "
        f"torch {meta['hardware']['torch']}. {meta['seeds']} seeds, 1437 training "
        "and 360 test clips of 16 frames of 16x16 pixels (8x4x4 tokens).",
        "",
        "Teachers: the bundled `moving-digits-mae` and `moving-digits-videomae`, pre-trained without labels on the "
        "same clips. Student: `moving_digits_vit_small` (48 wide, 3 blocks, 3 heads), pre-trained without labels, then "
        f"fine-tuned for {FINETUNE_EPOCHS['digit']} epochs on which digit moves and {FINETUNE_EPOCHS['motion']} on how "
        "it moves (all learn that in five, which then tells nothing). Chance is 10%. "
        "Targets are normalised (LayerNorm without parameters) but where a row says otherwise; the paper's are not. "
        "The teachers' own training (200 and 70 epochs on the same clips) is not in the seconds.",
        "",
        f"Of the targets' second moment one constant vector is {shares['image']:.0%} for the image teacher and "
        f"{shares['video']:.0%} for the video teacher; what a target says lies in the rest. In the time of one epoch "
        f"with one mask per clip there are {times[0]:.2f} with two masks and {times[1]:.2f} with four, measured before "
        "the study. Seconds are those of runs beside each other, on a machine that had other work too.",
        "",
        "| setting | digit top-1 % (mean ± sd) | motion top-1 % (mean ± sd) | epochs | seconds of pre-training |",
        "|---|---|---|---|---|",
    ]
    for name, row in table.items():
        scores = [f"{mean:.2f} ± {sd:.2f}" for mean, sd in (row[f"{task}_mean_sd"] for task in TASKS)]
        lines.append(f"| {name} | {scores[0]} | {scores[1]} | {row['epochs']} | {row['seconds']:.0f} |")
    for task, found in verdicts.items():
        lines += ["", *findings_table(found, f"The paper's findings on this scale: {task}"), "", in_words(found)]
    return "\n".join(lines) + "\n"


def figure(table: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy of every setting on both tasks, with its spread."""
    from matplotlib.figure import Figure

    names = list(reversed(table))
    picture = Figure(figsize=(9.5, 0.3 * len(names) + 1.2), layout="constrained")
    for axes, task, colour in zip(picture.subplots(1, 2, sharey=True), TASKS, ("#0072B2", "#D55E00"), strict=True):
        places = range(len(names))
        axes.barh(places, [table[name][f"{task}_mean_sd"][0] for name in names], color=colour, height=0.65)
        for place, name in zip(places, names, strict=True):
            axes.plot(table[name][task], [place] * len(table[name][task]), "k.", ms=4)
        axes.set_yticks(places, names, fontsize=8)
        lowest = min(min(row[task]) for row in table.values())
        axes.set_xlim(max(0.0, lowest - 3), min(100.0, max(max(row[task]) for row in table.values()) + 3))
        axes.set_xlabel(f"{task}: top-1 on 360 test clips, %\n(bar: mean, dots: seeds)")
        axes.grid(axis="x", alpha=0.3)
    picture.savefig(path)


def main() -> int:
    parser = parser_of(__doc__, seeds=4, epochs=EPOCHS)
    parser.add_argument(
        "--same_time",
        type=float,
        nargs=2,
        help="epochs with 2 and 4 masks in the time of one with one mask; measured by default",
    )
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from vitdistill.costing.measure import hardware

    names = chosen(SETTINGS, options.only)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = options.out / "moving_digits_mvd.jsonl"
    share = options.same_time or measure_masks()
    os.environ.update({time_of(masks): str(value) for masks, value in zip(MASKS, share, strict=True)})
    results = run_all(run_one, names, options.seeds, options.jobs, options.epochs, tuple(TASKS), rows)
    meta = {
        "command": command_line(),
        "hardware": hardware(),
        "seeds": options.seeds,
        "epochs": options.epochs,
        "epochs_in_the_time_of_one_mask": dict(zip(MASKS, share, strict=True)),
        "constant_share": constant_shares(),
    }
    table = summarise(results)
    verdicts = {task: judge(table, findings, key=task) for task, findings in FINDINGS.items()}
    content = {"meta": meta, "table": table, "findings": verdicts, "runs": results}
    write(options.out, "moving_digits_mvd", content, markdown(table, verdicts, meta))
    figure(table, options.out / "moving_digits_mvd.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
