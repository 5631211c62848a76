"""Linear probe on frozen features: several learning rates at once, the best one chosen on held-out training images.

As in MAE (appendix A.1, linear probing), features pass a normalisation without affine parameters before the
classifier, and there is no weight decay; SGD stands in for LARS, which only very large batches need.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from vitdistill.errors import UserError
from vitdistill.evaluation.accuracy import hits, percent
from vitdistill.evaluation.progress import track

log = logging.getLogger(__name__)

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
HELD_OUT = 0.1  # share of each class
MOMENTUM = 0.9
EPS = 1e-6  # added to the variance of channels; MAE's BatchNorm has the same
SCORE_ELEMENTS = 2**26  # scores that are held at one time (float32: 256 MiB)


@dataclass(frozen=True)
class Heads:
    """Linear classifiers that share their input.

    Attributes:
        mean, scale: of each channel: the training images' mean and one over their standard deviation.
        weight, bias: of each head.
    """

    mean: Float[Tensor, "d"]
    scale: Float[Tensor, "d"]
    weight: Float[Tensor, "heads d c"]
    bias: Float[Tensor, "heads 1 c"]

    def scores(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "heads b c"]:
        """Logits of every head."""
        return (features - self.mean) * self.scale @ self.weight + self.bias

    def layer(self) -> tuple[Float[Tensor, "c d"], Float[Tensor, "c"]]:
        """Weight and bias of a linear layer that gives the first head's logits, standardisation included."""
        weight = (self.scale.double()[:, None] * self.weight[0].double()).T
        bias = self.bias[0, 0].double() - weight @ self.mean.double()
        return weight.float(), bias.float()


def fit_probe(
    train: Float[Tensor, "n d"],
    train_labels: Int64[Tensor, "n"],
    val: Float[Tensor, "v d"],
    val_labels: Int64[Tensor, "v"],
    classes: int,
    *,
    lr: Sequence[float] = LEARNING_RATES,
    epochs: int = 100,
    batch_size: int = 256,
    seed: int = 0,
) -> tuple[Heads, dict[str, Any]]:
    """The best linear classifier on frozen features, and its accuracy.

    The learning rate is chosen on held-out training images, never on validation; the head is then trained again on
    all training images. A single learning rate is taken as it is. Where the network itself was trained on the same
    images with their labels, held-out accuracy says little beyond the order of the learning rates.

    Args:
        train: features of the training images.
        train_labels: their class numbers.
        val: features of the validation images, on the same device.
        val_labels: their class numbers.
        classes: number of classes.
        lr: learning rates to choose from, at the start of the cosine; for this batch size.
        epochs: passes over the training images.
        batch_size: images per step.
        seed: of the held-out images and of the order.

    Returns:
        The classifier; and its top1 and top5 on validation in percent, the lr chosen, held_out_top1 in percent (None
        for a single learning rate), and the same of each learning rate as `tried`.

    Raises:
        UserError: for options out of range; when every class has a single image, so that none can be held out; when
            no learning rate converges.
    """
    lr = sorted(set(lr))
    check_options(lr, epochs, batch_size)
    options: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
    chosen, tried = lr[0], []
    if len(lr) > 1:
        fit, held = hold_out(train_labels.cpu(), seed)
        fit, held = fit.to(train.device), held.to(train.device)
        heads = train_heads(train[fit], train_labels[fit], classes, lr, **options, text="choosing lr")
        scores = evaluate_heads(heads, train[held], train_labels[held])
        tried = [{"lr": rate, "held_out_top1": score["top1"]} for rate, score in zip(lr, scores, strict=True)]
        best = max(range(len(lr)), key=lambda index: (scores[index]["top1"], -scores[index]["loss"]))
        chosen = lr[best]
        if best in (0, len(lr) - 1):
            log.warning("linear probe: lr %g was best and is at the end of those tried; others may be better", chosen)
    head = train_heads(train, train_labels, classes, [chosen], **options, text="linear probe")
    if not head.weight.isfinite().all():
        raise UserError("A learning rate must converge", f"lr {', '.join(f'{rate:g}' for rate in lr)}", "Lower it")
    score = evaluate_heads(head, val, val_labels)[0]
    return head, {
        "top1": score["top1"],
        "top5": score["top5"],
        "lr": chosen,
        "held_out_top1": tried[best]["held_out_top1"] if tried else None,
        "tried": tried,
    }


def linear_probe(*features: Any, **options: Any) -> dict[str, Any]:
    """The accuracy alone of what `fit_probe` fits, which takes the same arguments."""
    return fit_probe(*features, **options)[1]


def hold_out(labels: Int64[Tensor, "n"], seed: int) -> tuple[Int64[Tensor, "f"], Int64[Tensor, "h"]]:
    """Split the training images: a tenth of each class, but at least one image, is held out.

    A class with a single image is trained on and not held out.

    Args:
        labels: class numbers, on the CPU.
        seed: which images are held out.

    Returns:
        Numbers of the images to train on, and of those held out, both in ascending order.

    Raises:
        UserError: when no class has two images.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = order[labels[order].argsort(stable=True)]
    held: list[Tensor] = []
    for images in by_class.split(labels.unique(return_counts=True)[1].tolist()):
        count = max(1, round(HELD_OUT * len(images))) if len(images) > 1 else 0
        held.append(images[:count])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.cat(held)] = True
    if not chosen.any():
        raise UserError(
            "Choosing a learning rate needs a class with two training images, one of them to hold out",
            f"{len(labels)} images in as many classes",
            "Give a single --lr",
        )
    return torch.nonzero(~chosen)[:, 0], torch.nonzero(chosen)[:, 0]


def train_heads(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, "n"],
    classes: int,
    lr: Sequence[float],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    text: str = "linear probe",
) -> Heads:
    """Train one linear head per learning rate, all on the same batches: SGD, momentum 0.9, cosine to 0 per step.

    The problem is convex, so every head starts at 0. Heads do not influence each other; one whose learning rate is
    too high ends with weights that are not finite.

    Args:
        features: of the training images.
        labels: their class numbers.
        classes: number of classes.
        lr: learning rates.
        epochs: passes over the images; those left over by the last whole batch of an epoch are others in the next.
        batch_size: images per step; at most all of them.
        seed: of the order.
        text: shown before the progress bar.
    """
    variance, mean = torch.var_mean(features, dim=0, correction=0)
    scale = (variance + EPS).rsqrt()
    weights = [features.new_zeros(features.shape[1], classes).requires_grad_() for _ in lr]
    biases = [features.new_zeros(1, classes).requires_grad_() for _ in lr]
    groups = [{"params": pair, "lr": rate} for *pair, rate in zip(weights, biases, lr, strict=True)]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM)
    batch_size = min(batch_size, len(labels))
    steps = len(labels) // batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    order = torch.Generator().manual_seed(seed)
    for _ in track(range(epochs), text, epochs):
        shuffled = torch.randperm(len(labels), generator=order).to(features.device)
        for batch in shuffled[: steps * batch_size].split(batch_size):
            heads = Heads(mean, scale, torch.stack(weights), torch.stack(biases))
            scores = heads.scores(features[batch])
            # The mean over all heads' images, times heads: each head's gradient is that of its own mean.
            loss = len(lr) * cross_entropy(scores.flatten(0, 1), labels[batch].repeat(len(lr)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return Heads(mean, scale, torch.stack(weights).detach(), torch.stack(biases).detach())


def evaluate_heads(heads: Heads, features: Float[Tensor, "n d"], labels: Int64[Tensor, "n"]) -> list[dict[str, float]]:
    """Per head: top1 and top5 in percent, and the mean cross-entropy in nats (not finite where training diverged)."""
    count, _, classes = heads.weight.shape
    rows = max(1, SCORE_ELEMENTS // (count * classes))
    found = torch.zeros(count, 2, dtype=torch.int64, device=features.device)
    loss = torch.zeros(count, device=features.device)
    for start in range(0, len(labels), rows):
        part = slice(start, start + rows)
        scores = heads.scores(features[part])
        found += hits(scores, labels[part]).sum(dim=1)
        loss += torch.stack([cross_entropy(head, labels[part], reduction="sum") for head in scores])
    means = (loss / len(labels)).tolist()
    return [{**score, "loss": mean} for score, mean in zip(percent(found, len(labels)), means, strict=True)]


def check_options(lr: Sequence[float], epochs: int, batch_size: int) -> None:
    """Check the options of the training, before features are computed.

    Raises:
        UserError: when there is no learning rate, or one is not positive; when epochs or batch_size are below 1.
    """
    if not lr or not all(0 < rate < float("inf") for rate in lr):
        raise UserError("A learning rate must be positive", ", ".join(f"{rate:g}" for rate in lr) or "none")
    for name, number in (("epochs", epochs), ("batch_size", batch_size)):
        if number < 1:
            raise UserError(f"{name} must be at least 1", number)
