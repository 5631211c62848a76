"""`vitdistill knn`: k-nearest-neighbour accuracy of a frozen network, without training anything."""

from collections.abc import Sequence
from typing import Any, Literal

from vitdistill.evaluation.features import Pool, extract, pooling_of
from vitdistill.evaluation.loading import Checkpoint, Reader, open_subject
from vitdistill.evaluation.neighbours import check_votes, knn_accuracy
from vitdistill.models.names import ModelName
from vitdistill.verbs.arguments import Data


def knn(
    model: ModelName,
    *,
    data: Data | None = None,
    checkpoint: Checkpoint = "exported",
    pool: Pool = "auto",
    k: int | Sequence[int] = (10, 20),
    temperature: float = 0.07,
    batch_size: int = 128,
    image_size: int | None = None,
    crop_pct: float | None = None,
    stride: int | None = None,
    sampling: Literal["dense", "uniform"] | None = None,
    device: str = "auto",
    workers: int | None = None,
    bad_share: float = 0.01,
    model_args: dict[str, Any] | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Classify the validation images by the training images whose frozen features are most similar (as in DINO).

    Training images are resized and cropped as for validation. A network without a classifier will do; the classifier
    of one that has it is not used.

    Args:
        model: run directory, timm name (pretrained weights are downloaded), name@weights-file, or a bundled name.
        data: folder with train/ and val/, a container such as torchvision:CIFAR10, or a bundled source; by default the
            run's own data.
        checkpoint: of a run: the exported student, the last or best checkpoint, or the averaged weights.
        pool: features are the class token (cls) or the mean over the patches (avg); auto takes the class token where
            the network's own head reads it, and the mean elsewhere.
        k: how many nearest training images vote; one number or several, such as [10,20].
        temperature: votes weigh exp(cosine similarity / temperature).
        batch_size: images per step through the network.
        image_size: input size in pixels; by default the model's.
        crop_pct: share of the resized image that the centre crop keeps; by default that of the run's recipe, or the
            one that the model was published with.
        stride: of videos: frames from one frame of a dense clip to the next; by default the run's.
        sampling: of videos: dense or uniform; by default the run's.
        device: auto, cpu, cuda, ...
        workers: loader processes; by default one per core up to 8, and none for bundled data.
        bad_share: share of the files that may be unreadable; in small sets up to 3 are borne.
        model_args: further arguments of the architecture.
        json: print one JSON object in place of the table.

    Returns:
        Under `scores` one dict per k with k, top1 and top5, in percent; the number of images voting and classified.

    Raises:
        UserError: when k is above the number of training images, or the model has no encoder or no such pooling.
    """
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
    ks = [k] if isinstance(k, int) else list(k)
    check_votes(ks, temperature, len(source.train))
    reader = Reader(subject, batch_size=batch_size, device=device, workers=workers, bad_share=bad_share)
    train = extract(reader, source.train, pool, f"training {source.train.word}s")
    val = extract(reader, source.val, pool, f"validation {source.val.word}s")
    scores = knn_accuracy(
        *train.to(reader.place),
        *val.to(reader.place),
        len(source.classes),
        k=ks,
        temperature=temperature,
    )
    result = {
        "model": model,
        "data": source.name,
        "pool": pooling_of(subject.backbone, pool),
        "features": train.values.shape[1],
        "temperature": temperature,
        "scores": scores,
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

    tops = Classification(classes).headings()
    table = Table("model", "data", f"{word}s", "pool", "k", *tops.values())
    for score in result["scores"]:
        table.add_row(
            result["model"],
            result["data"],
            str(result["images"]),
            result["pool"],
            str(score["k"]),
            *(f"{score[name]:.2f}" for name in tops),
        )
    Console().print(table)
