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
    from vitdistill.tasks.classification import Classification

    network = job.student(student)
    return Supervised(network, task=Classification(network.num_classes, smoothing=job.smoothing))
