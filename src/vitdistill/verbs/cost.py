"""`vitdistill cost`: what a distillation will cost, before anything is spent."""

import json as jsonlib
from typing import Any

from rich.console import Console
from rich.table import Table

from vitdistill.errors import UserError
from vitdistill.models.names import ModelName
from vitdistill.tokens.keep import Keep

CONVENTION = (
    "1 PFLOP here is 1e15 multiply-accumulates of the teacher's forward passes, LayerNorm at 5 per element, as in the "
    "MaskedKD paper's tables; training the student counts as 3 forward passes"
)
# Backward computes two products per linear map (for inputs and for weights) where forward computes one.
TRAINING_FORWARDS = 3
# Schedules go by the step, of which the data would say how many there are; more of them change next to nothing.
STEPS_PER_EPOCH = 1000


def cost(
    *,
    teacher: ModelName,
    student: ModelName | None = None,
    keep: Keep = 0.5,
    image_size: int | None = None,
    epochs: int = 300,
    images: int = 1281167,
    gpu_tflops: float | None = None,
    teacher_args: dict[str, Any] | None = None,
    student_args: dict[str, Any] | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Count what the teacher costs in a training, whole and masked, from the networks' shapes alone.

    Nothing is downloaded and no weights are loaded.

    Args:
        teacher: Teacher: a timm name, name@weights-file, run directory or bundled name.
        student: Student, named as the teacher is; adds its training cost and the teacher's share of a step.
        keep: Teacher patches kept: a count (98), a fraction (0.5), or a schedule ('1.0->0.5', '0:1.0,0.5:0.25'),
            of which the average over training is taken.
        image_size: Side of the input images in pixels, for both networks. A teacher at a resolution of its own takes
            --teacher_args.img_size.
        epochs: Passes over the training images.
        images: Training images per epoch (ImageNet-1K: 1281167).
        gpu_tflops: Rate that the GPU sustains in TFLOP/s, 1 MAC being 2 FLOP; adds GPU-hours.
        teacher_args: More arguments of the teacher's architecture.
        student_args: More arguments of the student's architecture.
        json: Print one JSON object instead of the tables.

    Returns:
        What is printed, by name. `teacher_pflops` is the masked teacher's cost in the paper's convention.

    Raises:
        UserError: for an unknown model, a `keep` outside the teacher's grid, or numbers that are not positive.
    """
    for name, number in (("epochs", epochs), ("images", images), ("gpu_tflops", gpu_tflops)):
        if number is not None and not 0 < number < float("inf"):
            raise UserError(f"{name} must be positive", number)
    full, kept, facts = _teacher_macs(teacher, teacher_args, image_size, keep, epochs)
    passes = epochs * images
    result: dict[str, Any] = {
        "teacher": teacher,
        **facts,
        "keep": keep,
        "epochs": epochs,
        "images": images,
        "teacher_pflops": kept["total"] * passes / 1e15,
        "teacher_full_pflops": full["total"] * passes / 1e15,
        "saved_pflops": (full["total"] - kept["total"]) * passes / 1e15,
        "saved_fraction": 1 - kept["total"] / full["total"],
        "teacher_speedup_limit": full["total"] / kept["total"],
        "teacher_gmacs_per_image": {"full": _giga(full), "kept": _giga(kept)},
        "convention": CONVENTION,
    }
    training = 0.0
    if student is not None:
        forward = _student_macs(student, student_args, image_size)
        training = TRAINING_FORWARDS * forward["total"]
        result |= _step_costs(student, forward, full["total"], kept["total"], passes)
    if gpu_tflops is not None:
        hours = 2 * passes / (gpu_tflops * 1e12) / 3600
        result["gpu_tflops"] = gpu_tflops
        result["gpu_hours"] = {
            "teacher_full": full["total"] * hours,
            "teacher_kept": kept["total"] * hours,
            "student": training * hours if student is not None else None,
        }
    print(jsonlib.dumps(result)) if json else _print(result)
    return result


def _teacher_macs(
    spec: str, args: dict[str, Any] | None, image_size: int | None, keep: int | float | str, epochs: int
) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
    """MACs per image of the whole and of the masked teacher, by part and in total, and what the teacher is."""
    from vitdistill.models.backbone import Backbone
    from vitdistill.models.macs import Macs
    from vitdistill.tokens.keep import KeepSchedule, tally

    backbone, size = _on_meta(spec, args, image_size)
    patches = backbone.grid.count if isinstance(backbone, Backbone) else 1
    schedule = KeepSchedule.parse(keep)
    if not backbone.maskable and any(str(part) != "1.0" for _, part in schedule.points):
        raise UserError(f"{spec} cannot leave out patches", f"keep {keep}", "Use --keep 1.0, or a ViT, DeiT or CaiT")
    steps = epochs * STEPS_PER_EPOCH
    counts = tally(lambda progress: schedule.count(progress, patches), steps)

    whole = backbone.macs(size=size)
    over_training = Macs()
    for count, number in counts.items():
        over_training += (whole if count == patches else backbone.macs(count, size=size)) * number
    kept = {part: value / steps for part, value in _by_part(over_training).items()}
    average = sum(count * number for count, number in counts.items()) / steps
    facts = {
        "image_size": list(size),
        "teacher_patches": patches,
        "kept_patches": int(average) if schedule.constant else average,
    }
    return _by_part(whole), kept, facts


def _student_macs(spec: str, args: dict[str, Any] | None, image_size: int | None) -> dict[str, float]:
    backbone, size = _on_meta(spec, args, image_size)
    return _by_part(backbone.macs(size=size))


def _on_meta(spec: str, args: dict[str, Any] | None, image_size: int | None) -> tuple[Any, tuple[int, int]]:
    """A backbone without weights, and the height and width of its input in pixels."""
    from vitdistill.models.build import build
    from vitdistill.models.network import Opaque

    own_size = "img_size" in (args or {})
    backbone = build(spec, args=args, image_size=None if own_size else image_size, meta=True)
    free = isinstance(backbone, Opaque) and image_size is not None and not own_size
    return backbone, (image_size, image_size) if free and image_size else backbone.input.size


def _by_part(macs: Any) -> dict[str, float]:
    return {**macs.parts(), "total": macs.total}


def _giga(parts: dict[str, float]) -> dict[str, float]:
    return {part: value / 1e9 for part, value in parts.items()}


def _step_costs(
    student: str, forward: dict[str, float], teacher_full: float, teacher_kept: float, passes: int
) -> dict[str, Any]:
    training = TRAINING_FORWARDS * forward["total"]
    before, after = teacher_full + training, teacher_kept + training
    return {
        "student": student,
        "student_gmacs_per_image": {"forward": forward["total"] / 1e9, "training": training / 1e9},
        "student_pflops": training * passes / 1e15,
        "teacher_share_of_step": {"full": teacher_full / before, "kept": teacher_kept / after},
        "step_speedup_limit": before / after,
    }


# --- printing ----------------------------------------------------------------------------------------------------


def _print(result: dict[str, Any]) -> None:
    console = Console()
    console.print(_parts_table(result))
    console.print(_totals_table(result))
    console.print(f"[dim]{result['convention']}.[/dim]")


def _parts_table(result: dict[str, Any]) -> Table:
    full, kept = result["teacher_gmacs_per_image"]["full"], result["teacher_gmacs_per_image"]["kept"]
    size = "x".join(map(str, result["image_size"]))
    table = Table(title=f"{result['teacher']} at {size} pixels: GMACs per image")
    table.add_column("part")
    table.add_column(f"all {result['teacher_patches']} patches", justify="right")
    table.add_column(f"{result['kept_patches']:.4g} kept", justify="right")
    table.add_column("saved", justify="right")
    for part in full:
        saved = f"{1 - kept[part] / full[part]:.1%}"
        table.add_row(part.replace("_", " "), f"{full[part]:.4f}", f"{kept[part]:.4f}", saved)
    return table


def _totals_table(result: dict[str, Any]) -> Table:
    title = f"{result['epochs']} epochs of {result['images']:,} images"
    table = Table(title=f"{title}, student {result['student']}" if "student" in result else title)
    table.add_column("")
    table.add_column("whole teacher", justify="right")
    table.add_column("masked teacher", justify="right")
    table.add_column("gain", justify="right")

    def row(name: str, full: float, kept: float, form: str = "", gain: str = "") -> None:
        figures = (format(value, form) if form else _four_figures(value) for value in (full, kept))
        table.add_row(name, *figures, gain)

    speedup = f"at most {result['teacher_speedup_limit']:.2f}x"
    row("teacher, PFLOPs", result["teacher_full_pflops"], result["teacher_pflops"], gain=speedup)
    if "student" in result:
        training, share = result["student_pflops"], result["teacher_share_of_step"]
        row("student's training, PFLOPs", training, training)
        step = f"at most {result['step_speedup_limit']:.2f}x"
        full, kept = (result[key] + training for key in ("teacher_full_pflops", "teacher_pflops"))
        row("both, PFLOPs", full, kept, gain=step)
        row("teacher's share of a step", share["full"], share["kept"], ".1%")
    if "gpu_hours" in result:
        hours = result["gpu_hours"]
        student = hours["student"] or 0.0
        name = f"GPU-hours at {result['gpu_tflops']:g} TFLOP/s"
        row(name, hours["teacher_full"] + student, hours["teacher_kept"] + student)
    return table


def _four_figures(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
