"""`vitdistill mvd`: distil image and video teachers into a video student by masked feature modelling."""

from typing import TYPE_CHECKING, Any

from vitdistill.data.images.augment import Augment
from vitdistill.verbs.arguments import Clips, ClipStudent, Format, Model, masked_modelling
from vitdistill.verbs.job import Job, trains
from vitdistill.verbs.needs import GIVEN, needs

if TYPE_CHECKING:
    from vitdistill.methods.method import Method
    from vitdistill.models.network import Network


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
    job: Job,
    *,
    student: ClipStudent,
    image_teacher: Model | None = None,
    image_teacher_args: dict[str, Any] | None = None,
    video_teacher: Model | None = None,
    video_teacher_args: dict[str, Any] | None = None,
    per_token: bool = False,
    **options: Any,
) -> "Method":
    """Distil an image teacher, a video teacher, or both into a video student that sees a tenth of a clip (MVD).

    With images, an image teacher and an image student this is image masked feature modelling (Table 11).

    Args:
        student: video_vit_{small,base,large,huge}_patch16_224, name@weights-file, or run directory.
        data: folder of videos (labels are not needed) or images, or a bundled source: moving_digits, digits.
        image_teacher: pre-trained image ViT (vit_base_patch16_224.mae, a run of `mae`), which sees the first frame of
            each tubelet.
        image_teacher_args: further arguments of the image teacher's architecture, such as
            `--image_teacher_args.img_size 224`.
        video_teacher: pre-trained video ViT (a VideoMAE file, a run of `videomae`), which sees the whole clip.
        video_teacher_args: further arguments of the video teacher's architecture.
        per_token: match the teachers' features at every token of the whole clip through an MLP, without masking (the
            paper finds that worse).
        augment: augmentation; clips are cropped at several scales and never flipped or recoloured in pre-training.

    Returns:
        The content of the run's run.json.
    """
    from vitdistill.methods.mvd import MVD, per_token_distillation

    body = _student(job, student, images=video_teacher is None and image_teacher is not None)
    teachers: dict[str, Any] = {
        "image_teacher": image_teacher and job.teacher(image_teacher, body, args=image_teacher_args),
        "video_teacher": video_teacher and job.teacher(video_teacher, body, args=video_teacher_args),
    }
    if per_token:
        shared = {name: options[name] for name in ("image_weight", "video_weight", "normalise", "loss")}
        return per_token_distillation(body, **teachers, **shared)
    return MVD(body, image_teacher=teachers["image_teacher"], video_teacher=teachers["video_teacher"], **options)


def _student(job: Job, student: ClipStudent, *, images: bool) -> "Network":
    """Over clips, or over images where the data are images and no teacher sees clips."""
    if job.rebuilding is not None or not images or job.data.train.has_frames:
        return job.video_student(student, positions="sincos_3d")
    job.refuse("frames", why="on images")
    return job.pretraining_student(student, args={"drop_path_rate": student.drop_path, **(student.student_args or {})})
