"""What the training verbs share: from arguments to a prepared run, a student and a teacher."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, refuse_without_effect
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.network import Network
from vitdistill.models.presets import BUNDLED
from vitdistill.models.surgery.drop_path import set_drop_path
from vitdistill.models.teacher import Teacher
from vitdistill.training.loggers import logger_names
from vitdistill.training.precision import cpu_has_bf16, has_bf16
from vitdistill.training.settings import Optim, Settings
from vitdistill.verbs.arguments import Model


def settings_of(arguments: dict[str, Any], optim_default: Optim = Optim()) -> Settings:
    """The training engine's settings out of a training verb's arguments."""
    sampling = arguments.get("sampling", "dense")
    names = ("epochs", "batch_size", "seed", "augment", "optim", "loader", "precision", "compile")
    return Settings(
        **{name: arguments[name] for name in names},
        trainer=arguments["trainer"] or {},
        loggers=logger_names(arguments["loggers"]),
        optim_default=optim_default,
        stride=arguments.get("stride"),
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
) -> Network:
    """The student with a head for the data's classes (or `classes`), at the data's or the given image size.

    Raises:
        UserError: when a module object has another number of classes than the data.
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
    student = build(
        spec,
        args=options,
        num_classes=classes,
        image_size=image_size or source.image_size,
        pretrained=pretrained,
    )
    if isinstance(spec, str) and not options.get("drop_path_rate"):
        set_drop_path(student, 0.0)  # some architectures (Swin) have a default above 0
    if classes:
        _check_classes("student", student.num_classes, student.name, source)
    return student


def make_teacher(
    spec: Model,
    source: DataSource | None,
    student: Network,
    *,
    args: dict[str, Any] | None = None,
    text_embeddings: str | None = None,
    dtype: str = "auto",
    trainer: dict[str, Any] | None = None,
) -> Teacher:
    """A frozen teacher that takes the student's images.

    Raises:
        UserError: when its class count differs from the data's, if a source is given.
    """
    network = build(spec, args=args, pretrained=True)
    width = network.width if isinstance(network, Backbone) else 0
    teacher = Teacher.of(
        network, student, dtype=_dtype(dtype, trainer, width), text_embeddings=_embeddings(text_embeddings)
    )
    if source is not None:
        _check_classes("teacher", teacher.num_classes, network.name, source)
    return teacher


def _check_classes(role: str, classes: int, name: str, source: DataSource) -> None:
    if classes != len(source.classes):
        raise UserError(
            f"The {role} must have the classes of the data; {name} has {classes} and {source.name} has "
            f"{len(source.classes)}",
            remedy=f"Fine-tune the {role} on this data first, or choose another" if role == "teacher" else "",
        )


def _embeddings(path: str | None) -> torch.Tensor | None:
    if path is None:
        return None
    from vitdistill.models.weights.read import read_weights

    tensors = read_weights(Path(path))
    if len(tensors) != 1 or next(iter(tensors.values())).ndim != 2:
        raise UserError("The text embeddings file must hold one tensor of shape (classes, channels)", path)
    return next(iter(tensors.values()))


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
