"""`vitdistill evaluate`: accuracy on a validation set."""

from dataclasses import replace
from typing import Any

import torch

from vitdistill.data.loading import CorruptLog
from vitdistill.errors import UserError
from vitdistill.evaluation.loading import Checkpoint, Reader, open_subject
from vitdistill.models.backbone import Backbone
from vitdistill.tokens.keep import keep_count


def evaluate(
    model: str,
    *,
    data: str | None = None,
    checkpoint: Checkpoint = "exported",
    keep: int | float = 1.0,
    batch_size: int = 128,
    image_size: int | None = None,
    crop_pct: float | None = None,
    device: str = "auto",
    workers: int | None = None,
    model_args: dict[str, Any] | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Top-1 and top-5 accuracy of a run or a model on the validation images.

    Args:
        model: run directory, timm name (pretrained weights are downloaded), name@weights-file, or digits-teacher.
        data: folder with a val/ folder, or a bundled source; by default the run's own data.
        checkpoint: of a run: the exported student, the last or best checkpoint, or the averaged weights.
        keep: evaluate on the patches to which the model itself attends: a count or a fraction; 1.0 takes all.
        batch_size: images per step.
        image_size: input size in pixels; by default the model's.
        crop_pct: share of the resized image that the centre crop keeps; by default that of the run's recipe, or the
            one that the model was published with.
        device: auto, cpu, cuda, ...
        workers: loader processes.
        model_args: further arguments of the architecture.
        json: print one JSON object in place of the table.

    Returns:
        top1, top5 and loss, in percent and nats, with the number of images.
    """
    subject = open_subject(
        model, data=data, checkpoint=checkpoint, image_size=image_size, crop_pct=crop_pct, model_args=model_args
    )
    backbone, source = subject.backbone, subject.source
    if not backbone.num_classes:
        raise UserError(
            f"{model} has no classifier to evaluate", remedy="Fine-tune it, or look at its features with knn or probe"
        )
    if backbone.num_classes != len(source.classes):
        raise UserError(
            f"The model must have the classes of the data; {backbone.name} has {backbone.num_classes} and "
            f"{source.name} has {len(source.classes)}"
        )
    _check_keep(backbone, keep)
    reader = Reader(subject, batch_size=batch_size, device=device, workers=workers)
    result = {"model": model, "data": source.name, **_accuracy(reader, keep)}
    _show(result, json)
    return result


def _check_keep(backbone: Backbone, keep: int | float) -> None:
    """Refuse to leave out patches of networks without attention."""
    if keep_count(keep, backbone.grid.count) < backbone.grid.count or not isinstance(keep, float) or keep != 1:
        backbone.saliency_capture()


def _accuracy(reader: Reader, keep: int | float) -> dict[str, Any]:
    from torchmetrics.functional.classification import multiclass_accuracy

    backbone, source = reader.subject.backbone, reader.subject.source
    backbone.eval().to(reader.place)
    corrupt, scores, targets = CorruptLog(), [], []
    for images, labels_of_batch in reader.batches(source.val, corrupt, "evaluating"):
        scores.append(_logits(backbone, images, keep).float().cpu())
        targets.append(labels_of_batch)
    logits, labels = torch.cat(scores), torch.cat(targets)
    classes = len(source.classes)
    result: dict[str, Any] = {
        f"top{k}": round(
            100 * float(multiclass_accuracy(logits, labels, classes, top_k=min(k, classes), average="micro")), 4
        )
        for k in (1, 5)
    }
    result["loss"] = float(torch.nn.functional.cross_entropy(logits, labels))
    return {**result, "images": len(labels), "unreadable": len(corrupt.paths)}


@torch.inference_mode()
def _logits(backbone: Backbone, images: torch.Tensor, keep: int | float) -> torch.Tensor:
    from vitdistill.tokens.select import top_k

    count = keep_count(keep, backbone.grid.count)
    kept = None
    if count < backbone.grid.count:
        ranking = backbone(images, capture=replace(backbone.saliency_capture(), logits=False))
        kept = top_k(backbone.saliency(ranking), count)
    logits = backbone(images, keep=kept).logits
    assert logits is not None
    return logits


def _show(result: dict[str, Any], as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "data", "images", "top-1 %", "top-5 %", "loss")
    table.add_row(
        str(result["model"]),
        result["data"],
        str(result["images"]),
        f"{result['top1']:.2f}",
        f"{result['top5']:.2f}",
        f"{result['loss']:.4f}",
    )
    Console().print(table)
