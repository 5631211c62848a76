"""`vitdistill supervised`: train without a teacher."""

from typing import TYPE_CHECKING

from vitdistill.verbs.arguments import Clips, Published
from vitdistill.verbs.job import Job, trains

if TYPE_CHECKING:
    from vitdistill.methods.method import Method


@trains(Clips)
def supervised(job: Job, *, student: Published) -> "Method":
    """Train a network on labels alone: a baseline, or a teacher of your own.

    Returns:
        The content of the run's run.json.
    """
    from vitdistill.methods.supervised import Supervised

    network = job.student(student)
    return Supervised(network, task=job.task_of(network))
