"""`vitdistill g2sd`: distil a masked autoencoder, decoder included, into a smaller one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdistill.data.images.augment import Augment
from vitdistill.verbs.arguments import Model, Positions, Student, TeacherOptions, masked_modelling
from vitdistill.verbs.initial import check_heads, check_with_decoder, decoder_heads_of, decoder_source
from vitdistill.verbs.job import Job, trains

if TYPE_CHECKING:
    from vitdistill.methods.method import Method


def check_teacher(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse a teacher that cannot have a decoder, and other heads than the decoder was trained with."""
    teacher, heads = values["teacher"], values["teacher_decoder_heads"]
    if isinstance(teacher, str):
        check_with_decoder(teacher)
        trained = decoder_heads_of(teacher)
        if heads is not None and trained is not None:
            check_heads(teacher, "teacher_decoder_heads", heads, trained)
    return {}


@trains(
    labels=False,
    epochs=300,
    augment=Augment(recipe="pretrain"),
    optim=masked_modelling(warmup_epochs=10),
    resolve=check_teacher,
)
def g2sd(
    job: Job,
    *,
    student: Student,
    teacher: Model,
    teachers: TeacherOptions,
    teacher_decoder_heads: int | None = None,
    positions: Positions = "sincos",
    **options: Any,
) -> "Method":
    """Distil an MAE teacher and its decoder into a smaller masked autoencoder, without labels (G2SD, generic stage).

    Both see the same quarter of the patches. The run's student is the encoder, without a classifier: its second stage
    is `maskedkd --dist_token true --distillation hard`.

    Args:
        data: folder of images (labels are not needed), a container such as torchvision:CIFAR10, or a bundled source:
            digits.
        teacher: an MAE with its decoder: a run of `mae`, or a full file with the encoder's architecture
            (vit_base_patch16_224.mae@mae_pretrain_vit_base_full.pth). Files without a decoder are refused.
        teacher_decoder_heads: attention heads of the teacher's decoder, which its weights do not show; by default what
            its run or configuration says, else MAE's 16.
        positions: fixed sine-cosine position embeddings, or learned ones; a loaded student keeps its own.

    Returns:
        The content of the run's run.json.
    """
    from vitdistill.methods.g2sd import G2SD
    from vitdistill.models.autoencoder import MaskedAutoencoder, decoder_of
    from vitdistill.models.teacher import Teacher

    body = job.pretraining_student(student, positions=positions)
    frozen = job.teacher(teacher, body, args=teachers.teacher_args, check=lambda sketch: sketch.backbone)
    if not isinstance(teacher, str):
        job.refuse("teacher_decoder_heads", why="on a module object, which brings its own decoder")
        return G2SD(body, frozen, **options)
    encoder = frozen.backbone
    heads = decoder_heads_of(teacher) if teacher_decoder_heads is None else teacher_decoder_heads
    decoder = decoder_of(Path(decoder_source(teacher)), encoder, heads)
    dtype = next(encoder.parameters()).dtype  # as --teacher_dtype made it
    return G2SD(body, Teacher.of(MaskedAutoencoder(encoder, decoder), body, dtype=dtype), **options)
