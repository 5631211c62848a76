"""What labels mean. A task brings the head, the loss, the metrics and what they are called.

Read `task.py`, then `classification.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Literal

from vitdistill.errors import UserError, near

if TYPE_CHECKING:
    from vitdistill.tasks.task import Task

# What `--task` takes, and where it is; imported on first use, so that `--help` need not load torch.
TaskName = Literal["classification", "actions"]
TASKS: dict[str, str] = {
    "classification": "vitdistill.tasks.classification:Classification",
    "actions": "vitdistill.tasks.actions:Actions",
}


def task_class(name: str) -> "type[Task]":
    """The class of a task by its name.

    Raises:
        UserError: when there is no such task.
    """
    if name not in TASKS:
        raise UserError(f"task must be one of {', '.join(TASKS)}", repr(name), near(name, TASKS))
    module, _, attribute = TASKS[name].partition(":")
    return getattr(import_module(module), attribute)
