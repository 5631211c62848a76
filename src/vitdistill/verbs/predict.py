"""`vitdistill predict`: classes and probabilities of images and videos; masks by networks that label pixels."""

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset

from vitdistill.data.segments.files import SegmentTest
from vitdistill.errors import UserError, refuse_without_effect
from vitdistill.evaluation.classifier import averaged, check_keep, class_scores
from vitdistill.evaluation.files import open_files, read_files, reader_of
from vitdistill.evaluation.loading import Checkpoint, load, run_of, task_of_model
from vitdistill.models.classes import class_names
from vitdistill.models.names import ModelName
from vitdistill.models.network import Network
from vitdistill.models.record import has_new_head, record_of
from vitdistill.runs.directory import list_in_run
from vitdistill.runs.read import find_run
from vitdistill.tasks import test_batch_of
from vitdistill.verbs.common import refuse_classes
from vitdistill.verbs.predict_boxes import predict_boxes
from vitdistill.verbs.rows import Format, RowWriter
from vitdistill.verbs.signatures import options_of

log = logging.getLogger(__name__)

# What means something for classes of whole files only, for boxes and for masks only; and what a task does not read.
OF_CLASSES = ("top", "keep", "clips", "crops", "stride", "sampling", "image_size", "crop_pct", "model_args")
OF_BOXES, OF_MASKS = ("threshold", "draw"), ("segments",)
UNREAD = {
    "boxes": (*OF_CLASSES, *OF_MASKS),
    "segmentation": (*OF_CLASSES, *OF_BOXES, "format", "workers"),
}


def predict(
    model: ModelName,
    files: list[str],
    *,
    top: int = 5,
    format: Format | None = None,
    out: str | None = None,
    checkpoint: Checkpoint = "exported",
    keep: int | float = 1.0,
    clips: int = 1,
    crops: Literal[1, 3] = 1,
    stride: int | None = None,
    sampling: Literal["dense", "uniform"] | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    crop_pct: float | None = None,
    device: str = "auto",
    workers: int | None = None,
    model_args: dict[str, Any] | None = None,
    threshold: float = 0.5,
    draw: str | None = None,
    segments: SegmentTest = SegmentTest(),
) -> list[dict[str, Any]]:
    """The most probable classes of images and videos, which are made ready as in the model's own evaluation; by a
    detector, the objects in images.

    Files are read in order and batch by batch. One that cannot be read is named in one line and left out; it is an
    error only when none can be read.

    By a network that labels pixels a mask is made of each image, at its own size: --out is a folder then, for a PNG of
    class numbers, the colours of the classes over the image, and shares.csv.

    Args:
        model: run directory, timm name (pretrained weights are downloaded), name@weights-file, or a bundled name.
        files: images, videos, and folders of them at any depth. Networks over clips take videos and folders of frames;
            those over images see the middle frame of a video, those over spectrograms take sounds.
        top: how many classes of each file are named, the most probable first.
        format: table, csv or json; by default what the ending of --out says, else a table.
        out: file to write in place of printing; rows are written as they come. Of masks, the folder to write.
        checkpoint: of a run: the exported student, the last or best checkpoint, or the averaged weights.
        keep: predict from the patches to which the model itself attends: a count or a fraction; 1.0 takes all.
        clips: of videos: clips spread over each video, whose probabilities are averaged.
        crops: of videos: 1 takes the centre of each clip, 3 both ends of the longer edge and the centre.
        stride: of videos: frames from one frame of a dense clip to the next; by default as in training.
        sampling: of videos: dense or uniform; by default as in training.
        batch_size: images, or views of videos, per step; by default 64, and 8 of boxes and segmentation.
        image_size: input size in pixels; by default the model's.
        crop_pct: share of the resized image that the centre crop keeps; by default as in the model's evaluation.
        device: auto, cpu, cuda, ...
        workers: loader processes; by default one per core up to 8, and none for bundled data or a single batch.
        model_args: further arguments of the architecture.
        threshold: of detectors: least score of an object that is named.
        draw: of detectors: folder for the pictures with boxes drawn into them.
        segments: of masks: where windows lie (stride), and whether several sizes (test_ratios) and mirror images
            (test_flip) are averaged; by default as in the model's own evaluation.

    Returns:
        A row for each readable file, in order: path; label, class (its number) and probability of the most probable
        class; and under `top` the same three of each of the `top` classes. Of a detector, a row for each object: path,
        label, class, score, and x1, y1, x2, y2 in pixels. Of masks: path, mask and overlay (files), and shares of
        the classes.

    Raises:
        UserError: when the model has no classifier, or no file can be read.
    """
    values = dict(locals())
    refuse_classes(model_args, "model_args")
    task = task_of_model(model, image_size, model_args)
    if batch_size is None:
        batch_size = values["batch_size"] = test_batch_of(task, 64)
    unread = UNREAD.get(task, ())
    of_run = Path(model).is_dir() and find_run(model) is not None
    if not of_run:  # what builds a network is read of all of them
        unread = tuple(name for name in unread if name not in ("image_size", "model_args"))
    defaults = {name: option.default for name, option in options_of("predict").items()}
    on = f"on a run with --task {task}" if of_run else f"on a network whose task is {task}"
    refuse_without_effect(values, defaults, unread, on)
    if task in UNREAD:
        return _of_task(task, values)
    refuse_without_effect(values, defaults, OF_BOXES, "unless the model is a detector")
    refuse_without_effect(values, defaults, OF_MASKS, "unless the model labels pixels")
    if top < 1:
        raise UserError("top must be at least 1", top)
    writer = RowWriter(out, format)
    subject = open_files(
        model,
        files,
        checkpoint=checkpoint,
        image_size=image_size,
        crop_pct=crop_pct,
        model_args=model_args,
        clips=clips,
        crops=crops,
        stride=stride,
        sampling=sampling,
    )
    network = subject.backbone
    if not network.num_classes:
        raise UserError(f"{model} has no classifier to predict with", remedy="Fine-tune it, or use `vitdistill embed`")
    if has_new_head(network.net):
        remedy = "Fine-tune it, or use `vitdistill embed`"
        raise UserError(f"The classifier of {network.name} is new and has random weights", remedy=remedy)
    check_keep(network, keep)
    reader = reader_of(subject, batch_size=batch_size, device=device, workers=workers)
    network.eval().to(reader.place)
    names = _labels(network)
    rows: list[dict[str, Any]] = []
    with writer:
        for paths, inputs in read_files(reader, "predicting"):
            logits = class_scores(network, inputs, keep).float()
            if not logits.isfinite().all():
                raise UserError(
                    f"The scores of {network.name} must be finite", "nan or inf", "Its training has diverged"
                )
            probabilities = averaged(logits, clips * crops).exp().cpu()
            found = [_row(path, each, names, top) for path, each in zip(paths, probabilities, strict=True)]
            writer.write([_flat(row) for row in found] if writer.format != "json" else found)
            rows += found
    if out is not None:
        list_in_run(Path(out).expanduser())
        print(f"wrote {len(rows)} rows to {out}")
    return rows


def _of_task(task: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Objects in images, or masks of them in a folder."""
    model, out = values["model"], values["out"]
    if task == "segmentation" and out is None:
        raise UserError("--out must name a folder for the masks", remedy="For example --out masks")
    writer = RowWriter(out, values["format"]) if task == "boxes" else None
    _, config = run_of(model)
    network = load(model, Path(model), values["checkpoint"], values["image_size"], values["model_args"])
    shared = {"config": config, "batch_size": values["batch_size"], "device": values["device"]}
    if writer is not None:
        options = {name: values[name] for name in (*OF_BOXES, "workers")}
        return predict_boxes(network, values["files"], writer, **options, **shared)
    from vitdistill.evaluation.segments import label_files

    rows = label_files(network, values["files"], out=out, segments=values["segments"], **shared)
    print(f"wrote {len(rows)} masks, with shares.csv, to {out}")
    return rows


def _labels(network: Network) -> list[str]:
    """A name for each class: as recorded, in words for ImageNet's of networks that timm publishes, else its number."""
    names = class_names(network)
    if not names:
        log.warning("The names of the classes of %s are not known, so they are called by their numbers", network.name)
        return [str(number) for number in range(network.num_classes)]
    trained_here = record_of(network.net).preprocessing
    subset = None if trained_here else infer_imagenet_subset(network.net)
    words: Any = {} if subset is None else ImageNetInfo(subset).label_descriptions(as_dict=True)
    return [words.get(name, name) for name in names]


def _row(path: str, probabilities: torch.Tensor, names: list[str], top: int) -> dict[str, Any]:
    best = probabilities.topk(min(top, len(names)))
    ranked = [
        {"label": names[number], "class": number, "probability": round(value, 6)}
        for number, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return {"path": path, **ranked[0], "top": ranked}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of columns: path, label, probability, and label_2, probability_2, ... of the next classes."""
    cells = {"path": row["path"], "label": row["label"], "probability": row["probability"]}
    for rank, each in enumerate(row["top"][1:], start=2):
        cells |= {f"label_{rank}": each["label"], f"probability_{rank}": each["probability"]}
    return cells
