"""Which of TinyMIM's findings hold on handwritten digits: every target and ablation of the paper, several seeds.

    python benchmarks/digits_tinymim.py                 # 3 seeds, two processes: about 40 minutes on two cores
    python benchmarks/digits_tinymim.py --seeds 1 --only relations "features: output"

Writes benchmarks/results/digits_tinymim.{json,md,svg}. Each run is the verb `tinymim` without labels, then `knn`, then
the verb `finetune` with few epochs, since with many a small student learns these digits from scratch as well.
"""

import contextlib
import io
import os
import sys
import time
from pathlib import Path
from typing import Any

from study import Finding, chosen, command_line, findings_table, in_words, judge, parser_of, run_all, spread, write

FINETUNE_EPOCHS = 10
BASE: dict[str, Any] = {"teacher": "digits-mae", "teacher_block": 3, "color_jitter": 0.0, "drop_path": 0.1}
FEATURES: dict[str, Any] = {"target": "features"}
TINY = {"embed_dim": 24}

# Name -> arguments of `tinymim` beyond BASE. "mae" pre-trains the student itself; "from" names the teacher's setting.
SETTINGS: dict[str, dict[str, Any]] = {
    "scratch": {"pretrain": None},
    "scratch, as long as all": {"pretrain": None, "long": True},
    "MAE student": {"pretrain": "mae"},
    "class token": {"target": "cls"},
    "features: output": FEATURES,
    "features: attention": {**FEATURES, "feature": "attention"},
    "features: FFN": {**FEATURES, "feature": "ffn"},
    "features: attention after residual": {**FEATURES, "feature": "attention", "residual": True},
    "features: Q/K/V": {**FEATURES, "feature": "qkv"},
    "relations": {},
    "relations, no softmax": {"softmax": False},
    "relations QQ+KK+VV": {"relations": "qq+kk+vv"},
    "relations QQ+KK+VV, no softmax": {"relations": "qq+kk+vv", "softmax": False},
    "relations, block 1": {"teacher_block": 1},
    "relations, block 2": {"teacher_block": 2},
    "relations, block 4": {"teacher_block": 4},
    "relations, masked": {"mask_ratio": 0.75},
    "relations, masked, pixels": {"mask_ratio": 0.75, "pixels": True},
    "relations, drop path 0": {"drop_path": 0.0},
    "relations, drop path 0.2": {"drop_path": 0.2},
    "relations, drop path 0.3": {"drop_path": 0.3},
    "relations, teacher drop path 0.1": {"teacher_drop_path": 0.1},
    "tiny: scratch": {"pretrain": None, "student_args": TINY},
    "tiny: direct": {"student_args": TINY},
    "tiny: sequential": {"student_args": TINY, "from": "relations", "teacher_block": None},
}
FINDINGS: tuple[Finding, ...] = (
    ("Distilling beats training from scratch", "relations", "scratch", True),
    ("Distilling beats scratch for as many epochs in all", "relations", "scratch, as long as all", True),
    ("Distilling beats pre-training the small ViT by MAE", "relations", "MAE student", True),
    ("Relations beat the class token", "relations", "class token", True),
    ("Relations beat features", "relations", "features: output", True),
    ("Q/K/V features beat the output's", "features: Q/K/V", "features: output", True),
    (
        "Attention's features are better before the residual",
        "features: attention",
        "features: attention after residual",
        True,
    ),
    ("Softmax helps QK+VV", "relations", "relations, no softmax", True),
    ("QK+VV is no worse than QQ+KK+VV", "relations", "relations QQ+KK+VV", False),
    ("A block before the last is the better target", "relations", "relations, block 4", True),
    ("A later block beats an early one", "relations", "relations, block 1", True),
    ("Raw input beats masked input", "relations", "relations, masked", True),
    ("MAE's pixel loss does not make up for it", "relations", "relations, masked, pixels", True),
    ("Drop path 0.1 beats none", "relations", "relations, drop path 0", True),
    ("Drop path 0.1 beats 0.3", "relations", "relations, drop path 0.3", True),
    ("The teacher's drop path hurts", "relations", "relations, teacher drop path 0.1", True),
    ("Sequential distillation beats direct", "tiny: sequential", "tiny: direct", True),
)


def run_one(name: str, seed: int, epochs: int, folder: str) -> dict[str, Any]:
    """Pre-train one student, look at its neighbours, fine-tune it."""
    import torch

    torch.set_num_threads(1)
    from vitdistill import Augment, Optim, finetune, knn

    options = {**BASE, **SETTINGS[name]}
    out = Path(folder) / f"{name.replace(' ', '_').replace('/', '')}-{seed}"
    student: dict[str, Any] = {"model": "digits_vit_small", "model_args": options.get("student_args")}
    neighbours, seconds, kind = None, 0.0, options.pop("pretrain", "tinymim")
    if kind is not None:
        info = pretrain(kind, options, out, seed, epochs, folder)
        student, seconds = {"model": str(out)}, info["seconds"]
        with contextlib.redirect_stdout(io.StringIO()):
            neighbours = knn(str(out), pool="avg", k=[10], json=True)["scores"][0]["top1"]
    long = options.get("long", False)
    tuned = finetune(
        **student,
        data="digits",
        out=f"{out}-tuned",
        epochs=FINETUNE_EPOCHS + epochs if long else FINETUNE_EPOCHS,
        batch_size=64,
        drop_path=0.0,
        augment=Augment(recipe="none"),
        optim=Optim(lr=2e-3, lr_batch=64, warmup_epochs=1, layer_decay=None if kind is None else 0.75),
        seed=seed,
    )
    return {
        "name": name,
        "seed": seed,
        "top1": tuned["accuracy"]["top1"],
        "neighbours": neighbours,
        "seconds": seconds + tuned["seconds"],
    }


def pretrain(kind: str, options: dict[str, Any], out: Path, seed: int, epochs: int, folder: str) -> dict[str, Any]:
    """One run without labels."""
    from vitdistill import Augment, Optim, mae, tinymim
    from vitdistill.methods.options import PixelDecoder

    common: dict[str, Any] = {
        "student": "digits_vit_small",
        "data": "digits",
        "out": str(out),
        "epochs": epochs,
        "batch_size": 64,
        "augment": Augment(recipe="none"),
        "optim": Optim(lr=3e-3, lr_batch=64, warmup_epochs=2, min_lr=0.0, betas=(0.9, 0.95)),
        "seed": seed,
    }
    if kind == "mae":
        return mae(**common, decoder_width=48, decoder_depth=2, decoder_heads=3)
    first = options.pop("from", None)
    if first is not None:
        # The teacher of the same seed, trained again in a folder of its own: studies run in any order.
        teacher = out.with_name(f"{out.name}-teacher")
        pretrain("tinymim", {**BASE, **SETTINGS[first]}, teacher, seed, epochs, folder)
        options["teacher"] = str(teacher)
    if options.get("pixels"):
        options["pixel_decoder"] = PixelDecoder(width=48, depth=2, heads=3)
    return tinymim(**common, **options)


def summarise(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per setting: fine-tuned accuracy by seed, mean, deviation, neighbours."""
    table: dict[str, dict[str, Any]] = {}
    for name in SETTINGS:
        runs = sorted((run for run in results if run["name"] == name), key=lambda run: run["seed"])
        if not runs:
            continue
        scores = [run["top1"] for run in runs]
        mean, sd = spread(scores)
        near = [run["neighbours"] for run in runs]
        near_mean, near_sd = (None, None) if None in near else spread(near)
        table[name] = {"top1": scores, "mean": mean, "sd": sd, "neighbours": near_mean, "neighbours_sd": near_sd}
        table[name]["seconds"] = spread([run["seconds"] for run in runs])[0]
    return table


def markdown(table: dict[str, dict[str, Any]], verdicts: list[dict[str, Any]], meta: dict[str, Any]) -> str:
    """The committed table."""
    lines = [
        "# TinyMIM on handwritten digits",
        "",
        f"`{meta['command']}` on {meta['hardware']['cpu']} ({meta['hardware']['cpu_cores']} cores), "
        f"torch {meta['hardware']['torch']}, {meta['seconds'] / 60:.0f} minutes. {meta['seeds']} seeds, 1437 training "
        "and 360 test images of 12x12 pixels, patch 2 (36 patches).",
        "",
        "Teacher: the bundled `digits-mae` (96 wide, 4 blocks, 6 heads, pre-trained without labels); its block 3 is "
        "the target unless a setting says otherwise. Student: 48 wide, 3 blocks, 3 heads (6 in the last block); the "
        f"tiny one is 24 wide. {meta['epochs']} epochs without labels, then {FINETUNE_EPOCHS} epochs of fine-tuning. "
        "Neighbours: 10 nearest on mean-pooled features, before any label was used.",
        "",
        "| setting | fine-tuned top-1 % (mean ± sd) | neighbours top-1 % | seconds a run |",
        "|---|---|---|---|",
    ]
    for name, row in table.items():
        near = "-" if row["neighbours"] is None else f"{row['neighbours']:.2f} ± {row['neighbours_sd']:.2f}"
        lines.append(f"| {name} | {row['mean']:.2f} ± {row['sd']:.2f} | {near} | {row['seconds']:.0f} |")
    return "\n".join([*lines, "", *findings_table(verdicts), "", in_words(verdicts)]) + "\n"


def figure(table: dict[str, dict[str, Any]], path: Path) -> None:
    """Fine-tuned accuracy of every setting, with its spread."""
    from matplotlib.figure import Figure

    names = list(reversed(table))
    picture = Figure(figsize=(7.5, 0.28 * len(names) + 1.2), layout="constrained")
    axes = picture.subplots()
    colours = ["#0072B2" if name.startswith("relations") else "#7f8a96" for name in names]
    places = range(len(names))
    axes.barh(places, [table[name]["mean"] for name in names], color=colours, height=0.65)
    for place, name in zip(places, names, strict=True):
        axes.plot(table[name]["top1"], [place] * len(table[name]["top1"]), "k.", ms=4)
    axes.set_yticks(places, names, fontsize=8)
    lowest = min(min(row["top1"]) for row in table.values())
    axes.set_xlim(max(0.0, lowest - 3), 100)
    axes.set_xlabel("fine-tuned top-1 on 360 test digits, % (bar: mean, dots: seeds)")
    axes.grid(axis="x", alpha=0.3)
    picture.savefig(path)


def main() -> int:
    parser = parser_of(__doc__, seeds=3, epochs=16)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from vitdistill.costing.measure import hardware

    started = time.time()
    names = chosen(SETTINGS, options.only)
    results = run_all(run_one, names, options.seeds, options.jobs, options.epochs)
    meta = {
        "command": command_line(),
        "hardware": hardware(),
        "seeds": options.seeds,
        "epochs": options.epochs,
        "seconds": time.time() - started,
    }
    table = summarise(results)
    verdicts = judge(table, FINDINGS)
    content = {"meta": meta, "table": table, "findings": verdicts, "runs": results}
    write(options.out, "digits_tinymim", content, markdown(table, verdicts, meta))
    figure(table, options.out / "digits_tinymim.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
