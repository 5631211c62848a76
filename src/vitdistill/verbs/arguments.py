"""Options that several verbs share, each declared once. On the command line every field stands by itself (`--epochs`).

A verb takes a bundle as one argument (`student: Student`). Defaults that differ in a verb are keywords of its
decorator: `@trains(epochs=800)`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from vitdistill.data.boxes.files import BoxFiles
from vitdistill.data.images.augment import Augment
from vitdistill.data.segments.files import SegmentFiles
from vitdistill.files import check_path
from vitdistill.methods.options import DropPath
from vitdistill.methods.pipelining import DeviceName, Parts
from vitdistill.models.names import check_model
from vitdistill.models.presets import BUNDLED
from vitdistill.tasks import DistilledTask
from vitdistill.training.loggers import DEFAULT, check_loggers
from vitdistill.training.settings import Loader, Optim

if TYPE_CHECKING:
    import torch

Model = Annotated[Union[str, "torch.nn.Module"], check_model]  # torch is not imported here
Data = Union[str, "Any"]  # the quotes hide it from the command line: objects can be given in Python only
File = Annotated[str, check_path]
Sampling = Literal["dense", "uniform"]
Positions = Literal["sincos", "learned"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Flat:
    """A bundle of options whose fields stand by themselves on the command line."""


@dataclass(frozen=True, kw_only=True)
class Training(Flat):
    """What every training verb takes."""

    data: Data
    """folder with train/ and val/ (one folder per class), lists of videos, a csv of labels, a container
    (torchvision:CIFAR10, hf:owner/name, shards:train-{000..146}.tar, parquet files), a bundled source (digits,
    moving_digits, moving_digits:motion, sounds, scenes), or (in Python) a map-style torch Dataset or a pair
    (train, val) of them."""
    out: str
    """run directory to make."""
    epochs: int = 300
    """passes over the training set."""
    batch_size: int = 128
    """images or clips per device and step."""
    augment: Augment = Augment()
    """augmentation."""
    optim: Optim = Optim()
    """optimizer and schedule."""
    loader: Loader = Loader()
    """reading data."""
    precision: str = "auto"
    """auto, 32-true, bf16-mixed, 16-mixed."""
    compile: bool = False
    """torch.compile the blocks of student and teachers."""
    seed: int = 0
    """of initialisation, masks, data order, augmentation and everything else random."""
    resume: bool = False
    """continue the run in `out`."""
    overwrite: bool = False
    """replace the run in `out`."""
    loggers: Annotated[str, check_loggers] = DEFAULT
    """where the numbers of every epoch go besides metrics.csv: tensorboard, wandb, mlflow, several of them
    (tensorboard,wandb), or csv for nowhere else. Projects and servers are those of the libraries' own variables:
    WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME."""
    snapshots: int | None = None
    """keep the student's weights at so many points of the training, its start and end included, closer together early;
    `vitdistill trajectory` looks at them."""
    trainer: dict[str, Any] | None = None
    """further arguments of lightning.Trainer, e.g. `--trainer.devices 8 --trainer.strategy fsdp`."""


@dataclass(frozen=True, kw_only=True)
class Labels(Flat):
    """What labels mean."""

    task: DistilledTask = "classification"
    """what labels mean: a class for each sample, boxes around the objects in each image (boxes), or a class for each
    pixel (segmentation). The defaults of epochs, batch_size, augment, optim and drop_path are those of the task and its
    data: --help beside --task and --data shows them."""
    boxes: BoxFiles = BoxFiles()
    """of the task boxes, the annotations and how images are resized."""
    segments: SegmentFiles = SegmentFiles()
    """of the task segmentation, what masks mean, how images are scaled, and the head of a ViT."""


@dataclass(frozen=True, kw_only=True)
class Student(Flat):
    """The network to train."""

    student: Model
    """network to train: timm name, name@weights-file, hf-hub:owner/model, run directory, or (in Python) a module."""
    student_args: dict[str, Any] | None = None
    """further arguments of the student's architecture, e.g. `--student_args.depth 6`."""
    image_size: int | None = None
    """the student's input size in pixels; by default the data's or the network's own."""


@dataclass(frozen=True, kw_only=True)
class Regularised(Student):
    """A student with stochastic depth."""

    drop_path: DropPath = 0.1
    """stochastic depth rate of the student's last block; earlier blocks get less. A module object keeps its own."""


@dataclass(frozen=True, kw_only=True)
class Published(Regularised):
    """A student that may start from weights that timm publishes."""

    pretrained: bool = False
    """start the student from timm's pretrained weights (downloads them)."""


@dataclass(frozen=True, kw_only=True)
class Clips(Flat):
    """How clips are taken from videos."""

    frames: int | None = None
    """of a clip, for networks over clips; by default the network's own, else the data's or 16."""
    stride: int | None = None
    """of videos: frames from one frame of a dense clip to the next; by default 4, and 1 for bundled clips."""
    sampling: Sampling = "dense"
    """of videos: dense takes a window of frames x stride, uniform one frame of each of so many equal parts."""


@dataclass(frozen=True, kw_only=True)
class Format(Flat):
    """How frozen networks compute."""

    teacher_dtype: Dtype = "auto"
    """auto computes frozen networks in bfloat16 on GPUs and CPUs with such instructions, and as their weights are
    elsewhere."""


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(Format):
    """The one teacher of a verb, besides its name."""

    teacher_args: dict[str, Any] | None = None
    """further arguments of the teacher's architecture, e.g. `--teacher_args.img_size 384`."""


@dataclass(frozen=True, kw_only=True)
class Pipelining(Flat):
    """Student and teacher at once."""

    pipeline: Parts = 1
    """parts of a training step's batch, so that the teacher is on one while the student is on the next: beside it on
    the CPU, or on a GPU of its own. Losses and gradients stay those of the whole batch; 1 leaves it whole."""
    teacher_device: DeviceName | None = None
    """where frozen networks compute: cuda:1 beside a student on cuda:0, with `--trainer.devices 1`; none for where the
    student does."""


@dataclass(frozen=True, kw_only=True)
class ImageAndVideoTeacher(Flat):
    """The two kinds of teachers of MVD."""

    image_teacher: Model | None = None
    """pre-trained image ViT (vit_base_patch16_224.mae, a run of `mae`), which sees the first frame of each tubelet."""
    image_teacher_args: dict[str, Any] | None = None
    """further arguments of the image teacher's architecture, e.g. `--image_teacher_args.img_size 224`."""
    video_teacher: Model | None = None
    """pre-trained video ViT (a VideoMAE file, a run of `videomae`), which sees the whole clip."""
    video_teacher_args: dict[str, Any] | None = None
    """further arguments of the video teacher's architecture."""


def masked_modelling(warmup_epochs: float, min_lr: float = 0.0) -> Optim:
    """The optimizer settings of masked modelling: MAE, Table 8; TinyMIM, VideoMAE and MVD take the same."""
    return Optim(lr=1.5e-4, lr_batch=256, betas=(0.9, 0.95), warmup_epochs=warmup_epochs, warmup_lr=0.0, min_lr=min_lr)


def is_fresh(spec: Model, pretrained: bool = False) -> bool:
    """Whether a student begins with random weights."""
    return isinstance(spec, str) and not (pretrained or "@" in spec or spec in BUNDLED or Path(spec).is_dir())
