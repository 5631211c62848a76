"""`vitdistill supervised`: train without a teacher."""

from typing import Any, Literal

from vitdistill.data.images.recipes import Augment
from vitdistill.training.settings import Loader, Optim
from vitdistill.verbs.common import Model, make_student, settings_of, start


def supervised(
    *,
    student: Model,
    data: str,
    out: str,
    epochs: int = 300,
    batch_size: int = 128,
    image_size: int | None = None,
    stride: int | None = None,
    sampling: Literal["dense", "uniform"] = "dense",
    drop_path: float = 0.1,
    pretrained: bool = False,
    student_args: dict[str, Any] | None = None,
    augment: Augment = Augment(),
    optim: Optim = Optim(),
    loader: Loader = Loader(),
    precision: str = "auto",
    compile: bool = False,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    trainer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a network on labels alone: a baseline, or a teacher of your own.

    Args:
        student: timm name, name@weights-file, hf-hub:owner/model, run directory, or (in Python) a module.
        data: folder with train/ and val/ (one folder per class), lists of videos, or a bundled source: digits,
            moving_digits, moving_digits:motion.
        out: run directory to make.
        epochs: passes over the training images.
        batch_size: images per device and step.
        image_size: input size in pixels; by default the data's or the network's own.
        stride: of videos: frames from one frame of a dense clip to the next; by default 4, and 1 for bundled clips.
        sampling: of videos: dense takes a window of frames x stride, uniform one frame of each of so many equal parts.
        drop_path: stochastic depth rate of the last block; earlier blocks get less. A module object keeps its own.
        pretrained: start from timm's pretrained weights (downloads them).
        student_args: further arguments of the architecture, e.g. `--student_args.depth 6`.
        augment: augmentation.
        optim: optimizer and schedule.
        loader: reading data.
        precision: auto, 32-true, bf16-mixed, 16-mixed.
        compile: torch.compile the blocks.
        seed: of initialisation, data order, augmentation and everything else random.
        resume: continue the run in `out`.
        overwrite: replace the run in `out`.
        trainer: further arguments of lightning.Trainer, e.g. `--trainer.devices 8`.

    Returns:
        The content of the run's run.json.
    """
    arguments = dict(locals())
    run, source = start("supervised", arguments)
    from vitdistill.methods.supervised import Supervised
    from vitdistill.tasks.classification import Classification
    from vitdistill.training.train import train

    network = make_student(
        student, source, args=student_args, image_size=image_size, pretrained=pretrained, drop_path=drop_path
    )
    method = Supervised(network, task=Classification(len(source.classes), augment.resolved().smoothing))
    return train(method, source, run, settings_of(arguments), resume=resume)
