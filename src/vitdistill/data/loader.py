"""Batches: samples are read, transformed and stacked here; unreadable ones are named and counted."""

import logging
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vitdistill.data.order import EpochBatchSampler, EvalBatchSampler, SampleKey, seed_cpu_at
from vitdistill.data.samples import UNREADABLE, Samples, SeveralViews, Transform, Unreadable, reason_of
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError

logger = logging.getLogger(__name__)

MAX_WORKERS = 8
BAD_SHARE = 0.01  # of the samples may be unreadable where nothing else is said
FEW = 3  # so many may be in any set that is not tiny

BatchSampler = EpochBatchSampler | EvalBatchSampler


class Batch(NamedTuple):
    """One batch as the loader hands it out.

    Attributes:
        images: uint8, not normalised; a tuple of such tensors where the transform gives several views.
        targets: class numbers, or what the transform made of them, e.g. boxes; None where there are no labels.
        index: which sample of the set each row is (of the replacement, where one was needed).
        skipped: the samples that could not be read while making this batch, with the reasons.
        sizes: height and width of each image in pixels, where they differ: smaller ones are filled up at the right and
            at the bottom. None where all fill the batch.
    """

    images: UInt8[Tensor, "b ch *pixels"] | tuple[UInt8[Tensor, "b ch ..."], ...]
    targets: Int64[Tensor, "b"] | Float32[Tensor, "b boxes values"] | None
    index: Int64[Tensor, "b"]  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    skipped: list[Unreadable]
    sizes: Int64[Tensor, "b 2"] | None = None


class Sample(NamedTuple):
    pixels: UInt8[Tensor, "ch *pixels"] | tuple[UInt8[Tensor, "ch ..."], ...]
    target: int | Tensor | None
    number: int


class SampleSet(Dataset[Batch]):
    """Samples behind a transform, read by batches of `SampleKey`.

    Before what is random, in the set or the transform, `random`, `numpy.random` and torch's CPU generator are seeded
    from (seed, epoch, index, repeat), so the outcome depends on nothing else. Without workers this happens in the
    training process and the generators stay as the last sample left them: seed again (`seed_everything_at`) before
    drawing for a step.

    Unreadable samples: in training the next readable one in the set takes their place, in validation they are left
    out of the batch. A validation batch of which nothing is readable is empty: skip it, as some networks fail on none.
    """

    def __init__(self, samples: Samples, transform: Transform, *, seed: int, substitute: bool) -> None:
        """
        Args:
            samples: where samples come from.
            transform: what they are made into.
            seed: of the run.
            substitute: whether the next readable sample replaces an unreadable one.
        """
        self.samples, self.transform, self.seed = samples, transform, seed
        # More failures in a row than this stop the run anyway (see CorruptLog), so the batch may be left short.
        self.attempts = 8 + len(samples) // 100 if substitute else 1
        self._kept: dict[int, Sample] | None = {} if samples.in_memory and not transform.random else None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, keys: list[SampleKey]) -> "Batch | _Failed":
        """One batch: what a torch DataLoader calls with all keys of a batch.

        Raises:
            MachineError, OutOfMemoryError: when reading failed through no fault of a file.
        """
        try:
            return self._batch(keys)
        except UserError as error:
            if get_worker_info() is None:
                raise
            return _Failed(error)

    def _batch(self, keys: list[SampleKey]) -> Batch:
        skipped: list[Unreadable] = []
        samples = [sample for key in keys if (sample := self._sample(key, skipped)) is not None]
        pixels = [sample.pixels for sample in samples]
        sizes = None
        if samples and getattr(self.transform, "sizes_differ", False):
            pixels, sizes = filled_up(pixels)
        images = _stacked_views(pixels) if samples else self._no_images()
        targets = _stacked_targets([sample.target for sample in samples])
        index = torch.tensor([sample.number for sample in samples], dtype=torch.int64)
        return Batch(images, targets, index, skipped, sizes)

    def _sample(self, key: SampleKey, skipped: list[Unreadable]) -> Sample | None:
        """The sample of a key or its replacement; None when there is none. Adds to `skipped` what was unreadable."""
        for attempt in range(self.attempts):
            index = (key.index + attempt) % len(self)
            if self._kept is not None and index in self._kept:
                return self._kept[index]
            if self.transform.random or self.samples.random:
                seed_cpu_at("sample", self.seed, key.epoch, index, key.repeat)
            try:
                # A video is only opened by `load`; its frames are decoded where the transform asks for them.
                loaded, target = self.samples.load(index)
                return self._transformed(SampleKey(key.epoch, index, key.repeat), loaded, target)
            except UNREADABLE as error:
                path = self.samples.path(index)
                skipped.append(Unreadable(path, reason_of(error, path)))
        return None

    def _transformed(self, key: SampleKey, loaded: Any, target: int | None) -> Sample:
        made = self.transform(loaded)
        if isinstance(made, SeveralViews):
            sample = Sample(made.views, target if made.target is None else made.target, key.index)
        else:
            pixels, value = made if isinstance(made, tuple) else (made, target)
            sample = Sample(pixels, value, key.index)
        if self._kept is not None:
            self._kept[key.index] = sample
        return sample

    def _no_images(self) -> Tensor | tuple[Tensor, ...]:
        """Empty stacks with the shape that the transform gives."""
        shape = self.transform.shape
        if isinstance(shape[0], tuple):
            return tuple(torch.empty((0, *view), dtype=torch.uint8) for view in shape)
        return torch.empty((0, *shape), dtype=torch.uint8)


class CorruptLog:
    """Unreadable samples of one run: warns of each once, and stops the run when there are too many.

    Each process of a run has a log of its own; `exchange` makes them one.
    """

    def __init__(self, known: Iterable[tuple[str, str]] = (), word: str = "image", *, share: float = BAD_SHARE) -> None:
        """
        Args:
            known: samples and reasons from before a resume; there is no warning of these.
            word: what samples are called in messages.
            share: of the samples may be unreadable; see `borne`.
        """
        self.paths: dict[str, str] = dict(known)
        self.untold: dict[str, str] = {}  # what other processes do not know yet
        self.word, self.share = word, share

    @classmethod
    def of(cls, samples: Samples, share: float = BAD_SHARE) -> "CorruptLog":
        """An empty log that calls the samples of a set what they are."""
        return cls(word=samples.word, share=share)

    def add(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Take note of a batch's `skipped`; warns of every path that is new, with the reason."""
        for path, reason in skipped:
            if path not in self.paths:
                self.paths[path] = self.untold[path] = reason
                logger.warning("Unreadable %s, skipped: %s (%s)", self.word, path, reason)

    def exchange(self, gather: Callable[[dict[str, str]], Iterable[Mapping[str, str]]]) -> None:
        """Add what other processes found, which have warned of it themselves.

        Args:
            gather: hands what is new here to all processes, and returns what is new in each.
        """
        for found in gather(self.untold):
            self.paths.update({path: reason for path, reason in found.items() if path not in self.paths})
        self.untold = {}

    def check(self, total: int) -> None:
        """Stop when more are unreadable than are borne.

        Args:
            total: number of samples in the sets that the paths come from.

        Raises:
            UserError: with count, total and the first three paths with their reasons.
        """
        count = len(self.paths)
        if count > min(borne(self.share, total), total - 1):
            first = ", ".join(f"{path} ({reason})" for path, reason in islice(self.paths.items(), 3))
            raise UserError(
                f"At most {100 * self.share:g}% of the {self.word}s may be unreadable",
                f"{count} of {total}: {first}{', ...' if count > 3 else ''}",
                "Repair or remove these files, or allow more with --loader.bad_share (--bad_share in evaluation)",
            )

    def as_dict(self) -> dict[str, object]:
        """How many there were, which, and why."""
        paths = list(self.paths)
        return {"unreadable_images": len(paths), "unreadable_paths": paths, "unreadable_reasons": dict(self.paths)}


def borne(share: float, total: int) -> int:
    """How many unreadable samples a run bears: a share of all; in small sets up to 3, but no more than a quarter.

    Args:
        share: 0 bears none, in small sets either.
        total: samples of the sets.

    Example:
        >>> borne(0.01, 100_000), borne(0.01, 50), borne(0.01, 8), borne(0.0, 50)
        (1000, 3, 2, 0)
    """
    return max(math.floor(share * total), min(FEW, total // 4)) if share > 0 else 0


def make_loader(
    samples: Samples,
    transform: Transform,
    sampler: BatchSampler,
    *,
    seed: int,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """A torch DataLoader of `Batch`, the same whatever the number of workers.

    Args:
        samples: where samples come from.
        transform: what they are made into; `samples.transform` gives it.
        sampler: which samples, in which batches; its `set_position` moves the loader.
        seed: of the run.
        num_workers: processes that read ahead; 0 reads in this one.
        pin_memory: for quicker transfer to a GPU.

    Raises:
        UserError: when the number of processes is negative.
    """
    if num_workers < 0:
        raise UserError("workers must be 0 or more", num_workers)
    return _Loader(
        SampleSet(samples, transform, seed=seed, substitute=sampler.substitute),
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_as_is,
        pin_memory=pin_memory,
        worker_init_fn=start_worker,
        multiprocessing_context=worker_context(num_workers),
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


def filled_up(images: list[Any]) -> tuple[list[Any], Int64[Tensor, "b 2"]]:
    """Images at the height of the highest and the width of the widest, and their own heights and widths.

    What is added lies at the right and at the bottom; `device.blank_padding` makes it zeros once it is normalised.

    Example:
        >>> images, sizes = filled_up([torch.ones(3, 2, 4), torch.ones(3, 3, 2)])
        >>> images[0].shape, sizes.tolist()
        (torch.Size([3, 3, 4]), [[2, 4], [3, 2]])
    """
    sizes = torch.tensor([image.shape[-2:] for image in images], dtype=torch.int64)
    height, width = sizes.amax(dim=0).tolist()
    whole = [pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2])) for image in images]
    return whole, sizes


def _stacked_views(pixels: list[Any]) -> Tensor | tuple[Tensor, ...]:
    """One stack, or one per view."""
    if isinstance(pixels[0], tuple):
        return tuple(torch.stack(view) for view in zip(*pixels, strict=True))
    return torch.stack(pixels)


def _stacked_targets(targets: list[Any]) -> Tensor | None:
    if targets and targets[0] is None:
        return None
    if targets and isinstance(targets[0], Tensor):
        return torch.stack(targets)
    return torch.tensor(targets, dtype=torch.int64)


class _Loader(DataLoader[Batch]):
    """Raises errors of its workers as they were raised; torch makes one of the same type with a traceback as text."""

    def __iter__(self) -> Any:
        return map(_raised, super().__iter__())


@dataclass
class _Failed:
    """What a worker sends in place of a batch."""

    error: UserError


def _raised(batch: Batch | _Failed) -> Batch:
    if isinstance(batch, _Failed):
        raise batch.error
    return batch


def _as_is(batch: Any) -> Any:
    return batch


# Ctrl-C, and SIGTERM as `timeout`, SLURM and systemd send it, reach a whole process group or all processes of a job.
# The training process decides what happens and ends its workers itself; should it die, they notice in a few seconds.
_FOR_THE_PARENT = (signal.SIGINT, signal.SIGTERM)


def start_worker(_worker: int) -> None:
    """Set up a process that reads for another, of a loader with `worker_context`."""
    for number in _FOR_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_THE_PARENT)  # `_launch` has blocked them; those since are ignored


def worker_context(workers: int) -> BaseContext | None:
    """How a torch DataLoader starts workers that `start_worker` sets up; None (torch's own way) where there are none.

    Signals are held back until a worker ignores them, and since it then ignores SIGTERM as well, whoever terminates it
    (torch, when it does not end by itself, and Python at its end) kills it.
    """
    if workers == 0:
        return None
    context: Any = copy(multiprocessing.get_context())
    context.Process = partial(_process, context.Process)
    return context


def _process(kind: Any, *args: Any, **kwargs: Any) -> Any:
    process = kind(*args, **kwargs)
    process._Popen = partial(_launch, kind._Popen)
    return process


def _launch(popen: Any, process: Any) -> Any:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_PARENT)
    try:
        launched = popen(process)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    launched.terminate = launched.kill
    return launched
