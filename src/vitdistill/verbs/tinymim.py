"""`vitdistill tinymim`: distil a masked-image-modelling teacher through token relations."""

from typing import TYPE_CHECKING, Any

from vitdistill.data.images.augment import Augment
from vitdistill.verbs.arguments import Model, Pipelining, Positions, Published, TeacherOptions, masked_modelling
from vitdistill.verbs.checks import check_pipelining, refuse_argument
from vitdistill.verbs.job import Job, trains
from vitdistill.verbs.needs import needs

if TYPE_CHECKING:
    from vitdistill.methods.method import Method


def check_options(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse what another option sets, and steps in parts that cannot be."""
    check_pipelining(values)
    return refuse_argument(values, "student_args", "drop_path_rate", "--drop_path")


@trains(
    labels=False,
    augment=Augment(recipe="pretrain"),
    optim=masked_modelling(warmup_epochs=15),
    needs=(
        needs("relations softmax align_heads", target="relations"),
        needs("feature residual", target="features"),
        needs("pixel_decoder", pixels=True),
    ),
    resolve=check_options,
)
def tinymim(
    job: Job,
    *,
    student: Published,
    teacher: Model,
    teachers: TeacherOptions,
    positions: Positions = "sincos",
    pipelining: Pipelining,
    **options: Any,
) -> "Method":
    """Distil a masked-image-modelling teacher into a smaller ViT, without labels, through token relations (TinyMIM).

    The run's student has no classifier: fine-tune it, probe it, or make it the teacher of the next smaller student.

    Args:
        data: folder of images (labels are not needed), a container such as torchvision:CIFAR10, or a bundled source:
            digits.
        teacher: pre-trained ViT, given as `student` is; a bare timm name (vit_base_patch16_224.mae) downloads its
            weights, and a run directory of `mae` or `tinymim` is the way to distil in sequence.
        positions: fixed sine-cosine position embeddings, or learned ones; a loaded student keeps its own.
        drop_path: stochastic depth rate of all the student's blocks but the last.

    Returns:
        The content of the run's run.json.
    """
    from vitdistill.methods.tinymim import TinyMIM
    from vitdistill.models.surgery.drop_path import constant_but_last, drop_path_rates, set_drop_path

    body = job.pretraining_student(student, positions=positions)
    frozen = job.teacher(teacher, body, args=teachers.teacher_args, check=lambda sketch: sketch.backbone)
    set_drop_path(body, constant_but_last(student.drop_path, len(drop_path_rates(body))))
    method = TinyMIM(body, frozen, **options)
    return job.pipelined(method, pipelining)
