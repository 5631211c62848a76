"""`vitdistill cost`: what a distillation will cost, before anything is spent."""

import json as jsonlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vitdistill.errors import UserError
from vitdistill.methods.options import training_forwards
from vitdistill.methods.selection import CriterionName
from vitdistill.methods.selection.amounts import Keep, check_known
from vitdistill.models.names import ModelName
from vitdistill.tokens.merge_schedule import Merge
from vitdistill.verbs.checks import refuse_unused
from vitdistill.verbs.cost_tables import print_tables
from vitdistill.verbs.merging import check_alone, equal_costs
from vitdistill.verbs.needs import GIVEN, needs

if TYPE_CHECKING:
    from vitdistill.methods.method import Pass
    from vitdistill.methods.selection.ranked import Ranked
    from vitdistill.models.network import Network

CONVENTION = (
    "1 PFLOP here is 1e15 multiply-accumulates of the teacher's forward passes (1 TFLOP: 1e12), LayerNorm at 5 per "
    "element, as in the MaskedKD paper's tables; training the student counts as 3 forward passes, or as 1 where only a "
    "classifier on it is"
)
CONVVIT_NOTE = (
    "The MaskedKD paper's cells for ConvViT-B (8543 and 5540 PFLOPs) are the counts for 300 epochs times "
    "1231167/1281167, most likely a slip in the number of images"
)
PIXELS_NOTE = (
    "A teacher that labels pixels never runs its decoder where blocks are compared (--distill manifold), masked or "
    "not; here the whole one is counted with it, and the masked one, whose patches make no map, without"
)
# Schedules go by the step, of which the data would say how many there are; more of them change next to nothing.
STEPS_PER_EPOCH = 1000

KEEP = 0.5  # where nothing else is asked for

OF_OTHERS = ("teacher", "network", "teacher+random", "network+random")
NEEDS = (
    needs("network", criterion=("network", "network+random")),
    # The student's pass goes to its end in any case, unless it is a pass of its own.
    needs("saliency_layer", criterion=OF_OTHERS, mask="student"),
    needs("mask linear_only", student=GIVEN),
)


def cost(
    *,
    teacher: ModelName,
    student: ModelName | None = None,
    linear_only: bool = False,
    keep: Keep | None = None,
    teacher_merge: Merge | None = None,
    criterion: CriterionName = "student",
    network: ModelName | None = None,
    saliency_layer: str | int = "last",
    mask: Literal["teacher", "student"] = "teacher",
    image_size: int | None = None,
    epochs: int = 300,
    images: int = 1281167,
    gpu_tflops: float | None = None,
    teacher_args: dict[str, Any] | None = None,
    student_args: dict[str, Any] | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Count what the teacher costs in a training, whole and masked, from the networks' shapes alone.

    What ranks the patches is counted as well: a pass of the teacher, of a third network, or of a student that is masked
    itself. Nothing is downloaded and no weights are loaded.

    Args:
        teacher: Teacher: a timm name, name@weights-file, run directory or bundled name.
        student: Student, named as the teacher is; adds its training cost and the teacher's share of a step.
        linear_only: The student is frozen, and a linear classifier on it is all that trains.
        keep: Patches kept: a count (98), a fraction (0.5), a schedule ('1.0->0.5', '0:1.0,0.5:0.25'), of which the
            average over training is taken, or a budget (budget:0.5, 'budget:0.5@1.0->0.25'). By default half of them,
            or all where tokens are merged.
        teacher_merge: Tokens that each block of the teacher merges (ToMe), in place of masks: a number (8), one that
            falls to none over the blocks (8:-1) or rises (8:1), or one for each block (4,0,2). Adds a table of how many
            kept patches cost as much.
        criterion: Who ranks the patches: student (free, but where it is masked), teacher, network, random, or one of
            the first three mixed with chance (network+random).
        network: The third network of the criteria that name one, given as the teacher is; it has its own size.
        saliency_layer: Block whose attention ranks the patches, where the pass of the ranking network ends: first,
            middle, last, or its number from 0.
        mask: Who sees only the kept patches.
        image_size: Side of the input images in pixels, for student and teacher. A teacher at a resolution of its own
            takes --teacher_args.img_size.
        epochs: Passes over the training images.
        images: Training images per epoch (ImageNet-1K: 1281167), or clips of sound (four folds of ESC-50: 1600).
        gpu_tflops: Rate that the GPU sustains in TFLOP/s, 1 MAC being 2 FLOP; adds GPU-hours.
        teacher_args: More arguments of the teacher's architecture.
        student_args: More arguments of the student's architecture.
        json: Print one JSON object instead of the tables.

    Returns:
        What is printed, by name. `teacher_pflops` is the masked teacher's cost in the paper's convention, and
        `ranking_pflops` that of the passes that only rank patches. `saved_fraction` and the limits of the gain have
        both.

    Raises:
        UserError: for an unknown model, a `keep` outside the masked network's grid, a network that cannot be masked or
            cannot rank, an option that would change nothing, or numbers that are not positive.
    """
    refuse_unused("cost", dict(locals()), NEEDS)
    for name, number in (("epochs", epochs), ("images", images), ("gpu_tflops", gpu_tflops)):
        if number is not None and not 0 < number < float("inf"):
            raise UserError(f"{name} must be positive", number)
    if keep is None:
        keep = KEEP if teacher_merge is None else 1.0
    check_known(keep, criterion)
    if teacher_merge is not None:
        check_alone(teacher_merge, keep)
    from vitdistill.methods.selection.ranked import Ranked
    from vitdistill.models.teacher import Teacher

    # A third network sees the student's inputs at its own size, as in training.
    third = None if network is None else Teacher(_on_meta(network, None, None)[0])
    selector = Ranked(keep=keep, criterion=criterion, saliency_layer=saliency_layer, mask=mask, network=third)
    body, size = _on_meta(teacher, teacher_args, image_size)
    frozen = _Counted(body, size)
    trained = None if student is None else _student(student, student_args, image_size, linear_only)
    average = _over_training(selector, frozen, trained, epochs)
    merging: list[dict[str, Any]] = []
    if teacher_merge is not None:
        merging, average = _merging(body, str(teacher_merge), average)
    passes = epochs * images
    full, kept, ranking = frozen.whole, average.teacher, average.ranking
    paid = kept["total"] + average.ranking_by_frozen
    result: dict[str, Any] = {
        "teacher": teacher,
        "image_size": list(size),
        "inputs": "clips" if body.input.sound else "images",
        "teacher_patches": frozen.patches,
        **average.facts,
        "keep": keep,
        "criterion": criterion,
        "mask": mask,
        "epochs": epochs,
        "images": images,
        "teacher_pflops": kept["total"] * passes / 1e15,
        "teacher_full_pflops": full["total"] * passes / 1e15,
        "ranking_pflops": ranking * passes / 1e15,
        "saved_pflops": (full["total"] - paid) * passes / 1e15,
        "saved_fraction": 1 - paid / full["total"],
        "teacher_speedup_limit": full["total"] / paid,
        "teacher_gmacs_per_image": {"full": _giga(full), "kept": _giga(kept)},
        "ranking_gmacs_per_image": ranking / 1e9,
        "convention": CONVENTION,
    }
    if merging:
        result |= {"teacher_merge": str(teacher_merge), "merging": merging}
    if is_convvit(body):
        result["note"] = CONVVIT_NOTE
    elif body.reads_grid:
        result["note"] = PIXELS_NOTE
    if trained is not None:
        result |= _step_costs(str(student), trained, full["total"], average, passes, masked=mask == "student")
    if gpu_tflops is not None:
        hours = 2 * passes / (gpu_tflops * 1e12) / 3600
        result["gpu_tflops"] = gpu_tflops
        of_student = training_forwards(not linear_only) * hours
        result["gpu_hours"] = {
            "teacher_full": full["total"] * hours,
            "teacher_kept": kept["total"] * hours,
            "ranking": ranking * hours,
            "student": None if trained is None else of_student * average.student["total"],
            "student_full": None if trained is None else of_student * trained.whole["total"],
        }
    print(jsonlib.dumps(result)) if json else print_tables(result)
    return result


class _Counted:
    """A network and what one pass of it costs."""

    def __init__(self, network: "Network", size: tuple[int, int]) -> None:
        from vitdistill.models.backbone import Backbone

        self.network, self.size = network, size
        self.patches = network.grid.count if isinstance(network, Backbone) else 1
        self.whole = self.macs(None)

    def macs(self, kept: int | None) -> dict[str, float]:
        """MACs of one image, by part and in total."""
        return _by_part(self.network.macs(kept, size=self.size))


class _Average(NamedTuple):
    """What one image costs, on average over the training.

    Attributes:
        facts: how many patches are kept, of the student's too where it is masked.
        teacher: MACs of its pass, by part and in total.
        student: of a forward pass; empty without one.
        ranking: of passes that only rank patches.
        ranking_by_frozen: of these, those that are no passes of the student.
    """

    facts: dict[str, Any]
    teacher: dict[str, float]
    student: dict[str, float]
    ranking: float
    ranking_by_frozen: float


def _over_training(selector: "Ranked", teacher: _Counted, student: _Counted | None, epochs: int) -> _Average:
    """Averages over the steps of a training, at each of which the selector says how many patches are kept.

    Raises:
        UserError: as `Ranked.check`.
    """
    from vitdistill.models.teacher import Teacher
    from vitdistill.tokens.keep import tally

    guide = Teacher(teacher.network)
    # Without a student nothing of its own is counted, so the teacher may stand for it.
    shown = (student or teacher).network
    selector.check(shown, guide)
    ranking: dict[tuple[int | None, int | None], list[Pass]] = {}

    def counts_at(progress: float) -> tuple[int | None, int | None]:
        counts = selector.counts(shown, guide, progress)
        if counts not in ranking:
            ranking[counts] = selector.ranking_passes(shown, guide, progress)
        return counts

    steps = epochs * STEPS_PER_EPOCH
    shares = {counts: number / steps for counts, number in tally(counts_at, steps).items()}

    def averaged(counted: _Counted, which: int) -> dict[str, float]:
        parts = dict.fromkeys(counted.whole, 0.0)
        for counts, share in shares.items():
            once = counted.whole if counts[which] is None else counted.macs(counts[which])
            parts = {part: value + share * once.get(part, 0.0) for part, value in parts.items()}
        return parts

    def ranked(*roles: str) -> float:
        passes = [(share, one) for counts, share in shares.items() for one in ranking[counts] if one.role in roles]
        return sum(share * one.macs for share, one in passes)

    masked, which = (teacher, 1) if selector.mask == "teacher" else (student or teacher, 0)
    kept = sum(share * (counts[which] or masked.patches) for counts, share in shares.items())
    facts = {} if masked is teacher else {"student_patches": masked.patches}
    return _Average(
        {**facts, "kept_patches": round(kept) if selector.amount.constant else kept},
        averaged(teacher, 1),
        {} if student is None else averaged(student, 0),
        ranked("ranking", "student"),
        ranked("ranking"),
    )


def _merging(whole: "Network", merge: str, average: _Average) -> tuple[list[dict[str, Any]], _Average]:
    """The table of equal costs, and the averages with the teacher's pass as it is when it merges.

    Raises:
        UserError: when the teacher cannot merge.
    """
    from vitdistill.models.backbone import with_tokens
    from vitdistill.models.merged import Merged

    merged = Merged.over(whole, merge)
    rows = equal_costs(with_tokens(whole), merge)
    left = merged.tokens_left()[-1]
    return rows, average._replace(teacher=_by_part(merged.macs()), facts={**average.facts, "tokens_left": left})


def is_convvit(network: "Network") -> bool:
    """Whether a network is the published ConvViT-B, of which the paper's cells are another number."""
    from vitdistill.models.families.convvit import ConvViT

    return isinstance(network.net, ConvViT) and network.input.size == (224, 224) and network.net.embed_dim == 768


def _on_meta(spec: str, args: dict[str, Any] | None, image_size: int | None) -> tuple["Network", tuple[int, int]]:
    """A network without weights, and the height and width of its input in pixels."""
    from vitdistill.models.build import build
    from vitdistill.models.network import Opaque

    own_size = "img_size" in (args or {})
    network = build(spec, args=args, image_size=None if own_size else image_size, meta=True)
    free = isinstance(network, Opaque) and image_size is not None and not own_size
    return network, (image_size, image_size) if free and image_size else network.input.size


def _student(name: str, args: dict[str, Any] | None, image_size: int | None, linear_only: bool) -> _Counted:
    """The student; where nothing but a classifier on it trains, with that."""
    network, size = _on_meta(name, args, image_size)
    if not linear_only:
        return _Counted(network, size)
    from vitdistill.models.families import linear_only as frozen

    return _Counted(frozen.linear_only(network, network.num_classes or 1000), size)


def _by_part(macs: Any) -> dict[str, float]:
    return {**macs.parts(), "total": macs.total}


def _giga(parts: dict[str, float]) -> dict[str, float]:
    return {part: value / 1e9 for part, value in parts.items()}


def _step_costs(
    name: str, student: _Counted, teacher_full: float, average: _Average, passes: int, *, masked: bool
) -> dict[str, Any]:
    forwards = training_forwards(student.network.trains_body)
    whole, trained = (forwards * forward["total"] for forward in (student.whole, average.student))
    of_teacher = average.teacher["total"] + average.ranking_by_frozen  # selecting patches is the teacher's, as in runs
    before = teacher_full + whole
    after = average.teacher["total"] + average.ranking + trained
    gmacs = {"forward": student.whole["total"] / 1e9, "training": whole / 1e9}
    result: dict[str, Any] = {"student": name, "student_gmacs_per_image": gmacs}
    if masked:
        gmacs |= {"forward_kept": average.student["total"] / 1e9, "training_kept": trained / 1e9}
        result["student_full_pflops"] = whole * passes / 1e15
    return {
        **result,
        "student_pflops": trained * passes / 1e15,
        "teacher_share_of_step": {"full": teacher_full / before, "kept": of_teacher / after},
        "step_speedup_limit": before / after,
    }
