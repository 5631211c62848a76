"""`vitdistill frame_map`: what a run of `detect` scores, and its predictions as a file."""

import json as json_format
from pathlib import Path
from typing import Any

import torch

from vitdistill.data.actions.annotations import ActionData, Annotations, open_annotations
from vitdistill.data.actions.key_frames import KeyFrameTransform, Movies
from vitdistill.data.clips.sampling import Sampling
from vitdistill.errors import UserError
from vitdistill.evaluation.loading import Checkpoint
from vitdistill.models.families.video_vit import VideoViT

PREDICTIONS, RESULT = "predictions.csv", "detection.json"
NO_DETECTIONS = "none"
# Options of a run that a test may change; what is None is as it was in training.
OPTIONS = ("videos", "val", "labels", "evaluated", "detections", "excluded", "threshold", "start", "frame_rate")


def frame_map(
    model: str,
    *,
    videos: str | None = None,
    val: str | None = None,
    labels: str | None = None,
    evaluated: str | None = None,
    detections: str | None = None,
    excluded: str | None = None,
    threshold: float | None = None,
    start: float | None = None,
    frame_rate: float | None = None,
    checkpoint: Checkpoint = "exported",
    batch_size: int = 16,
    device: str = "auto",
    workers: int | None = None,
    out: str | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Frame mAP at IoU 0.5 of a run of `detect`, in all and per action, in float32.

    Args:
        model: run directory of detect.
        videos: folder of the videos; by default the run's, as everything below.
        val: annotations in AVA's csv format to score against.
        labels: label map of all actions.
        evaluated: label map of the actions that count.
        detections: boxes of a person detector in AVA's csv format; none tests on the annotated boxes.
        excluded: csv file of key frames that do not count.
        threshold: lowest score of a detection.
        start: second of the movie at which the files begin.
        frame_rate: frames per second of folders of frames.
        checkpoint: the exported network, the last or best checkpoint, or the averaged weights.
        batch_size: clips per step.
        device: auto, cpu, cuda, ...
        workers: loader processes.
        out: folder for predictions.csv (as AVA submissions are) and detection.json; by default nothing is written.
        json: print one JSON object in place of the table.

    Returns:
        map in percent; ap in percent (None where nothing is annotated) and the number of boxes of every action; how
        many key frames and boxes there were, and how many key frames were unreadable.
    """
    given = dict(locals())
    from vitdistill.evaluation.loading import load, place_of, run_config

    folder = Path(model)
    config = run_config(folder)
    if "detections" not in config:
        raise UserError("frame_map tests a run of detect", f"'{model}'", "Make one with `vitdistill detect`")
    options = {name: config[name] if given[name] is None else given[name] for name in OPTIONS}
    if detections == NO_DETECTIONS:
        options |= {"detections": None, "threshold": Annotations.threshold if threshold is None else threshold}
    network = load(model, folder, checkpoint, None, None)
    assert isinstance(network, VideoViT)
    movies = Movies(Path(options.pop("videos")), options.pop("start"), options.pop("frame_rate"))
    data = open_annotations(Annotations(**options, classes=network.num_classes), movies)
    result = score(network, data, config["stride"], batch_size, place_of(device), workers, out)
    result = {"model": model, "val": options["val"], **result}
    _show(result, json)
    return result


def score(
    network: VideoViT,
    data: ActionData,
    stride: int,
    batch_size: int,
    place: torch.device,
    workers: int | None,
    out: str | Path | None,
    total: int | None = None,
) -> dict[str, Any]:
    """Test a network on the key frames to validate on, in this process alone.

    Args:
        network: that `detect` trained.
        data: whose key frames.
        stride: frames from one frame of a clip to the next.
        batch_size: clips per step.
        place: the device.
        workers: loader processes; None chooses.
        out: folder for the predictions and the result, or None.
        total: key frames of which 1% may be unreadable; None means those to validate on.

    Raises:
        UserError: when the network has other classes than the data, or too much is unreadable.
    """
    from vitdistill.data.actions.ava import write_predictions
    from vitdistill.data.device import OnDevice
    from vitdistill.data.images.augment import Augment
    from vitdistill.data.loader import CorruptLog, default_workers, make_loader
    from vitdistill.data.order import EvalBatchSampler
    from vitdistill.data.source import DataSource
    from vitdistill.evaluation.frame_map import FrameMeanAP, mean_average_precision
    from vitdistill.evaluation.progress import track
    from vitdistill.files import write_atomically
    from vitdistill.methods.detection import Detection
    from vitdistill.runs.directory import list_in_run

    if network.num_classes != len(data.labels):
        raise UserError(
            "The network must have the actions of the label map",
            f"{network.num_classes} and {len(data.labels)}",
            "Give the label map of its training",
        )
    method, metric = Detection(network).eval().to(place), FrameMeanAP(data).to(place)
    on_device = OnDevice(Augment(recipe="none"), network.mean, network.std, len(data.labels))
    source = DataSource("test", data.val, data.val, list(data.labels.values()))
    loader = make_loader(
        data.val,
        KeyFrameTransform(network.image_size, Sampling(frames=network.frames, stride=stride), data.val.most_boxes),
        EvalBatchSampler(len(data.val), batch_size),
        seed=0,
        num_workers=default_workers(source) if workers is None else workers,
        pin_memory=place.type == "cuda",
    )
    corrupt = CorruptLog.of(data.val)
    for batch in track(loader, "testing", len(loader)):
        corrupt.add(batch.skipped)
        corrupt.check(total or len(data.val))
        if len(batch.images):
            targets = batch.targets.to(place)
            with torch.inference_mode():
                logits = method.predict(network, on_device.eval(batch.images.to(place)), targets)
                metric.update(logits, targets, batch.index.to(place))
    precisions = metric.average_precisions()
    result = {
        "map": round(100 * mean_average_precision(precisions), 4),
        "iou": 0.5,
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
        text = json_format.dumps(result, indent=2) + "\n"
        write_atomically(Path(out) / RESULT, lambda file: file.write(text.encode()))
        list_in_run(Path(out) / PREDICTIONS, Path(out) / RESULT)
    return result


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json_format.dumps(result))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "action", "annotated", "AP %")
    for action in result["actions"]:
        ap = "-" if action["ap"] is None else f"{action['ap']:.2f}"
        table.add_row(str(action["id"]), action["name"], str(action["annotated"]), ap)
    table.add_section()
    table.add_row(
        "", "mAP at IoU 0.5", str(sum(action["annotated"] for action in result["actions"])), f"{result['map']:.2f}"
    )
    Console().print(table)
