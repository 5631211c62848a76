"""What labels mean. A task brings the head, the loss, the metrics and what they are called.

Read `task.py`, then `classification.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitdistill.errors import UserError, near
from vitdistill.tasks import defaults

if TYPE_CHECKING:
    from vitdistill.models.network import Network
    from vitdistill.tasks.task import Task


@dataclass(frozen=True)
class Entry:
    """A task as the command line knows it, before torch is imported.

    Attributes:
        where: its class, as module and name; imported on first use, so that `--help` need not load torch.
        distill: what a student learns from a teacher where nothing else is said; see `--distill`.
        defaults: from the data to values of shared options, where these differ from the verbs'; see `defaults.py`.
        files: the name of the task's own group of options, where it has one.
        test_batch: samples per step of a test, where they are too large for the verbs' own number.
    """

    where: str
    distill: str
    defaults: Callable[[Any], defaults.Values]
    files: str | None = None
    test_batch: int | None = None


# What `--task` takes: of verbs that train on labels alone, and of distillation.
TaskName = Literal["classification", "actions", "boxes", "segmentation"]
DistilledTask = Literal["classification", "boxes", "segmentation"]
TASKS: dict[str, Entry] = {
    "classification": Entry(
        "vitdistill.tasks.classification:Classification", distill="logits", defaults=defaults.of_classification
    ),
    "actions": Entry(
        "vitdistill.tasks.actions:Actions", distill="manifold", defaults=defaults.of_actions, files="actions"
    ),
    "boxes": Entry(
        "vitdistill.tasks.boxes:Boxes", distill="tokens", defaults=defaults.of_boxes, files="boxes", test_batch=8
    ),
    "segmentation": Entry(
        "vitdistill.tasks.segmentation:Segmentation",
        distill="manifold",
        defaults=defaults.of_segmentation,
        files="segments",
        test_batch=8,
    ),
}


def _entry(name: str) -> Entry:
    if name not in TASKS:
        raise UserError(f"task must be one of {', '.join(TASKS)}", repr(name), near(name, TASKS))
    return TASKS[name]


def task_class(name: str) -> "type[Task]":
    """The class of a task by its name.

    Raises:
        UserError: when there is no such task.
    """
    module, _, attribute = _entry(name).where.partition(":")
    return getattr(import_module(module), attribute)


def task_by_its_looks(data: object) -> str | None:
    """The task whose layout some data has; None where that cannot be seen, or there are several."""
    from vitdistill.data.boxes.sources import has_annotations
    from vitdistill.data.folders import has_classes
    from vitdistill.data.open import BUNDLED, SCENES
    from vitdistill.data.segments.folder import is_pair_folder

    if isinstance(data, str) and data in BUNDLED:
        return None if data == SCENES else "classification"
    if is_pair_folder(data):
        return "segmentation"
    if has_annotations(data):
        return "boxes"
    folder = Path(data).expanduser() if isinstance(data, str | Path) else None
    return "classification" if folder is not None and folder.is_dir() and has_classes(folder) else None


def default_distill(name: str) -> str:
    """What a student of a task learns from its teacher where nothing else is said.

    Raises:
        UserError: when there is no such task.
    """
    return _entry(name).distill


def default_options(name: str, data: Any) -> Mapping[str, Any]:
    """Values of shared options where nothing else is said, as far as they differ from the verbs'.

    Args:
        name: of the task.
        data: what `--data` names, or what else `open_source` takes; None where that is not known.

    Raises:
        UserError: when there is no such task.

    Example:
        >>> default_options("boxes", "/data/VOCdevkit")["batch_size"]
        2
    """
    return _entry(name).defaults(data)


def test_batch_of(name: str, usual: int) -> int:
    """Samples per step of a test where nothing else is said.

    Args:
        name: of the task.
        usual: of the verb.

    Raises:
        UserError: when there is no such task.
    """
    return _entry(name).test_batch or usual


def files_of(name: str) -> str | None:
    """The name of the group of options that a task has for itself; None where it has none.

    Raises:
        UserError: when there is no such task.
    """
    return _entry(name).files


def task_of(network: "Network") -> str:
    """The task that the head of a network is for, which says how its predictions are read.

    Example:
        >>> task_of(build("yolos_tiny", meta=True))
        'boxes'
    """
    return network.task
