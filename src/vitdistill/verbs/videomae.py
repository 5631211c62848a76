"""`vitdistill videomae`: pre-train a video teacher by masked modelling of pixels."""

from typing import TYPE_CHECKING, Any

from vitdistill.data.images.augment import Augment
from vitdistill.verbs.arguments import Clips, Regularised, masked_modelling
from vitdistill.verbs.job import Job, trains

if TYPE_CHECKING:
    from vitdistill.methods.method import Method


@trains(
    Clips,
    labels=False,
    epochs=800,
    batch_size=32,
    drop_path=0.0,
    augment=Augment(recipe="pretrain"),
    optim=masked_modelling(warmup_epochs=40, min_lr=1e-5),
)
def videomae(job: Job, *, student: Regularised, **options: Any) -> "Method":
    """Pre-train a video ViT without labels by predicting the pixels of masked tubelets (VideoMAE).

    Args:
        student: encoder to train: video_vit_{small,base,large,huge}_patch16_224, name@weights-file, or run directory.
        data: folder of videos (labels are not needed), or a bundled source: moving_digits.
        drop_path: stochastic depth rate of the encoder's and the decoder's last block.
        augment: augmentation; clips are cropped at several scales and never flipped or recoloured in pre-training.

    Returns:
        The content of the run's run.json.
    """
    from vitdistill.methods.videomae import VideoMAE

    encoder = job.video_student(student, positions=options["positions"])
    return VideoMAE(encoder, drop_path=student.drop_path, **options)
