"""What `run.json` says about a run's networks, cost and speed."""

from collections.abc import Sequence
from typing import Any

from vitdistill.methods.method import Method, Pass
from vitdistill.models.backbone import Backbone
from vitdistill.models.macs import backbone_macs
from vitdistill.tokens.keep import tally
from vitdistill.training.module import TrainingModule


def describe(backbone: Backbone) -> dict[str, Any]:
    """Name, size and grid of a network."""
    return {
        "name": backbone.name,
        "params": sum(parameter.numel() for parameter in backbone.parameters()),
        "grid": str(backbone.grid),
        "image_size": list(backbone.image_size),
    }


def cost_of(
    method: Method, *, epochs: int, steps_per_epoch: int, images_per_epoch: int, epochs_done: int
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
    """
    cost: dict[str, Any] = {
        "student_gmacs_per_image": _gmacs(method.student_passes(1.0)),
        "student_gmacs_full_per_image": _gmacs([Pass(method.student)]),
    }
    passes = method.teacher_passes()
    if not passes:
        return {"tokens": None, "cost": cost}
    full = _gmacs([Pass(one.backbone, times=one.times) for one in passes])
    masks_teacher = getattr(method, "mask", "teacher") == "teacher"
    # Criteria that ask a network for its attention pay for its pass whenever something is masked.
    asked = _gmacs([Pass(backbone) for backbone in method.extra_passes()])

    def gmacs_keeping(kept: int | None) -> float:
        run = [one._replace(patches=kept) for one in passes] if masks_teacher else passes
        return _gmacs(run) + (asked if kept else 0.0)

    steps, done, last = epochs * steps_per_epoch, epochs_done * steps_per_epoch, method.kept_patches(1.0)
    in_all, so_far = tally(method.kept_patches, steps), tally(method.kept_patches, steps, done)
    gmacs = {kept: gmacs_keeping(kept) for kept in {*in_all, last}}
    teacher = passes[0].backbone
    patches = teacher.grid.count if masks_teacher else method.student.grid.count
    return {
        "tokens": {"kept": last or patches, "of": patches},
        "cost": {
            **cost,
            "teacher_gmacs_per_image": gmacs[last],
            "teacher_gmacs_full_per_image": full,
            "teacher_gmacs_total": sum(gmacs[k] * n for k, n in so_far.items()) / steps_per_epoch * images_per_epoch,
            # + 0.0: no negative zero
            "saved_fraction": round(1 - sum(gmacs[k] * n for k, n in in_all.items()) / (full * steps), 6) + 0.0,
        },
    }


def _gmacs(passes: Sequence[Pass]) -> float:
    total = 0
    for one in passes:
        macs = backbone_macs(one.backbone, one.patches, capture=one.capture)
        total += one.times * (macs.total if one.embeds else macs.total - macs.patch_embed)
    return total / 1e9


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


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    names = ("vitdistill", "torch", "torchvision", "timm", "lightning")
    return {name: version(name) for name in names}
