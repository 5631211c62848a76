"""`vitdistill evaluate`: accuracy on a validation set, or frame mAP of a run of `finetune --task actions`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitdistill.data.actions.files import ActionFiles
from vitdistill.data.boxes.files import BoxFiles
from vitdistill.data.segments.files import SegmentTest
from vitdistill.errors import UserError, refuse_without_effect
from vitdistill.evaluation.asked import Criteria, Keeps, masks_of
from vitdistill.models.names import ModelName, absolute_model
from vitdistill.runs.read import Checkpoint, find_run
from vitdistill.tasks import TASKS, test_batch_of
from vitdistill.tokens.merge_schedule import Merge, check_merge
from vitdistill.verbs.arguments import Data
from vitdistill.verbs.evaluate_tasks import LISTED, evaluate_task_of
from vitdistill.verbs.signatures import options_of

if TYPE_CHECKING:
    from vitdistill.tasks.confusion import Confusion


def evaluate(
    model: ModelName,
    *,
    data: Data | None = None,
    checkpoint: Checkpoint = "exported",
    keep: Keeps = 1.0,
    criterion: Criteria = "teacher",
    student: ModelName | None = None,
    merge: Merge | None = None,
    seed: int = 0,
    clips: int = 1,
    crops: Literal[1, 3] = 1,
    stride: int | None = None,
    sampling: Literal["dense", "uniform"] | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    crop_pct: float | None = None,
    device: str = "auto",
    workers: int | None = None,
    bad_share: float = 0.01,
    model_args: dict[str, Any] | None = None,
    actions: ActionFiles = ActionFiles(),
    segments: SegmentTest = SegmentTest(),
    boxes: BoxFiles = BoxFiles(),
    per_class: bool = False,
    out: str | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Top-1 and top-5 accuracy of a run or a model on the validation images or videos, and accuracy per class.

    Of a run of `finetune --task actions` it is frame mAP at IoU 0.5, in all and per action; of a detector COCO's
    average precision, in all and per class, and of a network that labels pixels mean IoU over the classes, mean recall
    and the share of the pixels that are right.

    Args:
        model: run directory, timm name (pretrained weights are downloaded), name@weights-file, or a bundled name.
        data: folder with a val/ folder, a container such as torchvision:CIFAR10, or a bundled source; of actions, the
            folder of videos. By default the run's own.
        checkpoint: of a run: the exported student, the last or best checkpoint, or the averaged weights.
        keep: patches that the model sees: a count (98), a fraction (0.5; 1.0 for all), or several of them
            (0.25,0.5,0.75,1.0), which are compared with the whole image and with what they cost.
        criterion: who ranks the patches: teacher (the model itself, by its attention), random, student, or half by
            one of them and half at random (teacher+random, student+random); or several of them (random,teacher).
        student: of the criteria that name it: run or model whose attention ranks the patches; a bare name is one with
            random weights, as at the start of a training.
        merge: tokens that each block merges (ToMe), in place of masks: a number (8), one that falls to none over the
            blocks (8:-1) or rises (8:1), or one for each block (4,0,2).
        seed: of random masks, and of the weights of a student that has none.
        clips: of videos: test clips spread over each video, whose probabilities are averaged; Kinetics is tested with
            5 clips x 3 crops, Something-Something with 2 x 3.
        crops: of videos: 1 takes the centre of each clip, 3 both ends of the longer edge and the centre.
        stride: of videos: frames from one frame of a dense clip to the next; by default the run's.
        sampling: of videos: dense or uniform; by default the run's.
        batch_size: images, or views of videos, per step, by default 128, and 8 of boxes and segmentation; of the
            latter at several sizes, windows of an image.
        image_size: input size in pixels; by default the model's.
        crop_pct: share of the resized image that the centre crop keeps; by default that of the run's recipe, or the
            one that the model was published with.
        device: auto, cpu, cuda, ...
        workers: loader processes; by default one per core up to 8, and none for bundled data.
        bad_share: share of the files that may be unreadable; in small sets up to 3 are borne.
        model_args: further arguments of the architecture.
        actions: of actions: annotations to test on; by default the run's own. `--actions.detections none` tests on the
            annotated boxes.
        segments: of segmentation: what masks mean and where windows lie; by default as in the run's training, with
            windows that overlap as in the family's publication. `--segments.stride` sets them, `--segments.test_ratios`
            and `--segments.test_flip` average over several sizes and mirror images.
        boxes: of boxes: annotations to test on, and sizes of images; by default the run's own.
        per_class: list the classes also where there are more than 20 of them.
        out: folder for per_class.csv, confusion.csv and confusion.png, and with several masks for masked.csv,
            masked.png and masked.svg; of actions, for predictions.csv (as AVA submissions are) and detection.json; of
            boxes, for per_class.csv and detections.json (COCO's format of results).
        json: print one JSON object in place of the table.

    Returns:
        top1, top5, mean_per_class and loss, in percent and nats, with the number of images, and of views of each; and
        per_class, where it is listed: samples, accuracy, precision and the class most often mistaken for. Where patches
        are left out, also masked: a row for each criterion and number of patches with its metrics, agreement with the
        whole model and cost; of several rows, the rest is of the whole model, and meaning says it in words. Where
        tokens are merged, merged: how many by each block, how many are left, gmacs, and their share of the whole. Of
        actions,
        map and the ap of each in percent, with the number of boxes, key frames and unreadable ones.
    """
    values = dict(locals())
    defaults = {name: option.default for name, option in options_of("evaluate").items()}
    masks = masks_of(values, defaults)  # what the words alone show to be wrong is refused before torch is imported
    check_merge(merge)
    if merge is not None and masks.leave_out:
        raise UserError("--merge and --keep below 1.0 exclude each other", f"--keep {keep}", "Leave out one of them")
    model = absolute_model(model) if "~" in model else model
    run = find_run(model) if Path(model).is_dir() else None
    if run is None:  # what its weights are for is seen in its architecture, which needs torch
        from vitdistill.evaluation.loading import data_of, task_of_model

        if data is None:
            data_of(model, {})  # refused before anything is built
        task = task_of_model(model, image_size, model_args)
    else:
        task = str(run.config.get("task", "classification"))
    if batch_size is None:
        batch_size = values["batch_size"] = test_batch_of(task, 128)
    if task != "classification":
        return evaluate_task_of(task, run, values, defaults)

    import torch

    from vitdistill.evaluation.classifier import accuracy, log_probabilities
    from vitdistill.evaluation.loading import Reader, open_subject
    from vitdistill.evaluation.masked import meaning
    from vitdistill.models.classes import class_order
    from vitdistill.models.merged import Merged
    from vitdistill.models.teacher import Teacher
    from vitdistill.verbs.common import refuse_classes
    from vitdistill.verbs.masked import counted_under

    refuse_classes(model_args, "model_args")
    for name, entry in TASKS.items():
        if entry.files is not None:
            refuse_without_effect(values, defaults, (entry.files,), f"unless the model is a run with --task {name}")
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
    source, views = subject.source, clips * crops
    if not subject.backbone.num_classes:
        raise UserError(
            f"{model} has no classifier to evaluate", remedy="Fine-tune it, or look at its features with knn or probe"
        )
    network = Teacher(subject.backbone if merge is None else Merged.over(subject.backbone, merge))
    order = class_order(subject.backbone, source.classes, source.name)
    network.order = None if order is None else torch.tensor(order)
    masked = None
    if masks.leave_out:
        masked = counted_under(masks, network, student, views=views, seed=seed, image_size=source.image_size)
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise UserError("out must be a folder", f"the file {out}")
    reader = Reader(subject, batch_size=batch_size, device=device, workers=workers, bad_share=bad_share)
    several = masked is not None and len(masked.rows) > 1
    if masked is None:
        result, confusion = accuracy(reader, lambda images, _: log_probabilities(network, images, views))
    else:  # of several masks each has its row, beside the whole model; of one, it is what is evaluated
        result, confusion = accuracy(reader, lambda images, labels: masked.update(images, labels)[0 if several else 1])
    result = {"model": model, "data": source.name, **result}
    if per_class or len(source.classes) <= LISTED:
        result["per_class"] = confusion.per_class()
    if masked is not None:
        result["masked"] = masked.compute()
        if several:
            result["meaning"] = meaning(result["masked"])
    if isinstance(network.network, Merged):
        result["merged"] = network.network.described()
    if out is not None:
        result["out"] = str(_write(confusion, result, Path(out)))
    _show(result, json)
    return result


def _write(confusion: "Confusion", result: dict[str, Any], folder: Path) -> Path:
    from vitdistill.files import write_atomically
    from vitdistill.reporting.galleries.confusion import confusion_figure
    from vitdistill.runs.directory import list_in_run
    from vitdistill.tasks.confusion import table
    from vitdistill.verbs.masked import write_masked

    rows = confusion.per_class()
    texts = {"per_class.csv": table(rows, list(rows[0])), "confusion.csv": confusion.csv()}
    for name, text in texts.items():
        write_atomically(folder / name, lambda file, text=text: file.write(text.encode(errors="surrogateescape")))
    picture = confusion_figure(confusion)
    write_atomically(folder / "confusion.png", lambda file: picture.savefig(file, format="png", dpi=150))
    more = write_masked(result, folder) if "meaning" in result else ()
    list_in_run(*(folder / name for name in (*texts, "confusion.png", *more)))
    return folder


def _show(result: dict[str, Any], as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from vitdistill.tasks.classification import Classification
    from vitdistill.verbs.masked import masked_table, masked_words

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
    if "meaning" in result:
        Console().print(masked_table(result["masked"], task.score, task.columns[task.score]))
        print(result["meaning"])
    elif "masked" in result:
        print(masked_words(result["masked"][0]))
    if "merged" in result:
        print(
            "merging {merge} tokens, block by block: {tokens} of {of} are left; {share:.0%} of the cost".format(
                **result["merged"]
            )
        )
    if "out" in result:
        more = ", masked.csv, masked.png and masked.svg" if "meaning" in result else ""
        files = f"per_class.csv, confusion.csv{', ' if more else ' and '}confusion.png{more}"
        print(f"wrote {files} into {result['out']}")
