"""`vitdistill maskedkd`: distil with a teacher that sees only what the student attends to."""

from typing import TYPE_CHECKING, Any

from vitdistill.errors import UserError
from vitdistill.methods.selection import CriterionName
from vitdistill.methods.selection.amounts import amount_of, check_selection
from vitdistill.methods.terms.options import LOGITS, TermNames, parse_terms
from vitdistill.models.names import LinearFeatures
from vitdistill.tasks import default_distill
from vitdistill.tokens.merge_schedule import Merge
from vitdistill.verbs.arguments import File, Labels, Model, Pipelining, Published, TeacherOptions, is_fresh
from vitdistill.verbs.checks import check_network, check_pipelining, refuse_unused
from vitdistill.verbs.job import Job, trains
from vitdistill.verbs.linear import check_linear_only
from vitdistill.verbs.merging import check_alone
from vitdistill.verbs.needs import ABOVE_0, GIVEN, Names, needs

if TYPE_CHECKING:
    from vitdistill.methods.method import Method


def check_terms(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse options of terms that `--distill` does not name, and selections that have no meaning.

    Returns:
        What is distilled, and who ranks the patches, where that was not said: `auto` where the teacher's class scores
        can tell, else the student.
    """
    check_pipelining(values)
    check_network(values)
    distill = default_distill(values["task"]) if values["distill"] is None else values["distill"]
    values = {**values, "distill": distill}
    refuse_unused("maskedkd", values, (needs("alpha tau distillation teacher_text dist_token", distill=Names(LOGITS)),))
    terms = values["terms"].named(values["distill"])
    if LOGITS in terms and values["task"] != "classification":
        rule = f"--distill {LOGITS} compares scores of classes, which --task {values['task']} has not"
        raise UserError(rule, values["distill"], f"Use --distill {default_distill(values['task'])}")
    keep, order, mask, criterion = (values[name] for name in ("keep", "order", "mask", "criterion"))
    if criterion is None:
        asked = LOGITS in terms and values["alpha"] > 0 and order == "top" and mask == "teacher"
        criterion = "auto" if asked and not amount_of(keep).per_input else "student"
    check_selection(keep, criterion, order, mask)
    if values["linear_only"]:
        check_linear_only(values)
    check_alone(values["teacher_merge"], keep, terms)
    return {"distill": distill, "criterion": criterion}


@trains(
    Labels,
    resolve=check_terms,
    needs=(
        needs("network", criterion=("network", "network+random")),
        needs("random_share", criterion=("network+random", "student+random", "teacher+random")),
        needs("teacher_text teacher_args teacher_merge", teacher=GIVEN),
        needs("teacher_text dist_token teacher_merge", alpha=ABOVE_0),
        needs("pipeline teacher_device", teacher=GIVEN),
        needs("linear_features", linear_only=True),
        needs("drop_path dist_token", linear_only=False),
        needs("linear_only", task="classification"),
    ),
)
def maskedkd(
    job: Job,
    *,
    student: Published,
    distill: TermNames | None = None,
    teacher: Model | None = None,
    teachers: TeacherOptions,
    teacher_text: File | None = None,
    teacher_merge: Merge | None = None,
    network: Model | None = None,
    dist_token: bool = False,
    criterion: CriterionName | None = None,
    pipelining: Pipelining,
    linear_only: bool = False,
    linear_features: LinearFeatures = "auto",
    **options: Any,
) -> "Method":
    """Distil a teacher that sees only the patches to which the student attends (MaskedKD).

    Args:
        data: folder with train/ and val/ (one folder per class), a container such as torchvision:CIFAR10, or a bundled
            source: digits, sounds. Of boxes, a VOC devkit, COCO's folders, or scenes; of segmentation, a folder with
            images/ and annotations/ (or masks/), or scenes.
        distill: what the student learns from the teacher: logits, manifold, attention, or several joined by +
            (logits+manifold); by default logits, for boxes tokens, and for segmentation manifold.
        teacher: as `student`; a bare timm name downloads its pretrained weights. Not needed with `--alpha 0`.
        teacher_text: for a CLIP teacher, a file with one text embedding per class, as `text-embeddings` writes it; its
            class scores are then scaled cosine similarities (zero-shot).
        teacher_merge: tokens that each block of the teacher merges, in place of masks (ToMe): a number (8), one that
            falls to none over the blocks (8:-1) or rises (8:1), or one for each block (4,0,2). Needs --keep 1.0.
        network: the third network of the criteria that name one; given as `teacher` is.
        dist_token: append a distillation token without a position to a ViT student, with a head that learns from the
            teacher while the class head learns from the labels; evaluation takes the mean of both (G2SD's second
            stage, together with `--distillation hard`).
        criterion: who ranks the patches: the student (the paper's choice), the teacher, a third network, chance
            (random), half one of them and half chance (student+random), or auto: student or random, whichever leaves
            the teacher more of what it knows. By default auto where the teacher's class scores can tell, else student.
        linear_only: train nothing but a linear classifier on the frozen student, a trained ViT such as DINO's.
        linear_features: what that classifier reads: the class tokens of the last four blocks (cls4), that of the last
            one (cls), or that and the mean of the patches (cls+mean); auto is cls4 for students narrower than ViT-B,
            and cls+mean from there on, as in DINO's linear evaluation.

    Returns:
        The content of the run's run.json.
    """
    from vitdistill.methods.maskedkd import MaskedKD
    from vitdistill.methods.selection.checks import check_maskable
    from vitdistill.models.record import has_new_head
    from vitdistill.models.surgery.dist_token import with_dist_token

    network_to_train = job.linear_student(student, linear_features) if linear_only else job.student(student)
    if dist_token and job.rebuilding is None:
        fresh = has_new_head(network_to_train.net) or is_fresh(student.student, student.pretrained)
        network_to_train = with_dist_token(network_to_train, fresh_head=fresh)
    guide = third = None
    # Class scores of no weight need no teacher; other terms need one, whatever its classes.
    terms = [
        name
        for name in parse_terms(default_distill(job.values["task"]) if distill is None else distill)
        if name != LOGITS or options["alpha"] > 0
    ]
    if not terms:
        job.refuse("teacher_args", "pipeline", "teacher_device", why="unless --alpha is above 0")
    elif teacher is not None:
        classes = LOGITS in terms
        # What can be masked does not depend on who ranks the patches.
        amount, masks_student = amount_of(options["keep"]), options["mask"] == "student"
        guide = job.teacher(
            teacher,
            network_to_train,
            args=teachers.teacher_args,
            text=teacher_text,
            classes=classes,
            merge=teacher_merge,
            check=lambda sketch: check_maskable(network_to_train if masks_student else sketch.network, amount),
        )
    if network is not None:
        third = job.teacher(network, network_to_train)
    chosen = criterion or "student"  # filled in before a run begins
    method = MaskedKD(
        network_to_train,
        guide,
        task=job.task_of(network_to_train),
        distill=distill,
        network=third,
        smoothing=job.smoothing,
        criterion=chosen,
        **options,
    )
    return job.pipelined(method, pipelining)
