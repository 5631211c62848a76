"""Tests of networks that tell what people do: frame mAP in all and per action, and the predictions as a file."""

import json
from pathlib import Path
from typing import Any

import torch

from vitdistill.data.actions.annotations import ActionData, open_actions
from vitdistill.data.actions.ava import write_predictions
from vitdistill.data.actions.files import ActionFiles
from vitdistill.data.images.augment import Augment
from vitdistill.data.loader import BAD_SHARE, CorruptLog, default_workers, make_loader
from vitdistill.data.order import EvalBatchSampler
from vitdistill.data.samples import ViewOptions
from vitdistill.errors import refuse_given
from vitdistill.evaluation.loading import place_of
from vitdistill.evaluation.progress import track
from vitdistill.files import write_atomically
from vitdistill.models.classes import class_order
from vitdistill.models.families.video_vit import VideoViT, check_video
from vitdistill.runs.directory import list_in_run
from vitdistill.runs.read import Checkpoint, Run
from vitdistill.tasks.actions import Actions
from vitdistill.tasks.frame_map import IOU, FrameMeanAP, mean_average_precision

PREDICTIONS, RESULT = "predictions.csv", "detection.json"


def evaluate_actions(
    run: Run,
    *,
    data: str | None,
    files: ActionFiles,
    checkpoint: Checkpoint,
    stride: int | None,
    batch_size: int,
    device: str,
    workers: int | None,
    out: str | None,
    bad_share: float = BAD_SHARE,
) -> dict[str, Any]:
    """Test a run that was fine-tuned to tell actions, in float32.

    Args:
        run: whose student to test; what is not given below is as it was in training.
        data: folder of the videos.
        files: annotations to test on.
        checkpoint: the exported network, the last or best checkpoint, or the averaged weights.
        stride: frames from one frame of a clip to the next.
        batch_size: clips per step.
        device: auto, cpu, cuda, ...
        workers: loader processes; None chooses.
        out: folder for predictions.csv and detection.json; None writes nothing.
        bad_share: share of the key frames that may be unreadable.

    Returns:
        As `score_actions`, with the model and the annotations.
    """
    network, config = check_video(run.student(checkpoint), "network that detects actions"), run.config
    recorded = {name: value for name, value in (config.get("actions") or {}).items() if name != "train"}
    refuse_given({"actions.train": files.train is not None}, "on a test")
    merged = files.over(recorded)
    found = open_actions(data or config["data"], merged, classes=network.num_classes)
    stride = config.get("stride") if stride is None else stride
    result = score_actions(
        network,
        found,
        stride=stride,
        batch_size=batch_size,
        place=place_of(device),
        workers=workers,
        out=out,
        bad_share=bad_share,
    )
    return {"model": str(run.path), "val": merged.val, **result}


def score_actions(
    network: VideoViT,
    data: ActionData,
    *,
    stride: int | None,
    batch_size: int,
    place: torch.device,
    workers: int | None,
    out: str | Path | None,
    total: int | None = None,
    bad_share: float = BAD_SHARE,
) -> dict[str, Any]:
    """Test a network on the key frames to validate on, in this process alone.

    Args:
        network: with a head for the actions.
        data: whose key frames.
        stride: frames from one frame of a clip to the next; None takes 4.
        batch_size: clips per step.
        place: the device.
        workers: loader processes; None chooses.
        out: folder for the predictions and the result, or None.
        total: key frames of which a share may be unreadable; None means those to validate on.
        bad_share: that share.

    Returns:
        map in percent; ap in percent (None where nothing is annotated) and the number of boxes of every action; how
        many key frames and boxes there were, and how many key frames were unreadable.

    Raises:
        UserError: when the network has other actions than the label map, or too much is unreadable.
    """
    order = class_order(network, list(data.labels.values()), "the label map", role="network")
    task, metric = Actions(data), FrameMeanAP(data).to(place)
    network.eval().to(place)
    spec, options = network.input, ViewOptions(augment=Augment(recipe="none"), stride=stride)
    on_device = data.val.on_device(spec, options, len(data.labels))
    loader = make_loader(
        data.val,
        data.val.transform(spec, options, train=False),
        EvalBatchSampler(len(data.val), batch_size),
        seed=0,
        num_workers=default_workers(data.source("test")) if workers is None else workers,
        pin_memory=place.type == "cuda",
    )
    corrupt = CorruptLog.of(data.val, bad_share)
    for batch in track(loader, "testing", len(loader)):
        corrupt.add(batch.skipped)
        corrupt.check(total or len(data.val))
        if len(batch.index):
            assert isinstance(batch.images, torch.Tensor) and batch.targets is not None
            targets = batch.targets.to(place)
            with torch.inference_mode():
                logits = task.predict(network, on_device.eval(batch.images.to(place)), targets)
                logits = logits if order is None else logits[..., list(order)]
                metric.update(logits, targets, batch.index.to(place))
    precisions = metric.average_precisions()
    result = {
        "map": round(100 * mean_average_precision(precisions), 4),
        "iou": IOU,
        "key_frames": len(data.val),
        "boxes": len(data.val.boxes),
        "unreadable": len(corrupt.paths),
        "actions": [
            {
                "id": action,
                "name": data.labels[action],
                "ap": None if precision is None else round(100 * precision, 4),
                "annotated": int((data.truth.action == action).sum()),
            }
            for action, precision in precisions.items()
        ],
    }
    if out is not None:
        write_predictions(Path(out) / PREDICTIONS, metric.predictions(), dict(enumerate(data.names)))
        text = json.dumps(result, indent=2) + "\n"
        write_atomically(Path(out) / RESULT, lambda file: file.write(text.encode()))
        list_in_run(Path(out) / PREDICTIONS, Path(out) / RESULT)
    return result
