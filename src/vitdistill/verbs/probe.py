"""`vitdistill probe`: linear probe of a frozen network."""

from collections.abc import Sequence
from typing import Any, Literal

from vitdistill.evaluation.features import Pool, extract, pooling_of
from vitdistill.evaluation.linear import LEARNING_RATES, check_options, linear_probe
from vitdistill.evaluation.loading import Checkpoint, Reader, open_subject
from vitdistill.models.names import ModelName


def probe(
    model: ModelName,
    *,
    data: str | None = None,
    checkpoint: Checkpoint = "exported",
    pool: Pool = "auto",
    epochs: int = 100,
    lr: float | Sequence[float] = LEARNING_RATES,
    batch_size: int = 256,
    seed: int = 0,
    feature_batch_size: int = 128,
    image_size: int | None = None,
    crop_pct: float | None = None,
    stride: int | None = None,
    sampling: Literal["dense", "uniform"] | None = None,
    device: str = "auto",
    workers: int | None = None,
    model_args: dict[str, Any] | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Train a linear classifier on the frozen features of a network, which are computed once.

    One classifier per learning rate is trained, all at once; the best on a tenth of the training images, held out,
    says which learning rate to use, and is trained again on all of them. Images are not augmented, so published
    probes, which flip and crop at random, may score a little higher.

    Args:
        model: run directory, timm name (pretrained weights are downloaded), name@weights-file, or a bundled name.
        data: folder with train/ and val/, or a bundled source; by default the run's own data.
        checkpoint: of a run: the exported student, the last or best checkpoint, or the averaged weights.
        pool: features are the class token (cls) or the mean over the patches (avg); auto takes the class token where
            the network's own head reads it, and the mean elsewhere.
        epochs: passes over the features of the training images.
        lr: learning rates to choose from, at the start of the cosine, for this batch size; a single one, such as 0.1,
            is taken as it is and nothing is held out.
        batch_size: images per step of the linear classifier.
        seed: of the held-out images and of the order of training.
        feature_batch_size: images per step through the frozen network.
        image_size: input size in pixels; by default the model's.
        crop_pct: share of the resized image that the centre crop keeps; by default that of the run's recipe, or the
            one that the model was published with.
        stride: of videos: frames from one frame of a dense clip to the next; by default the run's.
        sampling: of videos: dense or uniform; by default the run's.
        device: auto, cpu, cuda, ...
        workers: loader processes.
        model_args: further arguments of the architecture.
        json: print one JSON object in place of the table.

    Returns:
        Under `scores` top1 and top5 on validation in percent; the lr chosen, its held_out_top1 in percent (None for a
        single lr), the same of every lr tried, and the number of images.

    Raises:
        UserError: when no class has two training images to choose the lr by, no lr converges, or the model has no
            encoder or no such pooling.
    """
    rates = [float(lr)] if isinstance(lr, int | float) else list(lr)
    check_options(rates, epochs, batch_size)
    subject = open_subject(
        model,
        data=data,
        checkpoint=checkpoint,
        image_size=image_size,
        crop_pct=crop_pct,
        model_args=model_args,
        stride=stride,
        sampling=sampling,
    )
    source = subject.source
    reader = Reader(subject, batch_size=feature_batch_size, device=device, workers=workers)
    train = extract(reader, source.train, pool, f"training {source.train.word}s")
    val = extract(reader, source.val, pool, f"validation {source.val.word}s")
    found = linear_probe(
        *train.to(reader.place),
        *val.to(reader.place),
        len(source.classes),
        lr=rates,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
    )
    result = {
        "model": model,
        "data": source.name,
        "pool": pooling_of(subject.backbone, pool),
        "features": train.values.shape[1],
        "epochs": epochs,
        "seed": seed,
        "scores": {"top1": found.pop("top1"), "top5": found.pop("top5")},
        **found,
        "train_images": len(train.labels),
        "images": len(val.labels),
        "unreadable": len(train.unreadable) + len(val.unreadable),
    }
    _show(result, json, len(source.classes), source.val.word)
    return result


def _show(result: dict[str, Any], as_json: bool, classes: int, word: str) -> None:
    import json

    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console
    from rich.table import Table

    from vitdistill.tasks.classification import Classification

    held_out = result["held_out_top1"]
    columns = {
        "model": result["model"],
        "data": result["data"],
        f"{word}s": str(result["images"]),
        "pool": result["pool"],
        "lr": f"{result['lr']:g}",
        "held-out %": "-" if held_out is None else f"{held_out:.2f}",
        **{heading: f"{result['scores'][name]:.2f}" for name, heading in Classification(classes).headings().items()},
    }
    table = Table(*columns)
    table.add_row(*columns.values())
    Console().print(table)
