"""The TinyMIM demo: what a small ViT learns from an MAE teacher without any label."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitdistill.data.images.augment import Augment
from vitdistill.training.settings import Optim

EPOCHS, FINETUNE_EPOCHS = 16, 10

# Folder, title, arguments of `tinymim` (None: no pre-training). As in ViT-L, the target is three quarters of the way.
STUDENTS: tuple[tuple[str, str, dict[str, Any] | None], ...] = (
    ("scratch", "from scratch", None),
    ("cls", "class token", {"target": "cls"}),
    ("features", "features", {"target": "features"}),
    ("relations", "relations (TinyMIM)", {}),
)


def run(folder: Path, epochs: int, seed: int, overwrite: bool, announce: Callable[[str], None]) -> dict[str, Any]:
    """Distil three students without labels, fine-tune them and one from scratch.

    Returns:
        The rows of the table and the path of the report.
    """
    from vitdistill.reporting.page import write_report
    from vitdistill.verbs.tinymim import tinymim

    rows, paths = [], []
    for name, title, options in STUDENTS:
        out, seconds, neighbours = folder / name, 0.0, None
        if options is not None:
            announce(f"{title}: {epochs} epochs without labels")
            info = tinymim(
                student="digits_vit_small",
                teacher="digits-mae",
                teacher_block=3,
                data="digits",
                out=str(out),
                epochs=epochs,
                batch_size=64,
                color_jitter=0.0,
                augment=Augment(recipe="none"),
                optim=Optim(lr=3e-3, lr_batch=64, warmup_epochs=2, min_lr=0.0, betas=(0.9, 0.95)),
                seed=seed,
                overwrite=overwrite,
                **options,
            )
            seconds, neighbours = info["seconds"], _neighbours(out)
            paths.append(out)
        announce(f"{title}: {FINETUNE_EPOCHS} epochs of fine-tuning")
        tuned = _finetune(out, options is not None, seed, overwrite)
        paths.append(out.with_name(f"{name}-tuned"))
        rows.append(
            {
                "student": title,
                "neighbours": neighbours,
                "score": tuned["accuracy"][tuned["score"]],
                "heading": tuned["metrics"][tuned["score"]],
                "distilling_s": seconds,
                "finetuning_s": tuned["seconds"],
            }
        )
    report = write_report(paths, folder / "report.html")
    return {"method": "tinymim", "rows": rows, "report": str(report)}


def _finetune(out: Path, pretrained: bool, seed: int, overwrite: bool) -> dict[str, Any]:
    from vitdistill.verbs.finetune import finetune

    return finetune(
        str(out) if pretrained else "digits_vit_small",
        data="digits",
        out=str(out.with_name(f"{out.name}-tuned")),
        epochs=FINETUNE_EPOCHS,
        batch_size=64,
        drop_path=0.0,
        augment=Augment(recipe="none"),
        optim=Optim(lr=2e-3, lr_batch=64, warmup_epochs=1, layer_decay=0.75 if pretrained else None),
        seed=seed,
        overwrite=overwrite,
    )


def _neighbours(run: Path) -> float:
    """Accuracy of 10 nearest neighbours, before any label was used for training."""
    from vitdistill.verbs.knn import knn

    with contextlib.redirect_stdout(io.StringIO()):
        return knn(str(run), pool="avg", k=[10], json=True)["scores"][0]["top1"]


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    heading = result["rows"][0]["heading"]
    columns = ("student", f"10 neighbours, {heading}", f"fine-tuned, {heading}", "distilling s", "fine-tuning s")
    table = Table(*columns, title="Handwritten digits: what a small ViT learns from an MAE teacher without labels")
    for row in result["rows"]:
        near = "-" if row["neighbours"] is None else f"{row['neighbours']:.1f}"
        distilling = f"{row['distilling_s']:.0f}" if row["distilling_s"] else "-"
        table.add_row(row["student"], near, f"{row['score']:.1f}", distilling, f"{row['finetuning_s']:.0f}")
    console = Console(width=None if Console().is_terminal else 110)
    console.print(table)
    console.print(
        f"All were fine-tuned for {FINETUNE_EPOCHS} epochs. One seed, 360 test images: a difference of less than two "
        "points may be chance. The study with several seeds is benchmarks/studies/digits_tinymim.yaml.",
        highlight=False,
    )
