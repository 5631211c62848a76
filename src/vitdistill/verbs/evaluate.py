"""`vitdistill evaluate`: accuracy on a validation set, or frame mAP of a run of `finetune --task actions`."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vitdistill.data.actions.files import ActionFiles
from vitdistill.data.loader import CorruptLog
from vitdistill.errors import UserError, refuse_without_effect
from vitdistill.evaluation.loading import Reader, open_subject
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.classes import class_order
from vitdistill.models.names import ModelName, absolute_model
from vitdistill.models.network import Network
from vitdistill.runs.read import Checkpoint, Run, find_run
from vitdistill.tasks.classification import MEAN_PER_CLASS, Classification
from vitdistill.tasks.confusion import Confusion, table
from vitdistill.tokens.keep import keep_count
from vitdistill.verbs.arguments import Data
from vitdistill.verbs.common import refuse_classes
from vitdistill.verbs.signatures import options_of

LISTED = 20  # classes up to which each is listed without being asked for


def evaluate(
    model: ModelName,
    *,
    data: Data | None = None,
    checkpoint: Checkpoint = "exported",
    keep: int | float = 1.0,
    clips: int = 1,
    crops: Literal[1, 3] = 1,
    stride: int | None = None,
    sampling: Literal["dense", "uniform"] | None = None,
    batch_size: int = 128,
    image_size: int | None = None,
    crop_pct: float | None = None,
    device: str = "auto",
    workers: int | None = None,
    bad_share: float = 0.01,
    model_args: dict[str, Any] | None = None,
    actions: ActionFiles = ActionFiles(),
    per_class: bool = False,
    out: str | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Top-1 and top-5 accuracy of a run or a model on the validation images or videos, and accuracy per class; of a run
    of `finetune --task actions` frame mAP at IoU 0.5, in all and per action.

    Args:
        model: run directory, timm name (pretrained weights are downloaded), name@weights-file, or a bundled name.
        data: folder with a val/ folder, a container such as torchvision:CIFAR10, or a bundled source; of actions, the
            folder of videos. By default the run's own.
        checkpoint: of a run: the exported student, the last or best checkpoint, or the averaged weights.
        keep: evaluate on the patches to which the model itself attends: a count or a fraction; 1.0 takes all.
        clips: of videos: test clips spread over each video, whose probabilities are averaged; Kinetics is tested with
            5 clips x 3 crops, Something-Something with 2 x 3.
        crops: of videos: 1 takes the centre of each clip, 3 both ends of the longer edge and the centre.
        stride: of videos: frames from one frame of a dense clip to the next; by default the run's.
        sampling: of videos: dense or uniform; by default the run's.
        batch_size: images, or views of videos, per step.
        image_size: input size in pixels; by default the model's.
        crop_pct: share of the resized image that the centre crop keeps; by default that of the run's recipe, or the
            one that the model was published with.
        device: auto, cpu, cuda, ...
        workers: loader processes; by default one per core up to 8, and none for bundled data.
        bad_share: share of the files that may be unreadable; in small sets up to 3 are borne.
        model_args: further arguments of the architecture.
        actions: of actions: annotations to test on; by default the run's own. `--actions.detections none` tests on the
            annotated boxes.
        per_class: list the classes also where there are more than 20 of them.
        out: folder for per_class.csv, confusion.csv and confusion.png; of actions, for predictions.csv (as AVA
            submissions are) and detection.json.
        json: print one JSON object in place of the table.

    Returns:
        top1, top5, mean_per_class and loss, in percent and nats, with the number of images, and of views of each; and
        per_class, where it is listed: samples, accuracy, precision and the class most often mistaken for. Of actions,
        map and the ap of each in percent, with the number of boxes, key frames and unreadable ones.
    """
    values = dict(locals())
    defaults = {name: option.default for name, option in options_of("evaluate").items()}
    model = absolute_model(model) if "~" in model else model
    run = find_run(model) if Path(model).is_dir() else None
    if run is not None and run.config.get("task") == "actions":
        unused = ("per_class", "keep", "clips", "crops", "sampling", "image_size", "crop_pct", "model_args")
        refuse_without_effect(values, defaults, unused, "on a run of finetune --task actions")
        return _actions(
            run,
            data=data,
            files=actions,
            checkpoint=checkpoint,
            stride=stride,
            batch_size=batch_size,
            device=device,
            workers=workers,
            bad_share=bad_share,
            out=out,
            as_json=json,
        )
    refuse_classes(model_args, "model_args")
    refuse_without_effect(values, defaults, ("actions",), "unless the model is a run of finetune --task actions")
    subject = open_subject(
        model,
        data=data,
        checkpoint=checkpoint,
        image_size=image_size,
        crop_pct=crop_pct,
        model_args=model_args,
        clips=clips,
        crops=crops,
        stride=stride,
        sampling=sampling,
    )
    backbone, source = subject.backbone, subject.source
    if not backbone.num_classes:
        raise UserError(
            f"{model} has no classifier to evaluate", remedy="Fine-tune it, or look at its features with knn or probe"
        )
    order = class_order(backbone, source.classes, source.name)
    check_keep(backbone, keep)
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise UserError("out must be a folder", f"the file {out}")
    reader = Reader(subject, batch_size=batch_size, device=device, workers=workers, bad_share=bad_share)
    result, confusion = _accuracy(reader, keep, order)
    result = {"model": model, "data": source.name, **result}
    if per_class or len(source.classes) <= LISTED:
        result["per_class"] = confusion.per_class()
    if out is not None:
        result["out"] = str(_write(confusion, Path(out)))
    _show(result, json)
    return result


def _write(confusion: Confusion, folder: Path) -> Path:
    from vitdistill.files import write_atomically
    from vitdistill.reporting.galleries.confusion import confusion_figure
    from vitdistill.runs.directory import list_in_run

    rows = confusion.per_class()
    texts = {"per_class.csv": table(rows, list(rows[0])), "confusion.csv": confusion.csv()}
    for name, text in texts.items():
        write_atomically(folder / name, lambda file, text=text: file.write(text.encode(errors="surrogateescape")))
    picture = confusion_figure(confusion)
    write_atomically(folder / "confusion.png", lambda file: picture.savefig(file, format="png", dpi=150))
    list_in_run(*(folder / name for name in (*texts, "confusion.png")))
    return folder


def check_keep(network: Network, keep: int | float) -> None:
    """Refuse to leave out patches of networks without attention."""
    if not isinstance(keep, float) or keep != 1:
        backbone = with_tokens(network)
        keep_count(keep, backbone.grid.count)
        backbone.saliency_capture()


def _accuracy(reader: Reader, keep: int | float, order: tuple[Any, ...] | None) -> tuple[dict[str, Any], Confusion]:
    """Metrics of a model whose scores `order` puts into that of the data's classes."""
    backbone, source = reader.subject.backbone, reader.subject.source
    views = reader.subject.options.clips * reader.subject.options.crops
    backbone.eval().to(reader.place)
    corrupt, scores, targets = CorruptLog.of(source.val, reader.bad_share), [], []
    for images, labels_of_batch in reader.batches(source.val, corrupt, "evaluating"):
        logits = class_scores(backbone, images, keep).float().cpu()
        logits = logits if order is None else logits[:, list(order)]
        scores.append(logits.log_softmax(dim=1) if views == 1 else averaged(logits, views))
        assert labels_of_batch is not None  # labelled data was opened
        targets.append(labels_of_batch)
    log_probabilities, labels = torch.cat(scores), torch.cat(targets)
    task = Classification(len(source.classes))
    result: dict[str, Any] = {"sample_word": source.val.word}
    for name, metric in task.metrics().items():
        metric.update(preds=log_probabilities, target=labels)
        result[name] = round(100 * float(metric.compute()), 4)
    confusion = Confusion.between(labels, log_probabilities.argmax(dim=1), source.classes)
    result[MEAN_PER_CLASS] = round(100 * confusion.mean_per_class, 4)
    result["loss"] = float(torch.nn.functional.nll_loss(log_probabilities, labels))
    counts = {"classes": task.classes, "images": len(labels), "views": views, "unreadable": len(corrupt.paths)}
    return {**result, **counts}, confusion


def averaged(logits: Float[Tensor, "bv c"], views: int) -> Float[Tensor, "b c"]:
    """Logarithm of the mean of the views' probabilities (averaged after the softmax, as VideoMAE and MVD do)."""
    return logits.log_softmax(dim=1).unflatten(0, (-1, views)).logsumexp(dim=1) - math.log(views)


@torch.inference_mode()
def class_scores(backbone: Network, images: torch.Tensor, keep: int | float) -> torch.Tensor:
    """The logits of a batch, of the patches alone to which the network attends where `keep` leaves some out."""
    from vitdistill.tokens.select import top_k

    kept = None
    if isinstance(backbone, Backbone) and (count := keep_count(keep, backbone.grid.count)) < backbone.grid.count:
        ranking = backbone(images, capture=replace(backbone.saliency_capture(), head=False))
        kept = top_k(backbone.saliency(ranking), count)
    logits = backbone(images, keep=kept).prediction
    assert logits is not None
    return logits


def _show(result: dict[str, Any], as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    task = Classification(result["classes"], uneven=True)
    columns = {
        "model": str(result["model"]),
        "data": result["data"],
        f"{result['sample_word']}s": str(result["images"]),
        "views": str(result["views"]),
        **{heading: f"{result[name]:.2f}" for name, heading in task.headings().items()},
        "loss": f"{result['loss']:.4f}",
    }
    if result["views"] == 1:
        del columns["views"]
    summary = Table(*columns)
    summary.add_row(*columns.values())
    Console().print(summary)
    if "per_class" in result:
        rows = Table("class", "samples", "accuracy %", "precision %", "most often mistaken for")
        for row in result["per_class"]:
            shares = ("-" if row[name] is None else f"{row[name]:.2f}" for name in ("accuracy", "precision"))
            mistaken = f"{row['mistaken_for']} ({row['mistakes']})" if row["mistakes"] else "-"
            rows.add_row(escape(row["class"]), str(row["samples"]), *shares, escape(mistaken))
        Console().print(rows)
    if "out" in result:
        print(f"wrote per_class.csv, confusion.csv and confusion.png into {result['out']}")


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
