"""Batches: images are read, transformed and stacked here; unreadable ones are named and counted."""

import logging
import os
import signal
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitdistill.data.clips.video import VideoSet
from vitdistill.data.order import EpochBatchSampler, EvalBatchSampler, SampleKey, seed_cpu_at
from vitdistill.data.source import DataSource, ImageSet
from vitdistill.errors import UserError

logger = logging.getLogger(__name__)

# What decoders raise on missing, truncated, mislabelled or oversized files.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
MAX_WORKERS = 8

# Of an image or a video; of a video whose target depends on how it is cropped or flipped, both.
Transform = Callable[[Any], Tensor | tuple[Tensor, Tensor]]
BatchSampler = EpochBatchSampler | EvalBatchSampler


class Batch(NamedTuple):
    """One batch as the loader hands it out.

    Attributes:
        images: uint8, not normalised.
        targets: class numbers, or what the transform made of them, e.g. boxes.
        index: which sample of the set each image is (of the replacement, where one was needed).
        skipped: paths of the images that could not be read while making this batch.
    """

    images: UInt8[Tensor, "b 3 *pixels"]
    targets: Int64[Tensor, "b"] | Float32[Tensor, "b boxes values"]
    index: Int64[Tensor, "b"]  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    skipped: list[str]


class Sample(NamedTuple):
    image: UInt8[Tensor, "3 *pixels"]
    target: int | Tensor
    number: int


class SampleSet(Dataset[Batch]):
    """A set of images behind a transform, read by batches of `SampleKey`.

    Before a random transform, `random`, `numpy.random` and torch's CPU generator are seeded from (seed, epoch, index,
    repeat), so the outcome depends on nothing else. Without workers this happens in the training process and the
    generators stay as the last sample left them: seed again (`seed_everything_at`) before drawing for a step.

    Unreadable images: in training the next readable one in the set takes their place, in validation they are left
    out of the batch. A validation batch of which nothing is readable is empty: skip it, as some networks fail on none.
    """

    def __init__(self, image_set: ImageSet, transform: Transform, *, seed: int, substitute: bool) -> None:
        """
        Args:
            image_set: where images come from.
            transform: from an RGB image to a uint8 tensor (3, height, width). Taken to be random unless it has an
                attribute `random` that is False.
            seed: of the run.
            substitute: whether the next readable image replaces an unreadable one.
        """
        self.image_set, self.transform, self.seed = image_set, transform, seed
        self.random = getattr(transform, "random", True)
        # More failures in a row than this stop the run anyway (see CorruptLog), so the batch may be left short.
        self.attempts = 8 + len(image_set) // 100 if substitute else 1
        self._kept: dict[int, Sample] | None = {} if image_set.in_memory and not self.random else None

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitems__(self, keys: list[SampleKey]) -> Batch:
        """One batch: what a torch DataLoader calls with all keys of a batch."""
        skipped: list[str] = []
        samples = [sample for key in keys if (sample := self._sample(key, skipped)) is not None]
        images = torch.stack([sample.image for sample in samples]) if samples else self._no_images()
        targets = _stacked([sample.target for sample in samples])
        index = torch.tensor([sample.number for sample in samples], dtype=torch.int64)
        return Batch(images, targets, index, skipped)

    def _sample(self, key: SampleKey, skipped: list[str]) -> Sample | None:
        """The sample of a key or its replacement; None when there is none. Adds to `skipped` what was unreadable."""
        for attempt in range(self.attempts):
            index = (key.index + attempt) % len(self)
            if self._kept is not None and index in self._kept:
                return self._kept[index]
            try:
                # A video is only opened by `load`; its frames are decoded where the transform asks for them.
                image, target = self.image_set.load(index)
                return self._transformed(SampleKey(key.epoch, index, key.repeat), image, target)
            except UNREADABLE as error:
                if isinstance(error, UserError):
                    raise
                skipped.append(self.image_set.path(index))
        return None

    def _transformed(self, key: SampleKey, image: Any, target: int) -> Sample:
        if self.random:
            seed_cpu_at("sample", self.seed, *key)
        made = self.transform(image)
        pixels, value = made if isinstance(made, tuple) else (made, target)
        sample = Sample(pixels, value, key.index)
        if self._kept is not None:
            self._kept[key.index] = sample
        return sample

    def _no_images(self) -> Tensor:
        """An empty stack with the shape that the transform gives."""
        shape = getattr(self.transform, "shape", None)  # a clip's, which no image can stand in for
        if shape is None:
            image = self.transform(Image.new("RGB", (32, 32)))
            assert isinstance(image, Tensor)
            shape = image.shape
        return torch.empty((0, *shape), dtype=torch.uint8)


class CorruptLog:
    """Unreadable images or videos of one run: warns of each once, and stops the run when there are too many."""

    LIMIT_PERCENT = 1

    def __init__(self, paths: Iterable[str] = (), word: str = "image") -> None:
        """
        Args:
            paths: images that are already known, e.g. from before a resume; there is no warning of these.
            word: what they are called in messages.
        """
        self.paths = dict.fromkeys(paths)  # a set that keeps its order
        self.word = word

    @classmethod
    def of(cls, images: ImageSet) -> "CorruptLog":
        """An empty log that calls the samples of a set what they are."""
        return cls(word="video" if isinstance(images, VideoSet) else "image")

    def add(self, paths: Iterable[str]) -> None:
        """Take note of a batch's `skipped`; warns of every path that is new."""
        for path in paths:
            if path not in self.paths:
                self.paths[path] = None
                logger.warning("Unreadable %s, skipped: %s", self.word, path)

    def check(self, total: int) -> None:
        """Stop when more than 1% is unreadable.

        Args:
            total: number of images in the sets that the paths come from.

        Raises:
            UserError: with count, total and the first three paths.
        """
        count = len(self.paths)
        if count * 100 > total * self.LIMIT_PERCENT:
            first = ", ".join(list(self.paths)[:3])
            raise UserError(
                f"At most {self.LIMIT_PERCENT}% of the {self.word}s may be unreadable",
                f"{count} of {total}: {first}{', ...' if count > 3 else ''}",
                "Repair or remove these files",
            )

    def as_dict(self) -> dict[str, object]:
        """For `run.json`: how many there were, and which."""
        return {"unreadable_images": len(self.paths), "unreadable_paths": list(self.paths)}


def make_loader(
    image_set: ImageSet,
    transform: Transform,
    sampler: BatchSampler,
    *,
    seed: int,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """A torch DataLoader of `Batch`, the same whatever the number of workers.

    Args:
        image_set: where images come from.
        transform: from an RGB image to a uint8 tensor (3, height, width).
        sampler: which samples, in which batches; its `set_position` moves the loader.
        seed: of the run.
        num_workers: processes that read ahead; 0 reads in this one.
        pin_memory: for quicker transfer to a GPU.

    Raises:
        UserError: when the number of processes is negative.
    """
    if num_workers < 0:
        raise UserError("workers must be 0 or more", num_workers)
    return DataLoader(
        SampleSet(image_set, transform, seed=seed, substitute=sampler.substitute),
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_as_is,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        persistent_workers=num_workers > 0,
        # Otherwise every epoch would draw from the global generator, which the trainer seeds per step.
        generator=torch.Generator().manual_seed(0),
    )


def default_workers(source: DataSource, processes: int = 1) -> int:
    """Worker processes per training process: none for a source in memory, else the cores shared out, at most 8.

    Args:
        source: what is read.
        processes: training processes on this machine.
    """
    if source.train.in_memory:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(1, cores // processes), MAX_WORKERS)


def _stacked(targets: list[Any]) -> Tensor:
    if targets and isinstance(targets[0], Tensor):
        return torch.stack(targets)
    return torch.tensor(targets, dtype=torch.int64)


def _as_is(batch: Any) -> Batch:
    return batch


def _start_worker(_worker: int) -> None:
    # Ctrl-C reaches the whole process group; the training process decides what happens and ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
