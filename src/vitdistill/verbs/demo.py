"""`vitdistill demo`: a complete small study, trained for real each time, offline."""

from pathlib import Path
from typing import Any, Literal

from vitdistill.data.recipes import Augment
from vitdistill.training.settings import Optim

# The four runs of the MaskedKD demo: title, keep (None: no teacher).
RUNS: tuple[tuple[str, str, float | None], ...] = (
    ("no-teacher", "labels alone", None),
    ("full", "full teacher", 1.0),
    ("half", "50% of the patches", 0.5),
    ("quarter", "25% of the patches", 0.25),
)


def demo(
    method: Literal["maskedkd"] = "maskedkd",
    *,
    out: str = "runs/demo",
    epochs: int = 24,
    seed: int = 0,
    overwrite: bool = False,
    json: bool = False,
) -> dict[str, Any]:
    """Distil a small ViT on real handwritten digits and show what masking the teacher cost and saved.

    Trains four students for the same number of epochs: without a teacher, with the bundled teacher on every patch,
    and on half and a quarter of them. Takes a few minutes on two CPU cores. One seed and 360 test images settle no
    difference of a point or two: benchmarks/digits_maskedkd.py is the study with several seeds.

    Args:
        method: which method to show.
        out: folder for the four run directories and the report.
        epochs: passes over the 1437 training images, for each student.
        seed: of all four runs.
        overwrite: replace the runs of an earlier demo.
        json: print one JSON object in place of the table.

    Returns:
        The rows of the table, and the path of the report.
    """
    from vitdistill.reporting.page import write_report
    from vitdistill.verbs.maskedkd import maskedkd

    folder = Path(out)
    rows, paths = [], []
    for name, title, keep in RUNS:
        announce(f"{title}: {epochs} epochs", json)
        info = maskedkd(
            student="digits_vit_small",
            teacher="digits-teacher" if keep is not None else None,
            data="digits",
            out=str(folder / name),
            keep=1.0 if keep is None else keep,
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
    result = {"method": method, "rows": rows, "report": str(report)}
    show(result, json)
    return result


def announce(text: str, quiet: bool) -> None:
    """Say what comes next, unless only JSON is wanted."""
    if not quiet:
        print(f"\n{text}", flush=True)


def row_of(title: str, info: dict[str, Any]) -> dict[str, Any]:
    """One line of the table out of a run's run.json."""
    cost, speed, tokens = info["cost"], info["speed"], info["tokens"] or {}
    with_teacher = info["teacher"] is not None
    return {
        "run": title,
        "top1": info["accuracy"]["top1"],
        "teacher_tokens": tokens.get("kept") if with_teacher else None,
        "teacher_tokens_of": tokens.get("of") if with_teacher else None,
        "teacher_mmacs_per_image": cost["teacher_gmacs_per_image"] * 1e3 if with_teacher else None,
        "teacher_tmacs_total": cost["teacher_gmacs_total"] / 1e3 if with_teacher else None,
        "teacher_ms_per_image": speed["teacher_ms_per_image"] if with_teacher else None,
        "seconds": info["seconds"],
    }


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print the table and the path of the report."""
    import json

    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console
    from rich.table import Table

    columns = (
        "student trained with",
        "top-1 %",
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
        table.add_row(row["run"], f"{row['top1']:.1f}", patches, *cells, f"{row['seconds']:.0f}")
    console = Console(width=None if Console().is_terminal else 110)
    console.print(table)
    console.print(
        "One seed, 360 test images: a difference of less than two points may be chance. "
        "The study with several seeds is benchmarks/digits_maskedkd.py.",
        highlight=False,
    )
    print(f"report: {result['report']}")
