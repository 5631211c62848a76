"""What the tasks' metrics are called, read from their source, so that a study's file is checked without torch."""

import ast
from functools import cache
from typing import Any

from vitdistill.tasks import TASKS
from vitdistill.verbs.source import Source


@cache
def metrics_of_tasks() -> dict[str, str]:
    """Headings of the metrics of all tasks, by name.

    Example:
        >>> metrics_of_tasks()["top1"], metrics_of_tasks()["map"]
        ('top-1 %', 'frame mAP %')
    """
    # Of several tasks with a metric of one name, the first named it.
    return {name: heading for task in reversed(TASKS) for name, heading in _attribute(task, "columns").items()}


@cache
def scores_of_tasks() -> tuple[str, ...]:
    """The metrics that say how good a student is, each once, in the order of the tasks."""
    return tuple(dict.fromkeys(str(_attribute(task, "score")) for task in TASKS))


def _attribute(task: str, name: str) -> Any:
    """The value of an attribute in the class of a task."""
    module, _, kind = TASKS[task].where.partition(":")
    source = Source.of(module)
    definition = source.definition(kind)
    assert isinstance(definition, ast.ClassDef)
    for statement in definition.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value) if found == name:
                return source.evaluate(value)
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return source.evaluate(value)
    raise AttributeError(f"{kind} states no {name}")
