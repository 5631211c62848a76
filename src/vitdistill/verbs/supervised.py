"""`vitdistill supervised`: train without a teacher."""

from typing import TYPE_CHECKING, Any

from vitdistill.methods.options import PatchDrop
from vitdistill.verbs.arguments import Clips, Labels, Published
from vitdistill.verbs.checks import refuse_argument
from vitdistill.verbs.job import Job, trains
from vitdistill.verbs.needs import needs

if TYPE_CHECKING:
    from vitdistill.methods.method import Method


def check_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse timm's own patch dropout, which `--patch_drop` is for every family."""
    rate = (values["student_args"] or {}).get("patch_drop_rate")
    if rate:
        refuse_argument(values, "student_args", "patch_drop_rate", "--patch_drop")
    return {}


@trains(Labels, Clips, needs=(needs("patch_drop", task="classification"),), resolve=check_arguments)
def supervised(
    job: Job,
    *,
    student: Published,
    patch_drop: PatchDrop = 0.0,
) -> "Method":
    """Train a network on labels alone: a baseline, or a teacher of your own.

    Args:
        patch_drop: share of the patches that training leaves out of each image or clip, at random: 0.5 for a teacher
            that MaskedKD will mask. Validation and the exported network see every patch.

    Returns:
        The content of the run's run.json.
    """
    from vitdistill.methods.supervised import Supervised

    network = job.student(student)
    return Supervised(network, task=job.task_of(network), patch_drop=patch_drop)
