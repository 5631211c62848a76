"""The verbs: one function of the same name in one module of `vitdistill.verbs` each, with _ for a hyphen.

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
    "dino": Verb("Pre-train a ViT, without labels, by its own average, which may see few patches.", trains=True),
    "g2sd": Verb("Distil an MAE and its decoder into a small one, without labels: G2SD's first stage.", trains=True),
    "videomae": Verb("Pre-train a video teacher, without labels, by predicting masked pixels.", trains=True),
    "mvd": Verb("Distil image and video teachers into a video student that sees a tenth of each clip.", trains=True),
    "finetune": Verb("Fine-tune a pre-trained network on labels: classes, or actions of people (AVA).", trains=True),
    "resume": Verb("Continue an interrupted run, exactly where it was."),
    "chain": Verb("Several runs that build on each other, from one recipe; resumes in the middle."),
    "sweep": Verb("A grid of settings and seeds from one file, several at once; resumes, ends in one report."),
    "evaluate": Verb("Accuracy of a run or a model, also per class; frame mAP of one that tells actions (AVA)."),
    "robustness": Verb("A classifier on ImageNet-A, -R, -C, -Sketch, -V2, -ReaL; goes on where it was interrupted."),
    "knn": Verb("k-nearest-neighbour accuracy of frozen features."),
    "probe": Verb("Linear probe: how well a linear classifier does on frozen features; --out makes a model of it."),
    "predict": Verb("Classes and probabilities of images and videos, as a table, csv or json."),
    "embed": Verb("Features of images and videos, as npy or parquet."),
    "export": Verb("A run's student as safetensors for timm, as ONNX, or as a folder for the hub, checked."),
    "check": Verb("Decode all of a data set once: what cannot be read and why, sizes, classes, repeats."),
    "cost": Verb("What a distillation will cost, before spending anything."),
    "text-embeddings": Verb("Class embeddings out of a CLIP text model, for --teacher_text."),
    "bench": Verb("Measured speed and memory of teacher and student on this machine."),
    "report": Verb("One self-contained HTML page over one or more runs."),
    "masks": Verb("Pictures of what the teacher saw."),
    "trajectory": Verb("How masks, and the teacher under them, changed over a training with --snapshots."),
    "similarity": Verb("How alike the frames of a clip are to teachers and students."),
    "demo": Verb("A complete small study on real handwritten digits, offline, in a few minutes."),
}

# How `vitdistill --help` lists them.
GROUPS = {
    "train": (
        *("maskedkd", "supervised", "tinymim", "mae", "dino", "g2sd", "videomae", "mvd", "finetune"),
        *("resume", "chain", "sweep"),
    ),
    "judge": ("evaluate", "robustness", "knn", "probe"),
    "use": ("predict", "embed", "export"),
    "beforehand": ("check", "cost", "text-embeddings", "bench"),
    "afterwards": ("report", "masks", "trajectory", "similarity"),
    "to begin with": ("demo",),
}

# A command line of each, behind its name, for its own help.
EXAMPLES = {
    "maskedkd": "--student deit_tiny_patch16_224 --teacher runs/big --data /data/pets --out runs/small",
    "supervised": "--student deit_tiny_patch16_224 --pretrained --data /data/pets --out runs/big",
    "tinymim": "--student deit_tiny_patch16_224 --teacher vit_base_patch16_224.mae --data photos --out runs/s",
    "mae": "--student deit_tiny_patch16_224 --data photos --out runs/mae",
    "g2sd": "--student deit_tiny_patch16_224 --teacher runs/mae --data photos --out runs/g2sd",
    "dino": "--student vit_small_patch16_224.dino --keep 130 --data photos --out runs/dino",
    "videomae": "--student video_vit_small_patch16_224 --data videos --out runs/videomae",
    "mvd": "--student video_vit_small_patch16_224 --video_teacher runs/videomae --data videos --out runs/v",
    "finetune": "runs/s --data /data/pets --out runs/tuned",
    "resume": "runs/small",
    "chain": "recipes/tinymim/chain.yaml --data /data/imagenet --out runs/chain",
    "sweep": "recipes/digits/sweep.yaml --out runs/sweep --jobs 2",
    "evaluate": "runs/small --per_class",
    "robustness": "runs/small --sets imagenet-a:/data/imagenet-a,imagenet-c:/data/imagenet-c",
    "knn": "runs/s --data /data/pets",
    "probe": "runs/s --data /data/pets --out runs/teacher",
    "predict": "runs/small photos/ --out predictions.csv",
    "embed": "runs/small photos/ --out features.npy",
    "export": "runs/small --format hub --out exported/small",
    "check": "/data/pets --out problems.csv",
    "cost": "--teacher deit_base_patch16_224 --student deit_small_patch16_224 --keep 98 --epochs 300",
    "text-embeddings": "models/clip-vit-base-patch16 --data /data/pets --out pets_text.safetensors",
    "bench": "--teacher deit_base_patch16_224 --student deit_small_patch16_224 --keep 0.5",
    "report": "runs/small runs/big --out report.html",
    "masks": "runs/small",
    "trajectory": "runs/small --criterion student,teacher,random",
    "similarity": "runs/v",
    "demo": "tinymim",
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


def function_of(name: str) -> str:
    """What a verb is called in Python, where names have no hyphens."""
    return name.replace("-", "_")


def module_of(name: str) -> str:
    """The module that holds a verb's function."""
    return f"vitdistill.verbs.{function_of(name)}"


def verb(name: str) -> Callable[..., Any]:
    """The function behind a verb; imports its module.

    Raises:
        UserError: for an earlier verb, naming what does its work now.
    """
    if name in MOVED:
        raise UserError(f"`{name}` is no verb any more", remedy=f"Use {MOVED[name]}")
    return getattr(import_module(module_of(name)), function_of(name))
