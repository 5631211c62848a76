"""`vitdistill evaluate` for any task but classification: the task's own metrics, in all and per class."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdistill.errors import refuse_without_effect
from vitdistill.runs.read import Run
from vitdistill.tasks import TASKS, files_of, task_class

LISTED = 20  # classes up to which each is listed without being asked for
# What means something for classes of whole samples only.
OF_CLASSES = ("keep", "criterion", "student", "merge", "seed", "clips", "crops", "sampling", "crop_pct")
OF_NETWORKS = ("image_size", "model_args")  # a run says these


def evaluate_task_of(
    task: str, run: Run | None, values: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Test a network on its task, and print what was found.

    Args:
        task: its name, any but classification.
        run: that the network is of, where it is of one.
        values: of the verb's options.
        defaults: of these.

    Raises:
        UserError: when an option means nothing for the task, or as the test itself.
    """
    group = files_of(task)
    others = [entry.files for entry in TASKS.values() if entry.files not in (None, group)]
    on = f"on a network whose task is {task}" if run is None else f"on a run with --task {task}"
    unread = [*OF_CLASSES, *others, *(OF_NETWORKS if run is not None else ())]
    unread.append("per_class" if task == "actions" else "stride")  # actions are listed always, and of clips
    refuse_without_effect(values, defaults, [name for name in unread if name is not None], on)
    options = {name: values[name] for name in ("batch_size", "device", "workers", "bad_share", "out")}
    files = None if group is None else values[group]
    if task == "actions":
        assert run is not None  # what a network over clips is for is not seen in it
        shared = {name: values[name] for name in ("data", "checkpoint", "stride")}
        return _actions(run, as_json=values["json"], files=files, **shared, **options)
    return _task(task, run, files, values, options)


def _task(task: str, run: Run | None, files: Any, values: Mapping[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Test by the task's metrics, and print these, and those of each class."""
    import json

    from vitdistill.evaluation.loading import load
    from vitdistill.evaluation.tasks import evaluate_task

    model, data = values["model"], values["data"]
    config: dict[str, Any] = {} if run is None else run.config
    network = load(model, Path(model), values["checkpoint"], values["image_size"], values["model_args"])
    files = task_class(task).tested_files(files, network, config, elsewhere=data is not None)
    tested = evaluate_task(network, task, data=data or str(config["data"]), files=files, config=config, **options)
    headings = tested.pop("headings")
    result = {"model": model, **tested}
    if values["json"]:
        print(json.dumps(result))
        return result
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    columns = {
        "model": str(result["model"]),
        "data": str(result["data"]),
        f"{result['word']}s": str(result["samples"]),
        **{heading: f"{result[name]:.2f}" for name, heading in headings.items()},
        "loss": "-" if result["loss"] is None else f"{result['loss']:.4f}",
    }
    summary = Table(*columns)
    summary.add_row(*columns.values())
    Console().print(summary)
    rows = result.get("per_class") or []
    if rows and (values["per_class"] or len(rows) <= LISTED):
        table = Table(*rows[0])
        for row in rows:
            cells = ("-" if value is None else value for value in row.values())
            table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else escape(str(cell)) for cell in cells))
        Console().print(table)
    if "test" in result:
        print(f"test: {result['test']}")
    if "out" in result:
        print(f"wrote {' and '.join(result['files'])} into {result['out']}")
    return result


def _actions(run: Run, *, as_json: bool, **options: Any) -> dict[str, Any]:
    """Test a run with the task actions, and print a table of them."""
    import json

    from vitdistill.evaluation.actions import evaluate_actions

    result = evaluate_actions(run, **options)
    if as_json:
        print(json.dumps(result))
        return result
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "action", "annotated", "AP %")
    for action in result["actions"]:
        ap = "-" if action["ap"] is None else f"{action['ap']:.2f}"
        table.add_row(str(action["id"]), action["name"], str(action["annotated"]), ap)
    table.add_section()
    count = sum(action["annotated"] for action in result["actions"])
    table.add_row("", f"mAP at IoU {result['iou']}", str(count), f"{result['map']:.2f}")
    Console().print(table)
    return result
