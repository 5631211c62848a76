"""What the training verbs share: from arguments to a prepared run, a student and a teacher."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitdistill.data.images.augment import Augment
from vitdistill.data.open import open_source
from vitdistill.data.order import seed_everything_at
from vitdistill.data.source import DataSource
from vitdistill.data.transforms import DENSE, clip_sampling
from vitdistill.errors import UserError, refuse_unused
from vitdistill.evaluation.loading import run_config
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.presets import BUNDLED
from vitdistill.models.surgery.drop_path import set_drop_path
from vitdistill.models.teacher import Teacher
from vitdistill.runs.directory import RunDirectory, plain
from vitdistill.training.precision import cpu_has_bf16, has_bf16
from vitdistill.training.settings import Optim, Settings

Model = str | nn.Module
# Arguments that are groups of options: what each is in Python.
GROUPS = {
    "augment": "Augment",
    "optim": "Optim",
    "loader": "Loader",
    "decoder": "FeatureDecoder",
    "pixel_decoder": "PixelDecoder",
}


def start(verb: str, arguments: dict[str, Any], *, labels: bool = True) -> tuple[RunDirectory, DataSource]:
    """Prepare the run directory and open the data, before anything expensive.

    Args:
        verb: name of the calling verb.
        arguments: all of its arguments, `data`, `out`, `seed`, `resume` and `overwrite` among them.
        labels: False where training ignores labels: any folder of images will do, and what needs labels is refused.
    """
    for name, value in arguments.items():
        if name in GROUPS and isinstance(value, Mapping):
            raise UserError(f"{name} must be a vitdistill.{GROUPS[name]}", f"a {type(value).__name__}")
    if not labels:
        _refuse_what_needs_labels(arguments["augment"])
    from vitdistill.cli import verb as verb_of

    source = open_source(arguments["data"], labels=labels)
    config = {key: plain(_name(value)) for key, value in arguments.items() if key not in ("resume", "overwrite")}
    run = RunDirectory.prepare(
        arguments["out"], verb, config, resume=arguments["resume"], overwrite=arguments["overwrite"]
    )
    arguments["optim_default"] = signature(verb_of(verb)).parameters["optim"].default
    seed_everything_at(arguments["seed"], "initialisation")
    return run, source


def inherited_sampling(model: Model, stride: int | None, sampling: str | None) -> dict[str, Any]:
    """How clips are taken for a network that goes on training: as given, else as in the run that it comes from."""
    config = run_config(Path(model)) if isinstance(model, str) else {}
    sampling = sampling or config.get("sampling") or "dense"
    if stride is None and sampling == "dense":
        stride = config.get("stride")
    return {"stride": stride, "sampling": sampling}


def settings_of(arguments: dict[str, Any], student: Backbone, source: DataSource) -> Settings:
    """The training engine's settings out of a training verb's arguments.

    Raises:
        UserError: when a network over clips is given images, or one over images options of clips.
    """
    stride, kind = arguments.get("stride"), arguments.get("sampling", "dense")
    refuse_unused(stride=(stride is not None and kind == "uniform", DENSE))
    sampling = clip_sampling(student, source, stride, kind)
    if sampling is None:
        needs = "networks over clips"
        refuse_unused(stride=(stride is not None, needs), sampling=(kind != "dense", needs))
    names = ("epochs", "batch_size", "seed", "augment", "optim", "loader", "precision", "compile")
    return Settings(
        **{name: arguments[name] for name in names},
        optim_default=arguments.get("optim_default", Optim()),
        image_size=student.image_size,
        trainer=arguments["trainer"] or {},
        sampling=sampling,
    )


def _name(value: Any) -> Any:
    """Objects given in Python appear in the configuration by their class."""
    if isinstance(value, nn.Module):
        return f"<{type(value).__name__}>"
    return value.name if isinstance(value, DataSource) else value


def _refuse_what_needs_labels(augment: Augment) -> None:
    names = ("mixup", "cutmix", "smoothing", "mixup_prob")
    if augment.mixes:
        raise UserError(
            "Only labelled images can be mixed",
            f"the recipe {augment.recipe!r}",
            "Choose --augment.recipe pretrain, or turn it off with --augment.mixup 0 --augment.cutmix 0",
        )
    refuse_unused(**{f"augment.{name}": (bool(getattr(augment, name)), "labels") for name in names})


def make_student(
    spec: Model,
    source: DataSource,
    *,
    args: dict[str, Any] | None,
    image_size: int | None,
    pretrained: bool,
    drop_path: float,
    classes: int | None = None,
) -> Backbone:
    """The student with a head for the data's classes (or `classes`), at the data's or the given image size.

    Raises:
        UserError: when a module object has another number of classes than the data.
    """
    options = dict(args or {})
    if isinstance(spec, nn.Module):
        goes_with = "a module object brings its own"
        refuse_unused(
            student_args=(bool(args), goes_with),
            image_size=(image_size is not None, goes_with),
            pretrained=(pretrained, goes_with),
        )
    elif pretrained:
        loaded = "@" in spec or spec in BUNDLED or Path(spec).is_dir()
        refuse_unused(pretrained=(loaded, "a weights file or run brings its own weights"))
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
    source: DataSource,
    student: Backbone,
    *,
    args: dict[str, Any] | None = None,
    text_embeddings: str | None = None,
    dtype: str = "auto",
    trainer: dict[str, Any] | None = None,
    check_classes: bool = True,
) -> Teacher:
    """A frozen teacher that takes the student's images.

    Raises:
        UserError: when its class count differs from the data's.
    """
    backbone = build(spec, args=args, pretrained=True)
    embeddings = _embeddings(text_embeddings)
    teacher = Teacher(
        backbone,
        mean=student.mean,
        std=student.std,
        dtype=_dtype(dtype, trainer, backbone.width if backbone.blocks else 0),
        text_embeddings=embeddings,
    )
    if check_classes:
        _check_classes("teacher", teacher.num_classes, backbone.name, source)
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
