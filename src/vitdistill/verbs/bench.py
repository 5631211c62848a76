"""`vitdistill bench`: what masking the teacher gains on this machine, next to what it can gain at most."""

import json as jsonlib
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.models.names import ModelName
from vitdistill.training.precision import has_bf16

if TYPE_CHECKING:
    from vitdistill.models.backbone import Backbone
    from vitdistill.models.network import Network
    from vitdistill.models.teacher import Teacher
    from vitdistill.types import TokenGrid


def bench(
    *,
    teacher: ModelName,
    student: ModelName | None = None,
    keep: int | float | list[int | float] = 0.5,
    batch_size: int = 32,
    image_size: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    compile: bool = False,
    repeats: int = 10,
    teacher_args: dict[str, Any] | None = None,
    student_args: dict[str, Any] | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Measure the teacher's forward pass with all and with some of the patches, and the student's step.

    Whole and masked passes take turns in one loop, so a busy machine disturbs both. Networks that are given by name
    have random weights: time and memory do not depend on them.

    Args:
        teacher: Teacher: a timm name, name@weights-file, run directory or bundled name.
        student: Student, named as the teacher is; adds its training step with and without the saliency.
        keep: Teacher patches kept, a count (98) or a fraction (0.5), or several of them ([0.75, 0.5, 0.25]).
        batch_size: Images per step.
        image_size: Side of the input images in pixels, for both networks.
        device: Where to run; auto takes a GPU where there is one.
        dtype: Number format of the teacher, and of the student's autocast; auto is bfloat16 on a GPU, else float32.
        compile: Run the blocks through torch.compile.
        repeats: Timed rounds; medians are reported.
        teacher_args: More arguments of the teacher's architecture.
        student_args: More arguments of the student's architecture.
        json: Print one JSON object instead of the tables.

    Returns:
        What is printed, by name, with the machine it was measured on.

    Raises:
        UserError: for an unknown model, a `keep` outside the teacher's grid, or a device that is not there.
    """
    from vitdistill.costing.measure import hardware
    from vitdistill.models.backbone import with_tokens
    from vitdistill.models.teacher import Teacher

    _check_positive(batch_size=batch_size, repeats=repeats)
    where, number = _device(device), _dtype(dtype, _device(device))
    frozen = Teacher(_build(teacher, teacher_args, image_size).to(where), dtype=number)
    counts = _counts(frozen.network, keep if isinstance(keep, list) else [keep])
    images = _images(frozen.network, batch_size, image_size, where)
    result: dict[str, Any] = {
        "teacher": teacher,
        "batch_size": batch_size,
        "image_size": list(images.shape[-2:]),
        "device": where.type,
        "dtype": str(number).removeprefix("torch."),
        "compiled": compile,
        "hardware": hardware(),
        "teacher_passes": measure_teacher(frozen, images, counts, repeats, compile=compile),
    }
    if student is not None:
        trained = with_tokens(_build(student, student_args, image_size).to(where))
        seen = _images(trained, batch_size, image_size, where)
        result["student"] = student
        result["student_step"] = measure_student(
            trained, seen, frozen.grid, counts[-1], number, repeats, compile=compile
        )
    print(jsonlib.dumps(result)) if json else _print(result)
    return result


# --- measuring (also used by benchmarks/maskedkd_step.py) --------------------------------------------------------


def measure_teacher(
    teacher: "Teacher", images: Tensor, counts: list[int], repeats: int, *, compile: bool = False
) -> list[dict[str, Any]]:
    """Forward passes of a teacher with all its patches and with each number of kept ones, taking turns.

    Args:
        teacher: on the device of `images`.
        images: (b, channels, height, width).
        counts: numbers of kept patches; all patches come first in the result in any case.
        repeats: timed rounds.
        compile: compile the blocks before timing (memory is measured before).

    Returns:
        One row per number of patches: time, images/s, peak activation memory, the MAC ratio to the whole pass (the
        limit of the gain), the measured gain, and its share of the limit.
    """
    from vitdistill.costing.measure import compare, peak_memory_bytes
    from vitdistill.models.backbone import Backbone
    from vitdistill.tokens.select import random_scores, top_k

    network = teacher.network
    patches = network.grid.count if isinstance(network, Backbone) else 1
    selections: dict[int, Tensor | None] = {patches: None}
    for count in counts:
        if count != patches:
            selections[count] = top_k(random_scores(len(images), patches, device=images.device), count)
    passes = {str(n): lambda kept=kept: teacher(images, keep=kept) for n, kept in selections.items()}
    for run in passes.values():
        run()  # workspaces and buffers of a first pass are not activations
    memory = {name: peak_memory_bytes(run, images.device) for name, run in passes.items()}
    if compile:
        network.compile_blocks()
    timings = compare(passes, repeats, device=images.device)

    size = (images.shape[-2], images.shape[-1])
    rows: list[dict[str, Any]] = []
    for count, kept in selections.items():
        macs = network.macs(None if kept is None else count, size=size).total
        row = {"patches": count, "gmacs_per_image": macs / 1e9, **timings[str(count)].as_dict(len(images))}
        row["peak_memory_bytes"] = memory[str(count)]
        row["mac_ratio"] = rows[0]["gmacs_per_image"] / row["gmacs_per_image"] if rows else 1.0
        row["gain"] = timings.ratio(str(patches), str(count))
        row["gain_share_of_limit"] = row["gain"] / row["mac_ratio"]
        rows.append(row)
    return rows


def measure_student(
    student: "Backbone",
    images: Tensor,
    grid: "TokenGrid",
    count: int,
    dtype: torch.dtype,
    repeats: int,
    *,
    compile: bool = False,
) -> dict[str, Any]:
    """A student's training step (forward, cross-entropy, backward, AdamW) with and without saliency and selection.

    The difference of the two steps is small against the noise of a shared machine, so saliency and selection are
    also timed alone, on what a pass captured; that is the overhead reported.

    Args:
        student: on the device of `images`.
        images: (b, channels, height, width).
        grid: the teacher's patch grid, onto which the saliency is carried.
        count: patches kept of that grid.
        dtype: of the autocast; float32 is none.
        repeats: timed rounds.
        compile: compile the blocks before timing.
    """
    from vitdistill.costing.measure import compare
    from vitdistill.tokens.grids import transfer
    from vitdistill.tokens.select import top_k
    from vitdistill.types import NOTHING, Capture, Output

    student.train()
    if compile:
        student.compile_blocks()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6)
    targets = torch.randint(student.num_classes, (len(images),), device=images.device)

    def forward(capture: Capture) -> Output:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return student(images, capture=capture)

    def select(output: Output) -> Tensor:
        return top_k(transfer(student.saliency(output), student.grid, grid), count)

    def step(with_saliency: bool) -> None:
        output = forward(student.saliency_capture() if with_saliency else NOTHING)
        if with_saliency:
            select(output)
        assert output.prediction is not None  # every pass of the student goes up to the head
        prediction = output.prediction.float()
        if prediction.ndim == 2:
            loss = torch.nn.functional.cross_entropy(prediction, targets)
        else:  # of objects or pixels, whose own losses are left out of the time
            loss = prediction.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.no_grad():
        captured = forward(student.saliency_capture())
    work = {
        "step": lambda: step(False),
        "step_with_saliency": lambda: step(True),
        "saliency": lambda: select(captured),
    }
    timings = compare(work, repeats, device=images.device)
    return {
        **{name: timing.as_dict(len(images)) for name, timing in timings.items()},
        "saliency_share_of_step": timings.ratio("saliency", "step"),
        "step_ratio": timings.ratio("step_with_saliency", "step"),
    }


# --- reading the arguments ---------------------------------------------------------------------------------------


def _build(spec: str, args: dict[str, Any] | None, image_size: int | None) -> "Network":
    from vitdistill.models.build import build

    return build(spec, args=args, image_size=None if "img_size" in (args or {}) else image_size)


def _images(network: "Network", batch_size: int, image_size: int | None, device: torch.device) -> Tensor:
    from vitdistill.models.network import Opaque

    any_size = isinstance(network, Opaque) and image_size is not None
    size = (image_size, image_size) if any_size else network.input.size
    return torch.randn(batch_size, len(network.input.mean), *size, device=device)  # type: ignore[arg-type]


def _counts(network: "Network", keeps: list[int | float]) -> list[int]:
    """Patches kept, most first; of a network whose patches are not known, 1 stands for all."""
    from vitdistill.models.backbone import Backbone
    from vitdistill.tokens.keep import keep_count

    if not keeps:
        raise UserError("keep must name at least one number of patches", keeps)
    if not isinstance(network, Backbone) or not network.maskable:
        if any(str(keep) != "1.0" for keep in keeps):
            raise UserError(
                f"{network.name} cannot leave out patches", f"keep {keeps}", "Use --keep 1.0, or a ViT, DeiT or CaiT"
            )
        return [1]
    return sorted({keep_count(keep, network.grid.count) for keep in keeps}, reverse=True)


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"{name} must be at least 1", number)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda needs a GPU that PyTorch can use", "none", "Use --device cpu")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and has_bf16() else torch.float32
    return getattr(torch, name)


# --- printing ----------------------------------------------------------------------------------------------------


def _print(result: dict[str, Any]) -> None:
    console, machine = Console(), result["hardware"]
    console.print(_teacher_table(result))
    if "student_step" in result:
        console.print(_student_table(result))
    if result["device"] == "cuda":
        console.print(f"[dim]{machine['gpu']}, torch {machine['torch']}[/dim]")
    else:
        console.print(f"[dim]{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}[/dim]")


def _teacher_table(result: dict[str, Any]) -> Table:
    how = f"{result['dtype']}, {'compiled' if result['compiled'] else 'eager'}, batch {result['batch_size']}"
    table = Table(title=f"{result['teacher']} as a teacher ({how})")
    for column in ("patches", "ms per image", "images/s", "peak MiB", "gain", "limit", "gain / limit"):
        table.add_column(column, justify="right")
    for row in result["teacher_passes"]:
        table.add_row(
            str(row["patches"]),
            f"{row['ms_per_image']:.3f}",
            f"{row['images_per_s']:,.1f}",
            f"{row['peak_memory_bytes'] / 2**20:,.1f}",
            f"{row['gain']:.2f}x",
            f"{row['mac_ratio']:.2f}x",
            f"{row['gain_share_of_limit']:.0%}",
        )
    return table


def _student_table(result: dict[str, Any]) -> Table:
    step = result["student_step"]
    table = Table(title=f"{result['student']} as a student, one training step")
    for column in ("", "ms per image", "images/s", "share of the step"):
        table.add_column(column, justify="right" if column else "left")
    shares = {"step": 1.0, "step_with_saliency": step["step_ratio"], "saliency": step["saliency_share_of_step"]}
    for name, share in shares.items():
        timing = step[name]
        rate = "" if name == "saliency" else f"{timing['images_per_s']:,.1f}"
        table.add_row(name.replace("_", " "), f"{timing['ms_per_image']:.3f}", rate, f"{share:.2%}")
    return table
