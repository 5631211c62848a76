"""`vitdistill mae`: pre-train a teacher by masked image modelling."""

from typing import TYPE_CHECKING, Any

from vitdistill.data.images.augment import Augment
from vitdistill.verbs.arguments import File, Positions, Student, masked_modelling
from vitdistill.verbs.initial import check_heads, check_init, full_file
from vitdistill.verbs.job import Job, trains

if TYPE_CHECKING:
    from vitdistill.methods.method import Method


@trains(
    labels=False,
    epochs=800,
    augment=Augment(recipe="pretrain"),
    optim=masked_modelling(warmup_epochs=40),
    resolve=check_init,
)
def mae(
    job: Job, *, student: Student, init: File | None = None, positions: Positions = "sincos", **options: Any
) -> "Method":
    """Pre-train a ViT without labels by predicting the pixels of masked patches (MAE).

    The run's student has no classifier: give it to `tinymim` as a teacher, or to `finetune`, `probe` and `knn`. The
    run also holds mae.safetensors, encoder and decoder under the names of MAE's release.

    Args:
        data: folder of images or videos (labels are not needed), a container such as torchvision:CIFAR10, or a bundled
            source: digits, moving_digits.
        init: begin with encoder and decoder of a full MAE file (mae_pretrain_vit_base_full.pth, mae.safetensors of a
            run) or of a run of this verb; `student` is then an architecture without weights.
        positions: fixed sine-cosine position embeddings, or learned ones; a loaded student keeps its own.

    Returns:
        The content of the run's run.json.
    """
    from vitdistill.methods.mae import MAE
    from vitdistill.models.surgery.attention_heads import head_count

    encoder = job.pretraining_student(student, positions=positions)
    method = MAE(encoder, **options)
    if init is not None and job.rebuilding is None:
        method.load_full(full_file(init))
        heads = head_count(method.student, 0)  # the weights' own, whatever was asked for
        check_heads(init, "student_args.num_heads", (student.student_args or {}).get("num_heads", heads), heads)
    return method
