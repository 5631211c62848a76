"""What `run.json` says about a run's networks, cost and speed."""

from collections.abc import Mapping, Sequence
from typing import Any

from vitdistill.methods.method import Method, Pass, Spent
from vitdistill.models.backbone import Backbone
from vitdistill.models.network import Network
from vitdistill.tokens.keep import tally
from vitdistill.training.module import TrainingModule

AGREEMENT = "teacher/agreement"  # a column of metrics.csv, in percent


def describe(network: Network) -> dict[str, Any]:
    """Name, size and grid of a network; where only its classifier is trained, the size of that as well."""
    params = sum(parameter.numel() for parameter in network.parameters())
    return {
        "name": network.name,
        "params": params + sum(tensor.numel() for tensor in network.fixed().values()),
        **({} if network.trains_body else {"trained_params": params}),
        "grid": str(network.grid) if isinstance(network, Backbone) else None,
        "image_size": list(network.input.size),
    }


def cost_of(
    method: Method,
    *,
    epochs: int,
    steps_per_epoch: int,
    images_per_epoch: int,
    epochs_done: int,
    spent: Spent | None = None,
) -> dict[str, Any]:
    """Tokens kept, and MACs of forward passes: per image (or clip) at the end of training, and the teachers' in total.

    What a step computes, and in `..._full_per_image` whole passes over every patch, which is what the student costs
    in use. Decoders are left out.

    Args:
        method: what was trained.
        epochs: of the whole training.
        steps_per_epoch: batches, at each of which the method is asked how many patches it keeps.
        images_per_epoch: images, or clips.
        epochs_done: of them, so far.
        spent: what the teacher's side has computed, where the method has counted it; otherwise its schedule tells.
    """
    passes = method.passes(1.0)
    cost: dict[str, Any] = {
        "student_gmacs_per_image": _gmacs([one for one in passes if one.role == "student"]),
        "student_gmacs_full_per_image": _gmacs([Pass("student", method.student)]),
    }
    teachers = [one for one in passes if one.role == "teacher"]
    if not teachers:
        return {"tokens": None if method.masked is None else _tokens(method, method.masked), "cost": cost}
    full = _gmacs([Pass("teacher", one.network.whole, times=one.times) for one in teachers])
    gmacs: dict[int | None, float] = {}

    def kept_at(progress: float) -> int | None:
        kept = method.kept_patches(progress)
        if kept not in gmacs:
            # Frozen networks that only rank patches are paid for as well.
            gmacs[kept] = _gmacs([one for one in method.passes(progress) if one.role != "student"])
        return kept

    steps, done, last = epochs * steps_per_epoch, epochs_done * steps_per_epoch, kept_at(1.0)
    if spent is None or not spent.inputs:
        in_all, so_far = tally(kept_at, steps), tally(kept_at, steps, done)
        total = sum(gmacs[k] * n for k, n in so_far.items()) / steps_per_epoch * images_per_epoch
        share = sum(gmacs[k] * n for k, n in in_all.items()) / (full * steps)
    else:
        total = spent.macs / 1e9
        share = total / (full * spent.inputs)
    return {
        "tokens": _tokens(method, teachers[0].network),
        "cost": {
            **cost,
            "teacher_gmacs_per_image": gmacs[last],
            "teacher_gmacs_full_per_image": full,
            "teacher_gmacs_total": total,
            "saved_fraction": round(1 - share, 6) + 0.0,  # + 0.0: no negative zero
        },
    }


def _tokens(method: Method, other: Network) -> dict[str, int] | None:
    """Patches that the masked network sees in the end, of all that it has; of another where none is masked."""
    network = method.masked or other
    if not isinstance(network, Backbone):
        return None
    return {"kept": method.kept_patches(1.0) or network.grid.count, "of": network.grid.count}


def _gmacs(passes: Sequence[Pass]) -> float:
    return sum(one.macs for one in passes) / 1e9


def speed_of(module: TrainingModule, batch_size: int, world: int) -> dict[str, float]:
    """Milliseconds per step in data, student and teacher, and images per second; warm-up steps left out."""
    if module.clock is None or not module.steps_timed:
        return {}
    totals, steps = module.clock.totals(), module.steps_timed
    data, teacher = totals.get("data", 0.0) / steps, totals.get("teacher", 0.0) / steps
    wall = totals["wall"] / steps
    return {
        "images_per_s": round(batch_size * world / wall * 1e3, 2),
        "step_ms": round(wall, 3),
        "data_ms": round(data, 3),
        "student_ms": round(wall - data - teacher, 3),
        "teacher_ms": round(teacher, 3),
        "teacher_ms_per_image": round(teacher / batch_size, 4),
    }


def teacher_of(method: Method, rows: Sequence[Mapping[str, str]], doubt: str | None) -> dict[str, Any]:
    """What is known of how the teacher fared under masks; nothing where it had none.

    Args:
        method: what was trained.
        rows: of metrics.csv.
        doubt: what was said about it.
    """
    agreement = [float(row[AGREEMENT]) for row in rows if AGREEMENT in row]
    if not agreement:
        return {} if doubt is None else {"warning": doubt}
    shown = {"agreement": agreement[-1], "lowest_agreement": min(agreement)}
    return {"masked_teacher": {**shown, **method.describe(), "warning": doubt}}


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    names = ("vitdistill", "torch", "torchvision", "timm", "lightning")
    return {name: version(name) for name in names}
