"""The verbs: one function of the same name in one module of `vitdistill.verbs` each.

To add one: write its file, and one line here.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from vitdistill.errors import UserError


class Verb(NamedTuple):
    """A verb of the command line.

    Attributes:
        summary: what `vitdistill --help` says of it.
        trains: whether it makes a run directory, so that it can be resumed, and be a step of a chain.
    """

    summary: str
    trains: bool = False


VERBS: dict[str, Verb] = {
    "maskedkd": Verb("Distil a teacher that sees only the patches to which the student attends.", trains=True),
    "supervised": Verb("Train a network on labels alone: a baseline, or a teacher of your own.", trains=True),
    "tinymim": Verb("Distil a masked-image-modelling teacher, without labels, through token relations.", trains=True),
    "mae": Verb("Pre-train a teacher, without labels, by predicting masked pixels.", trains=True),
    "videomae": Verb("Pre-train a video teacher, without labels, by predicting masked pixels.", trains=True),
    "mvd": Verb("Distil image and video teachers into a video student that sees a tenth of each clip.", trains=True),
    "finetune": Verb("Fine-tune a pre-trained network on labels: classes, or actions of people (AVA).", trains=True),
    "probe": Verb("Linear probe: how well a linear classifier does on frozen features."),
    "knn": Verb("k-nearest-neighbour accuracy of frozen features."),
    "chain": Verb("Several runs that build on each other, from one recipe; resumes in the middle."),
    "resume": Verb("Continue an interrupted run, exactly where it was."),
    "evaluate": Verb("Accuracy of a run or a model; frame mAP of a run that tells actions (AVA)."),
    "predict": Verb("Classes and probabilities of images and videos, as a table, csv or json."),
    "embed": Verb("Features of images and videos, as npy or parquet."),
    "export": Verb("A run's student as safetensors for timm, or as ONNX, checked."),
    "check": Verb("Decode all of a data set once: what cannot be read and why, sizes, classes, repeats."),
    "cost": Verb("What a distillation will cost, before spending anything."),
    "bench": Verb("Measured speed and memory of teacher and student on this machine."),
    "masks": Verb("Pictures of what the teacher saw."),
    "similarity": Verb("How alike the frames of a clip are to teachers and students."),
    "report": Verb("One self-contained HTML page over one or more runs."),
    "demo": Verb("A complete small study on real handwritten digits, offline, in a few minutes."),
}

# Earlier verbs, and what does their work now.
MOVED = {
    "detect": (
        "`vitdistill finetune --task actions`, with --data for --videos and --actions.val for --val; the former "
        "defaults of --epochs, --batch_size, --drop_path and --optim are in recipes/mvd/ava_vit_b.yaml"
    ),
    "frame_map": "`vitdistill evaluate`, with --data for --videos and --actions.val for --val",
}
TRAINING = tuple(name for name, verb in VERBS.items() if verb.trains)


def module_of(name: str) -> str:
    """The module that holds a verb's function."""
    return f"vitdistill.verbs.{name}"


def verb(name: str) -> Callable[..., Any]:
    """The function behind a verb; imports its module.

    Raises:
        UserError: for an earlier verb, naming what does its work now.
    """
    if name in MOVED:
        raise UserError(f"`{name}` is no verb any more", remedy=f"Use {MOVED[name]}")
    return getattr(import_module(module_of(name)), name)
