"""The audio demo: what masking the teacher of an audio spectrogram transformer costs and saves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitdistill.data.images.augment import Augment
from vitdistill.studies.maskedkd import row_of
from vitdistill.training.settings import Optim

EPOCHS = 16
TEACHER = "teacher"

# The students of the demo: folder, title, keep (None: no teacher).
RUNS: tuple[tuple[str, str, float | None], ...] = (
    ("no-teacher", "labels alone", None),
    ("full", "full teacher", 1.0),
    ("half", "50% of the patches", 0.5),
)


def run(folder: Path, epochs: int, seed: int, overwrite: bool, announce: Callable[[str], None]) -> dict[str, Any]:
    """Train a teacher, then three students: without it, with all and with half of its patches.

    Returns:
        The rows of the table and the path of the report.
    """
    from vitdistill.reporting.page import write_report
    from vitdistill.verbs.maskedkd import maskedkd
    from vitdistill.verbs.supervised import supervised

    shared: dict[str, Any] = {
        "data": "sounds",
        "epochs": epochs,
        "batch_size": 25,
        "drop_path": 0.0,
        "augment": Augment(recipe="none"),  # SpecAugment helps later than the demo ends
        "seed": seed,
        "overwrite": overwrite,
    }
    # Without clipping, a fresh transformer of this width does not begin to learn at all.
    optim = {lr: Optim(lr=lr, lr_batch=25, warmup_epochs=min(2, epochs - 1), clip=1.0) for lr in (1e-3, 2e-3)}
    announce(f"the teacher: {epochs} epochs")
    info = supervised(student="sounds_ast_base", out=str(folder / TEACHER), optim=optim[1e-3], **shared)
    rows, paths = [row_of("the teacher itself", info)], []
    for name, title, keep in RUNS:
        announce(f"{title}: {epochs} epochs")
        info = maskedkd(
            student="sounds_ast_small",
            teacher=str(folder / TEACHER) if keep is not None else None,
            out=str(folder / name),
            keep=1.0 if keep is None else keep,
            criterion="student",  # the paper's
            alpha=0.0 if keep is None else 0.5,
            optim=optim[2e-3],
            **shared,
        )
        rows.append(row_of(title, info))
        paths.append(folder / name)
    report = write_report(paths, folder / "report.html")
    return {"method": "audio", "rows": rows, "report": str(report)}


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    heading = result["rows"][0]["heading"]
    columns = ("trained with", heading, "patches", "teacher MMACs/sound", "teacher TMACs", "s")
    table = Table(*columns, title="Synthetic sounds: what masking the teacher of a spectrogram transformer saves")
    for row in result["rows"]:
        patches = f"{row['teacher_tokens']} of {row['teacher_tokens_of']}" if row["teacher_tokens"] else "-"
        numbers = [row[key] for key in ("teacher_mmacs_per_image", "teacher_tmacs_total")]
        cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
        table.add_row(row["run"], f"{row['score']:.1f}", patches, *cells, f"{row['seconds']:.0f}")
    console = Console(width=None if Console().is_terminal else 110)
    console.print(table)
    console.print(
        "The sounds are made by the program: tones, chirps, noise bands, clicks. One seed, 200 test sounds: a "
        "difference of less than seven points may be chance.",
        highlight=False,
    )
