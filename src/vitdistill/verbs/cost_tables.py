"""The tables that `vitdistill cost` prints."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_tables(result: dict[str, Any]) -> None:
    """Print what `cost` returns: the parts of one pass, the whole training, and the convention.

    Args:
        result: of `cost`.
    """
    console = Console()
    console.print(_parts_table(result))
    console.print(_totals_table(result))
    if "merging" in result:
        console.print(_merging_table(result))
    for text in (result["convention"], result.get("note")):
        if text:
            console.print(f"[dim]{text}.[/dim]")


def _merging_table(result: dict[str, Any]) -> Table:
    patches = result["teacher_patches"]
    table = Table(title="Merging tokens, and masks that cost as much")
    for heading in ("merged by each block", "tokens left", "GMACs", "of the whole", f"as kept of {patches} patches"):
        table.add_column(heading, justify="right")
    for row in result["merging"]:
        style = "bold" if row["merge"] == result["teacher_merge"] else None
        figures = (str(row["tokens"]), _four_figures(row["gmacs"]), f"{row['share']:.1%}", str(row["keep"]))
        table.add_row(row["merge"], *figures, style=style)
    return table


def _parts_table(result: dict[str, Any]) -> Table:
    full, kept = result["teacher_gmacs_per_image"]["full"], result["teacher_gmacs_per_image"]["kept"]
    of_student = result["mask"] == "student"
    size = "x".join(map(str, result["image_size"]))
    unit = "mel bins x frames" if result["inputs"] == "clips" else "pixels"
    table = Table(title=f"{result['teacher']} at {size} {unit}: GMACs per {result['inputs'].removesuffix('s')}")
    table.add_column("part")
    table.add_column(f"all {result['teacher_patches']} patches", justify="right")
    some = f"merging to {result['tokens_left']} tokens" if "merging" in result else f"{result['kept_patches']:.4g} kept"
    table.add_column("student masked" if of_student else some, justify="right")
    table.add_column("saved", justify="right")
    for part in dict.fromkeys((*list(kept)[:-1], *full)):
        before, after = full.get(part, 0.0), kept.get(part, 0.0)
        saved = f"{1 - after / before:.1%}" if before else ""
        table.add_row(part.replace("_", " "), f"{before:.4f}", f"{after:.4f}", saved)
    if ranking := result["ranking_gmacs_per_image"]:
        saved = "" if of_student else f"{result['saved_fraction']:.1%} in all"
        table.add_row(f"ranking ({result['criterion']})", "", f"{ranking:.4f}", saved)
    return table


def _totals_table(result: dict[str, Any]) -> Table:
    epochs = "1 epoch" if result["epochs"] == 1 else f"{result['epochs']} epochs"
    title = f"{epochs} of {result['images']:,} {result['inputs']}"
    table = Table(title=f"{title}, student {result['student']}" if "student" in result else title)
    table.add_column("")
    table.add_column(f"whole {result['mask']}", justify="right")
    table.add_column(f"{'merging' if 'merging' in result else 'masked'} {result['mask']}", justify="right")
    table.add_column("gain", justify="right")

    def row(name: str, full: float, kept: float, form: str = "", gain: str = "") -> None:
        figures = (format(value, form) if form else _four_figures(value) for value in (full, kept))
        table.add_row(name, *figures, gain)

    # A few epochs of a small set are teraflops, as the paper gives them for sound.
    times, unit = (1, "PFLOPs") if result["teacher_full_pflops"] >= 1 else (1000, "TFLOPs")
    full, kept, ranking = (times * result[f"{name}_pflops"] for name in ("teacher_full", "teacher", "ranking"))
    speedup = f"at most {result['teacher_speedup_limit']:.2f}x"
    row(f"teacher, {unit}", full, kept, gain="" if ranking else speedup)
    if ranking:
        row(f"ranking, {unit}", 0, ranking, gain="" if result["mask"] == "student" else speedup)
    if "student" in result:
        trained, share = times * result["student_pflops"], result["teacher_share_of_step"]
        whole = times * result.get("student_full_pflops", result["student_pflops"])
        row(f"student's training, {unit}", whole, trained)
        step = f"at most {result['step_speedup_limit']:.2f}x"
        name = "all" if ranking else "both"
        row(f"{name}, {unit}", full + whole, kept + ranking + trained, gain=step)
        row("teacher's share of a step", share["full"], share["kept"], ".1%")
    if "gpu_hours" in result:
        hours = result["gpu_hours"]
        student, whole = hours["student"] or 0.0, hours["student_full"] or 0.0
        name = f"GPU-hours at {result['gpu_tflops']:g} TFLOP/s"
        row(name, hours["teacher_full"] + whole, hours["teacher_kept"] + hours["ranking"] + student)
    return table


def _four_figures(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
