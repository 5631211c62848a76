"""`vitdistill mae`: pre-train a teacher by masked image modelling."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdistill.data.images.augment import Augment
from vitdistill.errors import UserError
from vitdistill.files import FULL
from vitdistill.runs.read import find_run
from vitdistill.verbs.arguments import Positions, Student, is_fresh, masked_modelling
from vitdistill.verbs.job import Job, trains

if TYPE_CHECKING:
    from vitdistill.methods.method import Method


def _check_init(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse weights that `--init` would overrule, and a decoder whose weights fit though its heads are others."""
    init, student = values["init"], values["student"]
    if init is not None:
        if isinstance(student, str) and not is_fresh(student):
            remedy = "Name the architecture alone, or leave --init out"
            raise UserError("--init replaces the weights that --student brings", student, remedy)
        run = find_run(_full_file(init).parent)
        if run is not None and _full_file(init).name == FULL:
            asked = values["decoder_heads"]
            _check_heads(init, "decoder_heads", asked, run.config.get("decoder_heads", asked))
    return {}


@trains(
    labels=False,
    epochs=800,
    augment=Augment(recipe="pretrain"),
    optim=masked_modelling(warmup_epochs=40),
    resolve=_check_init,
)
def mae(
    job: Job, *, student: Student, init: str | None = None, positions: Positions = "sincos", **options: Any
) -> "Method":
    """Pre-train a ViT without labels by predicting the pixels of masked patches (MAE).

    The run's student has no classifier: give it to `tinymim` as a teacher, or to `finetune`, `probe` and `knn`. The
    run also holds mae.safetensors, encoder and decoder under the names of MAE's release.

    Args:
        data: folder of images or videos (labels are not needed), or a bundled source: digits, moving_digits.
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
        method.load_full(_full_file(init))
        heads = head_count(method.student, 0)  # the weights' own, whatever was asked for
        _check_heads(init, "student_args.num_heads", (student.student_args or {}).get("num_heads", heads), heads)
    return method


def _full_file(spec: str) -> Path:
    """The file with encoder and decoder that `--init` names."""
    folder = Path(spec)
    return folder / FULL if folder.is_dir() else folder


def _check_heads(init: str, option: str, asked: int, trained: int) -> None:
    if asked != trained:
        raise UserError(f"{init} was trained with {trained} heads", f"--{option} {asked}", f"Use --{option} {trained}")
