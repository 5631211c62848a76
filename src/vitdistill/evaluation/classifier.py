"""How often a classifier is right on a validation set, over all classes and for each."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from vitdistill.data.loader import CorruptLog
from vitdistill.evaluation.loading import Reader
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.tasks.classification import MEAN_PER_CLASS, Classification
from vitdistill.tasks.confusion import Confusion
from vitdistill.tokens.keep import keep_count
from vitdistill.tokens.select import top_k

# From images or views (b * views, ...) and the class numbers (b,) to log-probabilities (b, c).
Answer = Callable[[Tensor, Tensor], Tensor]


def accuracy(reader: Reader, answer: Answer) -> tuple[dict[str, Any], Confusion]:
    """Metrics in percent, the loss in nats and counts of samples; and which classes were taken for which.

    Args:
        reader: of labelled images or videos.
        answer: the classifier, in the order of the data's classes.
    """
    source, options = reader.subject.source, reader.subject.options
    corrupt, scores, targets = CorruptLog.of(source.val, reader.bad_share), [], []
    for images, labels_of_batch in reader.batches(source.val, corrupt, "evaluating"):
        assert labels_of_batch is not None  # labelled data was opened
        scores.append(answer(images, labels_of_batch).cpu())
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
    counts = {
        "classes": task.classes,
        "images": len(labels),
        "views": options.clips * options.crops,
        "unreadable": len(corrupt.paths),
    }
    return {**result, **counts}, confusion


@torch.inference_mode()
def log_probabilities(
    network: Teacher, images: Float[Tensor, "bv ch *pixels"], views: int = 1, keep: Int64[Tensor, "bv k"] | None = None
) -> Float[Tensor, "b c"]:
    """What a classifier says of each sample.

    Args:
        network: frozen, its scores in the order of the data's classes.
        images: or clips; all views of one sample after each other.
        views: of each sample.
        keep: patches that it sees; None for all.
    """
    logits = network(images, keep=keep).prediction
    assert logits is not None
    return logits.log_softmax(dim=1) if views == 1 else averaged(logits, views)


def averaged(logits: Float[Tensor, "bv c"], views: int) -> Float[Tensor, "b c"]:
    """Logarithm of the mean of the views' probabilities (averaged after the softmax, as VideoMAE and MVD do)."""
    return logits.log_softmax(dim=1).unflatten(0, (-1, views)).logsumexp(dim=1) - math.log(views)


# --- a network on the patches to which it attends itself, without labels ------------------------------------------


def check_keep(network: Network, keep: int | float) -> None:
    """Refuse to leave out patches of networks without attention."""
    if not isinstance(keep, float) or keep != 1:
        backbone = with_tokens(network)
        keep_count(keep, backbone.grid.count)
        backbone.saliency_capture()


@torch.inference_mode()
def class_scores(backbone: Network, images: torch.Tensor, keep: int | float) -> torch.Tensor:
    """The logits of a batch, of the patches alone to which the network attends where `keep` leaves some out."""
    kept: Int[Tensor, "b k"] | None = None
    if isinstance(backbone, Backbone) and (count := keep_count(keep, backbone.grid.count)) < backbone.grid.count:
        ranking = backbone(images, capture=replace(backbone.saliency_capture(), head=False))
        kept = top_k(backbone.saliency(ranking), count)
    logits = backbone(images, keep=kept).prediction
    assert logits is not None
    return logits
