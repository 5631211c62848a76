"""The MaskedKD demo: what masking the teacher costs and saves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitdistill.data.images.augment import Augment
from vitdistill.training.settings import Optim

EPOCHS = 24

# The four runs of the MaskedKD demo: title, keep (None: no teacher).
RUNS: tuple[tuple[str, str, float | None], ...] = (
    ("no-teacher", "labels alone", None),
    ("full", "full teacher", 1.0),
    ("half", "50% of the patches", 0.5),
    ("quarter", "25% of the patches", 0.25),
)


def run(folder: Path, epochs: int, seed: int, overwrite: bool, announce: Callable[[str], None]) -> dict[str, Any]:
    """Train four students: without a teacher, and with the bundled one on all, half and a quarter of its patches.

    Returns:
        The rows of the table and the path of the report.
    """
    from vitdistill.reporting.page import write_report
    from vitdistill.verbs.maskedkd import maskedkd

    rows, paths = [], []
    for name, title, keep in RUNS:
        announce(f"{title}: {epochs} epochs")
        info = maskedkd(
            student="digits_vit_small",
            teacher="digits-teacher" if keep is not None else None,
            data="digits",
            out=str(folder / name),
            keep=1.0 if keep is None else keep,
            criterion="student",  # the paper's
            alpha=0.0 if keep is None else 0.5,
            epochs=epochs,
            batch_size=64,
            drop_path=0.0,
            augment=Augment(recipe="none"),
            optim=Optim(lr=3e-3, lr_batch=64, warmup_epochs=3),
            seed=seed,
            overwrite=overwrite,
        )
        rows.append(row_of(title, info))
        paths.append(folder / name)
    report = write_report(paths, folder / "report.html")
    return {"method": "maskedkd", "rows": rows, "report": str(report)}


def row_of(title: str, info: dict[str, Any]) -> dict[str, Any]:
    """One line of the table out of a run's run.json."""
    cost, speed, tokens = info["cost"], info["speed"], info["tokens"] or {}
    with_teacher = info["teacher"] is not None
    return {
        "run": title,
        "score": info["accuracy"][info["score"]],
        "heading": info["metrics"][info["score"]],
        "teacher_tokens": tokens.get("kept") if with_teacher else None,
        "teacher_tokens_of": tokens.get("of") if with_teacher else None,
        "teacher_mmacs_per_image": cost["teacher_gmacs_per_image"] * 1e3 if with_teacher else None,
        "teacher_tmacs_total": cost["teacher_gmacs_total"] / 1e3 if with_teacher else None,
        "teacher_ms_per_image": speed["teacher_ms_per_image"] if with_teacher else None,
        "seconds": info["seconds"],
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    columns = (
        "student trained with",
        result["rows"][0]["heading"],
        "patches",
        "teacher MMACs/img",
        "teacher TMACs",
        "teacher ms/img",
        "s",
    )
    table = Table(*columns, title="Handwritten digits: what masking the teacher costs and saves")
    for row in result["rows"]:
        patches = f"{row['teacher_tokens']} of {row['teacher_tokens_of']}" if row["teacher_tokens"] else "-"
        numbers = [row[key] for key in ("teacher_mmacs_per_image", "teacher_tmacs_total", "teacher_ms_per_image")]
        cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
        table.add_row(row["run"], f"{row['score']:.1f}", patches, *cells, f"{row['seconds']:.0f}")
    console = Console(width=None if Console().is_terminal else 110)
    console.print(table)
    console.print(
        "One seed, 360 test images: a difference of less than two points may be chance. "
        "The study with several seeds is benchmarks/studies/digits_maskedkd.yaml.",
        highlight=False,
    )
