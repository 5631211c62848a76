"""How a classifier of ImageNet's classes does on sets that its training did not prepare it for.

What is finished is kept in a file at once, so that an interrupted measurement goes on where it stopped.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vitdistill.data.images.augment import Augment
from vitdistill.data.loader import BAD_SHARE, CorruptLog
from vitdistill.data.robustness.images import open_part
from vitdistill.data.robustness.layout import Layout, Part
from vitdistill.data.robustness.published import CORRUPTIONS
from vitdistill.data.robustness.sets import CLEAN, CORRUPTED, REAL, SETS, SUBSETS, classes_of, real_labels
from vitdistill.data.samples import Samples, ViewOptions
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.evaluation.classifier import log_probabilities
from vitdistill.evaluation.corruption import absent, corruption_errors
from vitdistill.evaluation.loading import Reader, made_ready, validation_crop
from vitdistill.files import write_atomically
from vitdistill.models.classes import SHOWN, class_names, lacking, order_of
from vitdistill.models.network import Network
from vitdistill.models.record import has_new_head
from vitdistill.models.teacher import Teacher
from vitdistill.runs.directory import list_in_run
from vitdistill.tasks.classification import Classification

log = logging.getLogger(__name__)

FILE = "robustness.json"  # in the run directory, or in --out


def measure(
    network: Network,
    layouts: Sequence[Layout],
    *,
    kept: "Kept | None" = None,
    config: Mapping[str, Any] | None = None,
    crop_pct: float | None = None,
    images: int | None = None,
    batch_size: int = 128,
    device: str = "auto",
    workers: int | None = None,
    bad_share: float = BAD_SHARE,
) -> dict[str, Any]:
    """Accuracy on test sets, each among its own classes.

    Args:
        network: whose classes are ImageNet's, by WordNet number or by word, or hold those of the sets.
        layouts: of the sets.
        kept: results of earlier calls, of which those of the same network on the same files are not measured again.
        config: of the run that the network is of.
        crop_pct: share of the resized image that the centre crop keeps; None is as recorded.
        images: how many of each set, the first by their file names; None takes all.
        batch_size: images per step.
        device: auto, cpu, cuda, ...
        workers: loader processes; None chooses by the cores.
        bad_share: share of a set that may be unreadable.

    Returns:
        The results by the names of the sets, as `described` explains them.

    Raises:
        UserError: when the network's classes are others, or a set cannot be read.

    Example:
        >>> from vitdistill.data.robustness.layout import layouts
        >>> found = measure(vitdistill.build("runs/small"), layouts({"imagenet-a": "/data/imagenet-a"}))
        >>> found["imagenet-a"]["top1"]
    """
    kept = Kept() if kept is None else kept
    orders = {layout.name: order_in(network, layout.name) for layout in layouts}
    options: dict[str, Any] = {"batch_size": batch_size, "device": device, "workers": workers, "bad_share": bad_share}
    frozen = Teacher(network)
    parts = [part for layout in layouts for part in layout.parts]
    for number, part in enumerate(parts, start=1):
        samples, part = open_part(part, images)
        if kept.has(part, samples.digest()):
            continue
        frozen.order = torch.tensor(orders[part.name])
        source = DataSource(part.name, samples, samples, classes_of(part.name))
        views = ViewOptions(augment=Augment())
        reader = Reader(made_ready(network, source, dict(config or {}), views, crop_pct), **options)
        text = f"{part.words} ({number} of {len(parts)})"
        found = _scored(frozen, reader, samples, part, text)
        facts = {"path": str(part.root), "digest": samples.digest(), "partial": list(part.missing)}
        kept.add(part, {**found, "unlabelled": part.unlabelled, **facts})
    return described(kept.sets)


def order_in(network: Network, name: str) -> tuple[int, ...]:
    """Which of a network's scores is which class of a set: by name.

    Raises:
        UserError: when the network has no classifier, or lacks classes of the set.
    """
    rule = f"The model must have the classes of {name}"
    elsewhere = "Fine-tune the model on ImageNet first, or choose another"
    if not network.num_classes or has_new_head(network.net):
        what = "no classifier" if not network.num_classes else "a new classifier with random weights"
        raise UserError(f"{rule}; {network.name} has {what}", remedy=elsewhere)
    names, classes = class_names(network), classes_of(name)
    if not names:
        words = f"the names of the {network.num_classes} classes of {network.name} are not known"
        raise UserError(f"{rule}; {words}", remedy="Give a run, or a model whose student.json names its classes")
    order = order_of(names, classes)
    if order is None:
        missing = lacking(names, classes) or classes
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        own = ", ".join(repr(each) for each in names[:SHOWN])
        words = f"{', '.join(missing[:SHOWN])}{more} are not among the {len(names)} of {network.name} ({own}, ...)"
        raise UserError(f"{rule}; {words}", remedy=elsewhere)
    return order


def described(sets: Mapping[str, Any]) -> dict[str, Any]:
    """Results with what follows from several of them.

    Args:
        sets: as `Kept` holds them.

    Returns:
        Of each set top1, top5 and confidence in percent, the last the mean probability of the class that is named;
        images, published_images, unreadable and unlabelled (those that ImageNet-ReaL has no label for) as counts; and
        partial, what was missing, in words. Of ImageNet-A and -R also clean_top1, that of the validation images of
        their classes, and gap, by how much it is higher, both None where either is partial or there is none. Of
        ImageNet-C cells, the same for each corruption and severity, and what `corruption_errors` gives, without mce
        where one of the fifteen is partial.
    """
    found = {name: dict(result) for name, result in sets.items()}
    clean = found.get(CLEAN)
    whole = clean is not None and not clean["partial"]
    references = clean["subsets"] if clean is not None and whole else {}
    for name in set(SUBSETS) & set(found):
        reference = None if found[name]["partial"] else references.get(name, {}).get("top1")
        found[name]["clean_top1"] = reference
        found[name]["gap"] = None if reference is None else round(reference - found[name]["top1"], 4)
    if CORRUPTED in found:
        cells = found[CORRUPTED]["cells"]
        errors = errors_of(cells)
        numbers = corruption_errors(errors, 100 - clean["top1"] if clean is not None and whole else None)
        partial: dict[str, None] = {}
        for corruption, own in cells.items():
            lacking_here = dict.fromkeys(words for cell in own.values() for words in cell["partial"])
            partial |= lacking_here
            if lacking_here:
                numbers["corruptions"][corruption]["ce"] = None
                if corruption in CORRUPTIONS:
                    numbers["mce"] = numbers["relative_mce"] = None
        every = [cell for own in cells.values() for cell in own.values()]
        counts = {"images": max(cell["images"] for cell in every), "published_images": every[0]["published_images"]}
        unreadable = sum(cell["unreadable"] for cell in every)
        found[CORRUPTED] |= {**counts, "unreadable": unreadable, "partial": [*absent(errors), *partial], **numbers}
    return {name: found[name] for name in SETS if name in found}


def errors_of(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Top-1 errors in percent by corruption and severity, out of what is kept of ImageNet-C."""
    return {
        corruption: {int(severity): 100 - own[severity]["top1"] for severity in sorted(own)}
        for corruption, own in cells.items()
    }


def fingerprint(network: Network, config: Mapping[str, Any] | None = None, crop_pct: float | None = None) -> str:
    """A digest of all that decides a network's answers: weights, architecture, classes, size and crop."""
    crop = validation_crop(dict(config or {}), None, crop_pct, network).resolved()
    facts = (network.name, network.input, class_names(network), crop.crop_pct, crop.interpolation)
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=16)
    for name, tensor in {**network.net.state_dict(), **network.fixed()}.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class Kept:
    """Results, in a file that is written anew with each of them.

    Attributes:
        sets: results by the names of the sets; of ImageNet-C under `cells`, by corruption and severity.
        taken: what of them was there before and is asked for again, in words.
    """

    def __init__(self, folder: Path | None = None, network: str = "", model: str = "") -> None:
        """
        Args:
            folder: to keep them in; None keeps them in memory.
            network: digest of the network, see `fingerprint`. Results of another one are not taken over: their file
                gets another name when the first new one is written.
            model: what the network is called.

        Raises:
            UserError: when the file in it cannot be read.
        """
        self.file = None if folder is None else folder / FILE
        self.network, self.model = network, model
        self.sets: dict[str, Any] = {}
        self.taken: list[str] = []
        self._others: Path | None = None  # where results of another network go
        if self.file is None or not self.file.is_file():
            return
        before = read(self.file)
        if before["network"] == network:
            self.sets = before["sets"]
        else:
            self._others = self.file.with_name(f"robustness-{before['network'][:8]}.json")

    def has(self, part: Part, digest: str) -> bool:
        """Whether a part with these files is known.

        Raises:
            UserError: when the whole of it is known, and would be replaced by what is left of it.
        """
        known = self.sets.get(part.name, {})
        if part.corruption:
            known = known.get("cells", {}).get(part.corruption, {}).get(str(part.severity), {})
        if known.get("digest") != digest:
            if part.missing and known.get("partial") == []:
                raise UserError(
                    f"{self.file or FILE} holds the whole of {part.words}, which a part would replace",
                    part.missing[0],
                    "Choose another --out",
                )
            return False
        self.taken.append(part.words)
        return True

    def add(self, part: Part, result: dict[str, Any]) -> None:
        """Keep the result of a part."""
        if part.corruption:
            cells = self.sets.setdefault(part.name, {"cells": {}})["cells"]
            cells.setdefault(part.corruption, {})[str(part.severity)] = result
        else:
            self.sets[part.name] = result
        if self.file is None:
            return
        if self._others is not None:
            with suppress(FileNotFoundError):
                self.file.rename(self._others)
                log.warning("Results of another network or crop are in %s now", self._others)
                list_in_run(self._others)
            self._others = None
        content = {"model": self.model, "network": self.network, "sets": described(self.sets)}
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(self.file, lambda file: file.write(text.encode(errors="surrogateescape")))
        list_in_run(self.file)


def read(file: Path) -> dict[str, Any]:
    """What a file of results holds: model, network and sets.

    Raises:
        UserError: when it is damaged.
    """
    try:
        found = json.loads(file.read_text(errors="surrogateescape"))
        return {"model": str(found["model"]), "network": str(found["network"]), "sets": dict(found["sets"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{file.name} must be whole", f"{file} ({reason})", "Remove it, or choose another --out"
        ) from error


class _Scores:
    """Top-1, top-5 and confidence among some classes, counted on the device."""

    def __init__(self, classes: int, place: torch.device) -> None:
        self.metrics = {name: metric.to(place) for name, metric in Classification(classes).metrics().items()}
        self.confidence = torch.zeros((), device=place)
        self.images = 0

    def update(self, answers: Float[Tensor, "b c"], labels: Int64[Tensor, "b"]) -> None:
        if not len(labels):
            return
        for metric in self.metrics.values():
            metric.update(preds=answers, target=labels)
        self.confidence += answers.log_softmax(dim=1).amax(dim=1).exp().sum()
        self.images += len(labels)

    def compute(self) -> dict[str, Any]:
        if not self.images:
            return {"top1": None, "top5": None, "confidence": None, "images": 0}
        scores = {name: round(100 * float(metric.compute()), 4) for name, metric in self.metrics.items()}
        return {**scores, "confidence": round(100 * float(self.confidence) / self.images, 4), "images": self.images}


def _scored(network: Teacher, reader: Reader, samples: Samples, part: Part, text: str) -> dict[str, Any]:
    """A network on the images of a part, its scores in the order of the set's classes."""
    classes = classes_of(part.name)
    scores = _Scores(len(classes), reader.place)
    subsets = dict(_subsets(classes, reader.place)) if part.name == CLEAN else {}
    shown = _shown(reader.place) if part.name == REAL else None
    corrupt = CorruptLog.of(samples, reader.bad_share)
    for images, labels in reader.batches(samples, corrupt, text):
        assert labels is not None  # class folders
        labels = labels.to(reader.place)
        answers = log_probabilities(network, images)
        if shown is not None:
            labels = best_of(answers, shown[labels])
        scores.update(answers, labels)
        for columns, own in subsets.values():
            # Those of its classes alone, which are scored among these alone.
            place = torch.searchsorted(columns, labels).clamp(max=len(columns) - 1)
            of_subset = columns[place] == labels
            own.update(answers[of_subset][:, columns], place[of_subset])
    found = {**scores.compute(), "published_images": SETS[part.name].images, "unreadable": len(corrupt.paths)}
    if part.name == CLEAN:
        found["subsets"] = {name: own.compute() for name, (_, own) in subsets.items()}
    return found


def best_of(answers: Float[Tensor, "b c"], shown: Int64[Tensor, "b most"]) -> Int64[Tensor, "b"]:
    """Of the classes that each image shows, the one of highest score: it is among the k highest if any of them is.

    Args:
        answers: scores.
        shown: class numbers, at least one, filled up with -1.

    Example:
        >>> best_of(torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([[0, 2, -1]]))
        tensor([2])
    """
    own = answers.gather(1, shown.clamp(min=0)).masked_fill(shown < 0, -torch.inf)
    return shown.gather(1, own.argmax(dim=1, keepdim=True)).squeeze(1)


def _shown(place: torch.device) -> Int64[Tensor, "images most"]:
    """The classes that each validation image shows, as `best_of` takes them."""
    return torch.tensor(list(zip_longest(*real_labels(), fillvalue=-1)), device=place).T


def _subsets(classes: Sequence[str], place: torch.device) -> Iterator[tuple[str, tuple[Tensor, _Scores]]]:
    """Where the classes of each subset stand among all of them, and what counts its scores."""
    for name in SUBSETS:
        columns = [classes.index(each) for each in classes_of(name)]
        yield name, (torch.tensor(columns, device=place), _Scores(len(columns), place))
