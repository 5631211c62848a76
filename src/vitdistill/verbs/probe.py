"""`vitdistill probe`: linear probe of a frozen network."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from vitdistill.errors import UserError, refuse_given
from vitdistill.evaluation.features import Pool, extract, pooled, pooling_of
from vitdistill.evaluation.linear import LEARNING_RATES, Heads, check_options, fit_probe
from vitdistill.evaluation.loading import Checkpoint, Reader, Subject, data_of, open_subject, run_of
from vitdistill.models.names import ModelName
from vitdistill.models.network import Network
from vitdistill.runs.directory import RunDirectory
from vitdistill.verbs.arguments import Data


def probe(
    model: ModelName,
    *,
    data: Data | None = None,
    out: str | None = None,
    overwrite: bool = False,
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
    bad_share: float = 0.01,
    model_args: dict[str, Any] | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Train a linear classifier on the frozen features of a network, which are computed once.

    One classifier per learning rate is trained, all at once; the best on a tenth of the training images, held out,
    says which learning rate to use, and is trained again on all of them. Images are not augmented, so published
    probes, which flip and crop at random, may score a little higher.

    Args:
        model: run directory, timm name (pretrained weights are downloaded), name@weights-file, or a bundled name.
        data: folder with train/ and val/, a container such as torchvision:CIFAR10, or a bundled source; by default the
            run's own data.
        out: run directory to make of the frozen network and its new classifier: a model for --teacher, evaluate,
            predict, export and finetune.
        overwrite: replace the run in `out`.
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
        workers: loader processes; by default one per core up to 8, and none for bundled data.
        bad_share: share of the files that may be unreadable; in small sets up to 3 are borne.
        model_args: further arguments of the architecture.
        json: print one JSON object in place of the table.

    Returns:
        Under `scores` top1 and top5 on validation in percent; the lr chosen, its held_out_top1 in percent (None for a
        single lr), the same of every lr tried, and the number of images.

    Raises:
        UserError: when no class has two training images to choose the lr by, no lr converges, the model has no
            encoder or no such pooling, or what was fitted cannot be kept as a network of timm.
    """
    values = {name: value for name, value in locals().items() if name not in ("json", "overwrite")}
    refuse_given({"overwrite": overwrite and out is None}, "without --out")
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
    keeps = None
    if out is not None:
        values["data"] = data or data_of(model, run_of(model)[1])
        keeps = RunDirectory.prepare(out, "probe", values, resume=False, overwrite=overwrite)
        channels = _features(subject.backbone, pool).shape[1]
        _with_head(subject, pool, torch.ones(len(source.classes), channels) / channels)  # refuses before the work
    reader = Reader(subject, batch_size=feature_batch_size, device=device, workers=workers, bad_share=bad_share)
    train = extract(reader, source.train, pool, f"training {source.train.word}s")
    val = extract(reader, source.val, pool, f"validation {source.val.word}s")
    head, found = fit_probe(
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
    if keeps is not None:
        _keep(keeps, subject, pool, head, result)
    _show(result, json, len(source.classes), source.val.word)
    return result


@torch.inference_mode()
def _features(network: Network, pool: Pool) -> torch.Tensor:
    """Of two inputs of noise."""
    place = next(network.parameters()).device
    inputs = torch.randn(2, *network.input.shape, generator=torch.Generator().manual_seed(0)).to(place)
    return pooled(network.eval(), inputs, pool).float().cpu()


def _with_head(subject: Subject, pool: Pool, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Network:
    """The probed network with the fitted classifier; checked to give the scores of the probe.

    Raises:
        UserError: when it does not.
    """
    from vitdistill.models.surgery.linear_head import with_linear_head

    body, pooling = subject.backbone, pooling_of(subject.backbone, pool)
    bias = torch.zeros(len(weight)) if bias is None else bias
    network = with_linear_head(body, pooling, weight, bias)
    inputs = torch.randn(2, *body.input.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        scores = network(inputs).prediction
        wanted = _features(body, pool) @ weight.cpu().T + bias.cpu()
    assert scores is not None
    if not torch.allclose(scores, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max().clamp(min=1))):
        raise UserError(f"The classifier of {body.name} must read the features that were probed", f"pool {pooling}")
    return network


def _keep(run: RunDirectory, subject: Subject, pool: Pool, head: Heads, result: dict[str, Any]) -> None:
    """Write the frozen network and its classifier as a finished run."""
    from vitdistill.costing.measure import hardware
    from vitdistill.files import WEIGHTS
    from vitdistill.models.record import record_of
    from vitdistill.tasks.classification import Classification
    from vitdistill.training.summary import describe, versions
    from vitdistill.training.train import export_weights

    source, network = subject.source, _with_head(subject, pool, *head.layer())
    record = record_of(network.net)
    record.classes = list(source.classes)
    record.preprocessing = source.val.preprocessing(network.input, subject.options)
    record.mean, record.std = list(network.input.mean), list(network.input.std)
    run.begin()
    record.write(run.path)
    export_weights(network.net.state_dict(), run.path / WEIGHTS, record)
    run.wrote(WEIGHTS)
    sizes = {"train_images": len(source.train), "val_images": len(source.val), "classes": len(source.classes)}
    run.update(
        student=describe(network),
        teacher=None,
        teachers=[],
        data={"name": source.name, **sizes},
        hardware=hardware(),
        versions=versions(),
        seed=result["seed"],
        epochs=result["epochs"],
        metrics=Classification.columns,
        score=Classification.score,
        score_per_sample=Classification.per_sample,
        accuracy=result["scores"],
        cost={"student_gmacs_full_per_image": network.macs().total / 1e9},
        status="finished",
    )


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
