"""Tests of networks whose task is no classification: the task's own metrics, in all and per class."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from vitdistill.data.loader import BAD_SHARE, CorruptLog
from vitdistill.errors import UserError
from vitdistill.evaluation.loading import Reader, made_ready
from vitdistill.files import write_atomically
from vitdistill.models.classes import class_order, compare
from vitdistill.models.network import Network
from vitdistill.runs.directory import list_in_run
from vitdistill.tasks import task_class


def evaluate_task(
    network: Network,
    task_name: str,
    *,
    data: str,
    files: Any,
    config: Mapping[str, Any],
    batch_size: int,
    device: str,
    workers: int | None,
    out: str | None,
    bad_share: float = BAD_SHARE,
) -> dict[str, Any]:
    """Test a network on its task's validation set, in float32.

    Args:
        network: to test.
        task_name: of its task.
        data: what `--data` takes.
        files: the task's own group of options, where it has one.
        config: of the run that the network is of; empty where it is of none.
        batch_size: samples per step; where a test makes many inputs of each, these.
        device: auto, cpu, cuda, ...
        workers: loader processes; None chooses.
        out: folder for the task's files, such as a table per class; None writes nothing.
        bad_share: share of the samples that may be unreadable.

    Returns:
        The data, which test it was where the task has several, each metric of the task in percent, the loss, how many
        samples there were and could not be read, and what is known per class.

    Raises:
        UserError: when the network is not for the data, too much is unreadable, or the loss is not finite.
    """
    if batch_size < 1:
        raise UserError("batch_size must be at least 1", batch_size)
    source, task = task_class(task_name).open_tested(data, files=files)
    task = task.tested(files, batch_size)
    task.check(network)
    if task.names is None and compare(network, source.classes, source.name).order is not None:
        rule = f"The classes of {source.name} must be in the order of those of {network.name}"
        raise UserError(rule, f"{', '.join(source.classes[:3])}, ...", "Give them in the order of the training")
    class_order(network, source.classes, source.name)  # says what the task does about it
    subject = made_ready(network, source, dict(config), task.views, None)
    read_at_once = 1 if task.one_by_one else batch_size
    reader = Reader(subject, batch_size=read_at_once, device=device, workers=workers, bad_share=bad_share)
    network.eval().to(reader.place)
    # Every metric by itself: metrics that agree in the first batch would be taken for one.
    each = task.metrics()
    metrics = MetricCollection(dict(each), compute_groups=False).to(reader.place)
    counts = task.details()
    details = None if counts is None else MetricCollection({"details": counts}).to(reader.place)
    corrupt = CorruptLog.of(source.val, bad_share)
    loss, counted = torch.zeros((), device=reader.place), 0
    for inputs, batch in reader.read(source.val, "testing"):
        corrupt.add(batch.skipped)
        corrupt.check(len(source.val))
        if inputs is None:
            continue
        loss_of_batch = _update(network, task, inputs, batch, metrics, details)
        if loss_of_batch is not None:
            loss, counted = loss + loss_of_batch, counted + len(batch.index)
    if not loss.isfinite():
        raise UserError(f"The loss of {network.name} must be finite", "nan or inf", "Its training has diverged")
    result: dict[str, Any] = {
        "data": source.name,
        "task": task_name,
        **({} if task.test is None else {"test": task.test}),
        "word": source.val.word,
        "samples": len(source.val) - len(corrupt.paths),
        "unreadable": len(corrupt.paths),
        **{name: round(100 * float(value), 4) for name, value in metrics.compute().items()},
        "loss": round(float(loss) / counted, 4) if counted else None,
        "headings": task.headings(),
    }
    written: dict[str, str] = {}
    if details is not None:
        found = details.compute()["details"]
        result["per_class"] = task.per_class(found, source)
        written = task.detail_files(found, source)
    if out is not None:
        written |= task.result_files(each)
        for name, text in written.items():
            write_atomically(Path(out) / name, lambda file, text=text: file.write(text.encode()))
            list_in_run(Path(out) / name)
        result |= {"out": str(out), "files": list(written)}
    return result


@torch.inference_mode()
def _update(
    network: Network, task: Any, inputs: Tensor, batch: Any, metrics: MetricCollection, details: Any
) -> Tensor | None:
    """Add a batch to the metrics; its summed loss, where there is one."""
    targets, index = batch.targets.to(inputs.device), batch.index.to(inputs.device)
    prediction = task.predict(network, inputs, targets)
    metrics.update(preds=prediction, target=targets, index=index)
    if details is not None:
        details.update(preds=prediction, target=targets, index=index)
    return task.validation_loss(prediction, targets)
