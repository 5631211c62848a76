"""Small Vision Transformers out of big ones.

Three depths, each built on the next:

- verbs: `vitdistill.maskedkd(student=..., teacher=..., data=..., out=...)`, the same as on the command line;
- methods: `vitdistill.MaskedKD(student, teacher, keep=0.5)`, a plain `nn.Module` for your own loop;
- functions of tensors: `vitdistill.tokens`, `vitdistill.losses`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitdistill.verbs.table import VERBS, function_of, module_of

# Name -> where it lives; imported on first use, so that `vitdistill --help` need not load torch.
_LAZY = {
    "MaskedKD": "vitdistill.methods.maskedkd",
    "TinyMIM": "vitdistill.methods.tinymim",
    "PixelDecoder": "vitdistill.methods.options",
    "MAE": "vitdistill.methods.mae",
    "G2SD": "vitdistill.methods.g2sd",
    "DINO": "vitdistill.methods.dino",
    "DinoHead": "vitdistill.methods.options",
    "MultiCrop": "vitdistill.data.images.views",
    "VideoMAE": "vitdistill.methods.videomae",
    "MVD": "vitdistill.methods.mvd",
    "FeatureDecoder": "vitdistill.methods.options",
    "MaskedAutoencoder": "vitdistill.models.autoencoder",
    "MaskedModelling": "vitdistill.methods.masked_modelling",
    "Supervised": "vitdistill.methods.supervised",
    "Task": "vitdistill.tasks.task",
    "Classification": "vitdistill.tasks.classification",
    "Actions": "vitdistill.tasks.actions",
    "ActionFiles": "vitdistill.data.actions.files",
    "Boxes": "vitdistill.tasks.boxes",
    "BoxFiles": "vitdistill.data.boxes.files",
    "Segmentation": "vitdistill.tasks.segmentation",
    "SegmentFiles": "vitdistill.data.segments.files",
    "SegmentTest": "vitdistill.data.segments.files",
    "Teacher": "vitdistill.models.teacher",
    "Method": "vitdistill.methods.method",
    "Distillation": "vitdistill.methods.distillation",
    "Lesson": "vitdistill.methods.distillation",
    "Term": "vitdistill.methods.terms.term",
    "Criterion": "vitdistill.methods.selection.criterion",
    "Augment": "vitdistill.data.images.augment",
    "Optim": "vitdistill.training.settings",
    "Loader": "vitdistill.training.settings",
    "build": "vitdistill.models.build",
    "UserError": "vitdistill.errors",
    "read_batch": "vitdistill.evaluation.batches",
    "MaskedAccuracy": "vitdistill.evaluation.masked",
    "cls_attention": "vitdistill.tokens.saliency",
    "top_k": "vitdistill.tokens.select",
    **{function_of(verb): module_of(verb) for verb in VERBS},
}
__all__ = sorted(_LAZY)

if TYPE_CHECKING:
    from vitdistill.data.actions.files import ActionFiles
    from vitdistill.data.boxes.files import BoxFiles
    from vitdistill.data.images.augment import Augment
    from vitdistill.data.images.views import MultiCrop
    from vitdistill.data.segments.files import SegmentFiles, SegmentTest
    from vitdistill.errors import UserError
    from vitdistill.evaluation.batches import read_batch
    from vitdistill.evaluation.masked import MaskedAccuracy
    from vitdistill.methods.dino import DINO
    from vitdistill.methods.distillation import Distillation, Lesson
    from vitdistill.methods.g2sd import G2SD
    from vitdistill.methods.mae import MAE
    from vitdistill.methods.masked_modelling import MaskedModelling
    from vitdistill.methods.maskedkd import MaskedKD
    from vitdistill.methods.method import Method
    from vitdistill.methods.mvd import MVD
    from vitdistill.methods.options import DinoHead, FeatureDecoder, PixelDecoder
    from vitdistill.methods.selection.criterion import Criterion
    from vitdistill.methods.supervised import Supervised
    from vitdistill.methods.terms.term import Term
    from vitdistill.methods.tinymim import TinyMIM
    from vitdistill.methods.videomae import VideoMAE
    from vitdistill.models.autoencoder import MaskedAutoencoder
    from vitdistill.models.build import build
    from vitdistill.models.teacher import Teacher
    from vitdistill.tasks.actions import Actions
    from vitdistill.tasks.boxes import Boxes
    from vitdistill.tasks.classification import Classification
    from vitdistill.tasks.segmentation import Segmentation
    from vitdistill.tasks.task import Task
    from vitdistill.tokens.saliency import cls_attention
    from vitdistill.tokens.select import top_k
    from vitdistill.training.settings import Loader, Optim
    from vitdistill.verbs.dino import dino
    from vitdistill.verbs.embed import embed
    from vitdistill.verbs.finetune import finetune
    from vitdistill.verbs.g2sd import g2sd
    from vitdistill.verbs.knn import knn
    from vitdistill.verbs.mae import mae
    from vitdistill.verbs.maskedkd import maskedkd
    from vitdistill.verbs.mvd import mvd
    from vitdistill.verbs.predict import predict
    from vitdistill.verbs.probe import probe
    from vitdistill.verbs.robustness import robustness
    from vitdistill.verbs.supervised import supervised
    from vitdistill.verbs.tinymim import tinymim
    from vitdistill.verbs.videomae import videomae


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vitdistill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
