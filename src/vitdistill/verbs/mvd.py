"""`vitdistill mvd`: distil image and video teachers into a video student by masked feature modelling."""

from typing import TYPE_CHECKING, Any

from vitdistill.data.images.augment import Augment
from vitdistill.verbs.arguments import Clips, Format, ImageAndVideoTeacher, Regularised, masked_modelling
from vitdistill.verbs.job import Job, trains
from vitdistill.verbs.needs import GIVEN, needs

if TYPE_CHECKING:
    from vitdistill.methods.method import Method


@trains(
    Clips,
    Format,
    labels=False,
    epochs=400,
    batch_size=32,
    augment=Augment(recipe="pretrain"),
    optim=masked_modelling(warmup_epochs=40, min_lr=1e-5),
    needs=(
        needs("mask_ratio mask masks_per_clip decoder pixel_weight bootstrap", per_token=False),
        needs("image_teacher_args image_weight", image_teacher=GIVEN),
        needs("video_teacher_args", video_teacher=GIVEN),
        needs("video_weight", video_teacher=GIVEN, bootstrap=GIVEN),
    ),
)
def mvd(
    job: Job, *, student: Regularised, teachers: ImageAndVideoTeacher, per_token: bool = False, **options: Any
) -> "Method":
    """Distil an image teacher, a video teacher, or both into a video student that sees a tenth of a clip (MVD).

    With images, an image teacher and an image student this is image masked feature modelling (Table 11).

    Args:
        student: video_vit_{small,base,large,huge}_patch16_224, name@weights-file, or run directory.
        data: folder of videos (labels are not needed) or images, or a bundled source: moving_digits, digits.
        per_token: match the teachers' features at every token of the whole clip through an MLP, without masking (the
            paper finds that worse).
        augment: augmentation; clips are cropped at several scales and never flipped or recoloured in pre-training.

    Returns:
        The content of the run's run.json.
    """
    from vitdistill.methods.mvd import MVD, per_token_distillation

    body = job.clip_or_image_student(student, images=teachers.video_teacher is None and bool(teachers.image_teacher))
    image, video = (
        None if spec is None else job.teacher(spec, body, args=args, check=lambda sketch: sketch.backbone)
        for spec, args in (
            (teachers.image_teacher, teachers.image_teacher_args),
            (teachers.video_teacher, teachers.video_teacher_args),
        )
    )
    if per_token:
        shared = {name: options[name] for name in ("image_weight", "video_weight", "normalise", "loss")}
        return per_token_distillation(body, image_teacher=image, video_teacher=video, **shared)
    return MVD(body, image_teacher=image, video_teacher=video, **options)
