"""`vitdistill evaluate`: accuracy on a validation set."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone
from vitdistill.tokens.keep import keep_count
from vitdistill.verbs.common import refuse_unused


def evaluate(
    model: str,
    *,
    data: str | None = None,
    checkpoint: Literal["exported", "last", "best", "ema"] = "exported",
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
    from vitdistill.data.source import open_source

    folder = Path(model)
    config = _run_config(folder)
    source = open_source(data or _data_of(model, config))
    backbone = _load(model, folder, checkpoint, image_size, model_args)
    if backbone.num_classes != len(source.classes):
        raise UserError(
            f"The model must have the classes of the data; {backbone.name} has {backbone.num_classes} and "
            f"{source.name} has {len(source.classes)}"
        )
    augment = _augment(config, source, crop_pct, backbone)
    result = {
        "model": model,
        "data": source.name,
        **_accuracy(backbone, source, augment, keep, batch_size, device, workers),
    }
    _show(result, json)
    return result


def _run_config(folder: Path) -> dict[str, Any]:
    import yaml

    path = folder / "config.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def _data_of(model: str, config: dict[str, Any]) -> str:
    if "data" in config:
        return str(config["data"])
    if model.startswith("digits"):
        return "digits"
    raise UserError("Data must be named for a model that is no run directory", remedy="Give --data")


def _load(model: str, folder: Path, checkpoint: str, image_size: int | None, args: dict[str, Any] | None) -> Backbone:
    from vitdistill.models.build import build
    from vitdistill.models.weights import load_into, read_weights
    from vitdistill.training.checkpoints import load_student

    if checkpoint == "exported":
        return build(model, args=args, image_size=image_size, pretrained=True)
    refuse_unused(
        image_size=(image_size is not None, "the exported student"), model_args=(bool(args), "the exported student")
    )
    if checkpoint in ("last", "best"):
        return load_student(folder / "checkpoints" / f"{checkpoint}.ckpt")
    file = folder / "student_ema.safetensors"
    if not file.is_file():
        raise UserError("Averaged weights exist only for runs with --optim.ema", folder)
    backbone = build(model, args=args, image_size=image_size)
    load_into(backbone.net, read_weights(file), str(file))
    return backbone


def _augment(config: dict[str, Any], source: DataSource, crop_pct: float | None, backbone: Backbone) -> Any:
    """The validation crop: the run's, the bundled data's (none), or the one that the model was published with."""
    from vitdistill.data.recipes import Augment

    published = getattr(backbone.net, "pretrained_cfg", None) or {}
    if config:
        options = dict(config.get("augment") or {})
    elif source.image_size:
        options = {"recipe": "none"}
    else:
        options = {"recipe": "tiny"}
        options |= {key: published[key] for key in ("crop_pct", "interpolation") if published.get(key)}
    if crop_pct is not None:
        options["crop_pct"] = crop_pct
    return Augment(**options)


def _place(device: str) -> torch.device:
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError("The device must exist on this machine", f"{device} ({str(error).splitlines()[0]})") from error
    return torch.device(name)


def _accuracy(
    backbone: Backbone,
    source: DataSource,
    augment: Any,
    keep: int | float,
    batch_size: int,
    device: str,
    workers: int | None,
) -> dict[str, Any]:
    from torchmetrics.functional.classification import multiclass_accuracy

    from vitdistill.data.loading import CorruptLog, default_workers, make_loader
    from vitdistill.data.on_device import OnDevice
    from vitdistill.data.recipes import eval_transform
    from vitdistill.data.sampling import EvalBatchSampler

    if keep_count(keep, backbone.grid.count) < backbone.grid.count or not isinstance(keep, float) or keep != 1:
        backbone.saliency_capture()  # refuses networks without attention
    place = _place(device)
    on_device = OnDevice(augment, backbone.mean, backbone.std, len(source.classes))
    loader = make_loader(
        source.val,
        eval_transform(augment, backbone.image_size),
        EvalBatchSampler(len(source.val), batch_size),
        seed=0,
        num_workers=default_workers(source) if workers is None else workers,
        pin_memory=place.type == "cuda",
    )
    backbone.eval().to(place)
    corrupt, scores, targets = CorruptLog(), [], []
    for batch in loader:
        corrupt.add(batch.skipped)
        corrupt.check(len(source.val))
        if len(batch.images):
            scores.append(_logits(backbone, on_device.eval(batch.images.to(place)), keep).float().cpu())
            targets.append(batch.targets)
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
