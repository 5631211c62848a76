"""What a detector finds in images: in files of users, and in some images of a run's validation set."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitdistill.data.boxes.files import BoxFiles
from vitdistill.data.boxes.given import GivenImages
from vitdistill.data.boxes.sources import resizing_for
from vitdistill.data.images.augment import Augment
from vitdistill.data.loader import CorruptLog
from vitdistill.data.samples import Samples, ViewOptions
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.evaluation.loading import Reader, Subject, place_of
from vitdistill.losses.boxes import detections
from vitdistill.models.classes import class_names
from vitdistill.models.network import Network
from vitdistill.tasks.boxes import Boxes


class Detection(NamedTuple):
    """An object that was found.

    Attributes:
        number: of its class.
        label: its class.
        score: probability of the class, 0 to 1.
        corners: x1, y1, x2, y2 in pixels of the image as it is, cut to it.
    """

    number: int
    label: str
    score: float
    corners: tuple[float, float, float, float]


def detect_files(
    network: Network,
    files: Sequence[str],
    *,
    threshold: float,
    config: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    device: str = "auto",
    workers: int | None = None,
) -> Iterator[tuple[str, list[Detection]]]:
    """Every readable file, in order, and what is found in it, the highest score first.

    Args:
        network: a detector.
        files: images, videos (of which the middle frame is taken), and folders of them.
        threshold: the least score.
        config: of the run that the network is of, which says how images are resized; without one the network's record
            does, else its classes.
        batch_size: images per step.
        device: auto, cpu, cuda, ...
        workers: loader processes; None chooses.

    Raises:
        UserError: when no file can be read.
    """
    config = config or {}
    options = Boxes.tested_files(BoxFiles(), network, config)
    given = GivenImages(files, resizing_for(str(config.get("data")), class_names(network), options))
    subject = Subject(network, DataSource("files", given, given, []), ViewOptions(augment=Augment(recipe="none")))
    few = len(given) <= batch_size
    reader = Reader(subject, batch_size=batch_size, device=device, workers=0 if workers is None and few else workers)
    network.eval().to(reader.place)
    unreadable, count = CorruptLog.of(given), 0
    for inputs, batch in reader.read(given, "looking for objects"):
        unreadable.add(batch.skipped)
        if inputs is None:
            continue
        assert batch.targets is not None
        paths = [given.path(index) for index in batch.index.tolist()]
        count += len(paths)
        yield from zip(paths, found_in(network, inputs, batch.targets, threshold), strict=True)
    if not count:
        raise UserError("At least one file must be readable", f"none of {len(given)}, for the reasons above")


def detect_samples(network: Network, samples: Samples, indices: Sequence[int], threshold: float) -> list[Any]:
    """What is found in some images of a set, one after the other."""
    options, place = ViewOptions(augment=Augment(recipe="none")), place_of("cpu")
    transform = samples.transform(network.input, options, train=False)
    on_device = samples.on_device(network.input, options, 0)
    network.eval().to(place)
    found = []
    for index in indices:
        sample = samples.load(index)[0]
        made = transform(sample)
        assert isinstance(made, tuple)
        size = torch.tensor([sample.image.size[::-1]], dtype=torch.float32)
        found += found_in(network, on_device.eval(made[0][None]), size, threshold)
    return found


@torch.inference_mode()
def found_in(network: Network, inputs: Tensor, sizes: Tensor, threshold: float) -> list[list[Detection]]:
    """What is found in each image of a batch, the highest score first.

    Args:
        network: a detector, in eval mode.
        inputs: normalised images.
        sizes: height and width in pixels of each as it was, (b, 2).
        threshold: the least score.

    Raises:
        UserError: when scores are not finite.
    """
    prediction = network(inputs).prediction.float()
    if not prediction.isfinite().all():
        raise UserError(f"The scores of {network.name} must be finite", "nan or inf", "Its training has diverged")
    scores, labels, boxes = (part.cpu() for part in detections(prediction))
    names = class_names(network) or [str(number) for number in range(network.num_classes)]
    half = boxes[..., 2:] / 2
    corners = torch.cat((boxes[..., :2] - half, boxes[..., :2] + half), dim=-1).clamp(0, 1)
    pixels = corners * sizes.cpu().flip(1).repeat(1, 2)[:, None]
    found = []
    for score, label, box in zip(scores, labels, pixels, strict=True):
        order = score.argsort(descending=True, stable=True)
        rows = zip(score[order].tolist(), label[order].tolist(), box[order].tolist(), strict=True)
        found.append(
            [
                Detection(number, names[number], round(value, 6), tuple(round(side, 2) for side in four))
                for value, number, four in rows
                if value >= threshold
            ]
        )
    return found
