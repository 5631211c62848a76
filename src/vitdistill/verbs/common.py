"""What the training verbs share: from arguments to a prepared run, a student and a teacher."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitdistill.data.images.augment import Augment
from vitdistill.data.samples import ViewOptions
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, refuse_without_effect
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.classes import class_order, compare, published_classes
from vitdistill.models.families.linear_only import FrozenBody
from vitdistill.models.merged import Merged
from vitdistill.models.names import HUBS, OURS
from vitdistill.models.network import Network, to_its_task
from vitdistill.models.presets import BUNDLED, PRESETS
from vitdistill.models.record import record_of
from vitdistill.models.surgery.classes import match_head, renew_head, starts_trained
from vitdistill.models.surgery.drop_path import set_drop_path
from vitdistill.models.teacher import Teacher
from vitdistill.models.weights.text import read_text_embeddings
from vitdistill.training.loggers import logger_names
from vitdistill.training.precision import cpu_has_bf16, has_bf16
from vitdistill.training.settings import Optim, Settings
from vitdistill.verbs.arguments import Model, is_fresh


def settings_of(arguments: dict[str, Any], optim_default: Optim = Optim()) -> Settings:
    """The training engine's settings out of a training verb's arguments."""
    sampling = arguments.get("sampling", "dense")
    names = ("epochs", "batch_size", "seed", "augment", "optim", "loader", "precision", "compile", "snapshots")
    return Settings(
        **{name: arguments[name] for name in names},
        trainer=arguments["trainer"] or {},
        loggers=logger_names(arguments["loggers"]),
        optim_default=optim_default,
        stride=arguments.get("stride"),
        several=arguments.get("views"),
        sampling=None if sampling == "dense" else sampling,  # dense says nothing, so it is no option given for images
    )


def make_student(
    spec: Model,
    source: DataSource,
    *,
    args: dict[str, Any] | None,
    image_size: int | None,
    pretrained: bool = False,
    drop_path: float = 0.0,
    classes: int | None = None,
    keeps: Callable[[Callable[[], Network]], bool] | None = None,
) -> Network:
    """The student with a head for the data's classes (or `classes`), at the data's or the given image size.

    A head that was loaded and that its task will replace by one of another kind stays as it is.

    Args:
        spec: as `build` takes it.
        source: the data.
        args: further arguments of the architecture.
        image_size: in pixels; None is the data's.
        pretrained: download weights for a bare name.
        drop_path: stochastic depth rate.
        classes: of the head; None is as many as the data has.
        keeps: whether the head of a network is one for the task, as `Task.keeps`; None is yes.

    Raises:
        UserError: when a module object has another number of classes than the data, or `args` ask for another.
    """
    options = dict(args or {})
    if isinstance(spec, nn.Module):
        given = {"student_args": args, "image_size": image_size, "pretrained": pretrained or None}
        refuse_without_effect(given, {}, given, "on a module object, which brings its own")
    elif pretrained:
        loaded = "@" in spec or spec in BUNDLED or Path(spec).is_dir()
        if loaded:
            raise UserError("--pretrained has no effect on a weights file or run, which brings its own weights", spec)
    if drop_path:
        options.setdefault("drop_path_rate", drop_path)
    classes = len(source.classes) if classes is None else classes
    refuse_classes(args, "student_args", classes)
    size, loaded = image_size or source.image_size, isinstance(spec, str) and (pretrained or not is_fresh(spec))
    sketch = partial(build, spec, args=options, image_size=size, meta=True)
    kept = not loaded or keeps is None or keeps(sketch)
    student = build(
        spec,
        args=options,
        num_classes=classes if kept else None,
        image_size=size,
        pretrained=pretrained,
    )
    if isinstance(student, FrozenBody):
        rule = "A linear-only student has a frozen body, which no other training changes"
        raise UserError(rule, spec if isinstance(spec, str) else student.name, "Give --linear_only true, or its body")
    if isinstance(spec, str) and not options.get("drop_path_rate"):
        set_drop_path(student, 0.0)  # some architectures (Swin) have a default above 0
    if classes and kept:
        if student.num_classes != classes:
            raise UserError(
                f"The student must have the classes of the data; {student.name} has {student.num_classes} and "
                f"{source.name} has {classes}"
            )
        if starts_trained(student, loaded=loaded):
            kind = match_head(student, source.classes, source.name, must_fit=student.reads_grid)
            if kind == "different":
                renew_head(student)
    return student


def refuse_kind(spec: Model, args: dict[str, Any] | None, task: str, source: DataSource) -> None:
    """Say that a student is of another kind than the task or the data, rather than which size it cannot take.

    Args:
        spec: as `build` takes it.
        args: further arguments of the architecture.
        task: the name of the task that it was to be trained for.
        source: the data.

    Raises:
        UserError: naming what it needs.
    """
    if not isinstance(spec, str):
        return
    sketch = build(spec, args=args, meta=True)
    if sketch.purpose and sketch.task != task:
        rule = f"--task {task} trains no network that {sketch.purpose}"
        raise UserError(rule, sketch.name, to_its_task(sketch))
    source.train.transform(sketch.input, ViewOptions(augment=Augment(recipe="none")), train=False)


def make_teacher(
    spec: Model,
    source: DataSource | None,
    student: Network,
    *,
    args: dict[str, Any] | None = None,
    text_embeddings: str | None = None,
    dtype: str = "auto",
    trainer: dict[str, Any] | None = None,
    check: Callable[[Teacher], object] | None = None,
    merge: int | str | None = None,
) -> Teacher:
    """A frozen teacher that takes the student's images.

    Args:
        spec: as `build` takes it.
        source: data whose classes it must have; None for any classes.
        student: the network to train.
        args: further arguments of the architecture.
        text_embeddings: file of a CLIP teacher with text embeddings, see `read_text_embeddings`.
        dtype: auto, float32, bfloat16 or float16.
        trainer: arguments of lightning.Trainer, which say where the teacher will run.
        check: refuses what its architecture alone shows to be of no use, before its weights are downloaded.
        merge: tokens that each of its blocks merges; None leaves it whole.

    Raises:
        UserError: when its classes are not the data's, if a source is given.
    """
    if source is not None and isinstance(spec, str) and text_embeddings is None:
        refuse_classes(args, "teacher_args")
    if isinstance(spec, str) and is_fresh(spec) and spec not in PRESETS and not spec.startswith((*OURS, *HUBS)):
        sketch = build(spec, args=args, meta=True)
        sketch = sketch if merge is None else Merged.over(sketch, merge)
        if text_embeddings is None and source is not None:
            record_of(sketch.net).classes = published_classes(sketch.net)
            if compare(sketch, source.classes, source.name).kind in ("different", "other count"):
                class_order(sketch, source.classes, source.name, role="teacher")
        if check is not None:
            check(Teacher.of(sketch, student))
    network = build(spec, args=args, pretrained=True)
    width = network.width if isinstance(network, Backbone) else 0
    network = network if merge is None else Merged.over(network, merge)
    text = None if text_embeddings is None else read_text_embeddings(Path(text_embeddings))
    teacher = Teacher.of(network, student, dtype=_dtype(dtype, trainer, width), text_embeddings=text)
    if source is not None:
        teacher.match_classes(source.classes, source.name)
    return teacher


def refuse_classes(args: dict[str, Any] | None, group: str, classes: int | None = None) -> None:
    """Refuse a number of classes that the data, or the weights of a trained classifier, say by themselves.

    Args:
        args: further arguments of an architecture.
        group: the option that they were given with.
        classes: what will be taken; None is what the weights have.

    Raises:
        UserError: when another number is given.
    """
    asked = (args or {}).get("num_classes", classes)
    if asked == classes:
        return
    why = f"would not be used: the classifier is for the {classes} classes of the data"
    if classes is None:
        why = "would replace the trained classifier by one with random weights"
    elif not classes:
        why = "has no effect in training without labels"
    raise UserError(f"--{group}.num_classes {why}", asked, "Leave it out")


# On a CPU with bfloat16 instructions a narrower teacher gains little or nothing from them.
WIDE_ENOUGH = 192


def _dtype(name: str, trainer: dict[str, Any] | None, width: int) -> torch.dtype | None:
    """ "auto" is bfloat16 on hardware that computes it, and the weights' own dtype elsewhere."""
    if name == "auto":
        on_cpu = not torch.cuda.is_available() and width >= WIDE_ENOUGH and cpu_has_bf16()
        return torch.bfloat16 if has_bf16(trainer) or on_cpu else None
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise UserError(f"teacher_dtype must be auto, {', '.join(dtypes)}", repr(name))
    return dtypes[name]
