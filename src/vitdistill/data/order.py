"""Order and seeds: which samples make up which batch, and what every random draw is a function of."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from vitdistill.errors import UserError


class SampleKey(NamedTuple):
    """One sample at one time; together with the run's seed it determines the sample's augmentation."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    repeat: int


def seed_cpu_at(*keys: int | str) -> None:
    """Seed `random`, `numpy.random` and torch's CPU generator from a stable hash of the keys.

    Quick enough (about 20 microseconds) to run before every sample.

    Args:
        keys: what the draws that follow shall be a function of, e.g. seed, epoch, index, repeat.
    """
    digest = _digest(*keys)
    random.seed(int.from_bytes(digest[:8], "little"))
    np.random.seed(np.frombuffer(digest, dtype="<u4", offset=16))
    torch.default_generator.manual_seed(int.from_bytes(digest[8:16], "little"))


def seed_everything_at(*keys: int | str) -> None:
    """As `seed_cpu_at`, and the generators of the accelerators in use; for the start of a training step.

    Args:
        keys: what the draws that follow shall be a function of, e.g. seed, step, rank.
    """
    seed_cpu_at(*keys)
    # Not torch.manual_seed: on a machine without an initialised GPU it records a stack trace at every call.
    seed = int.from_bytes(_digest("accelerator", *keys)[:8], "little")
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed % 2**63)


def _digest(*keys: int | str) -> bytes:
    return hashlib.blake2b(",".join(map(str, keys)).encode(), digest_size=32).digest()


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """Training batches, each epoch in an order of its own, startable at any batch of any epoch.

    With several processes, the batches of all ranks at one step, put one after the other, are exactly the batch that
    one process with `batch_size * world` would see. An epoch has `length // (batch_size * world)` batches on every
    rank; the samples left over are others in the next epoch.

    Repeated augmentation (Hoffer et al., "Augment your batch"; DeiT): every sample stands `repeats` times in the same
    global batch, on different ranks where there are as many. An epoch keeps its number of batches, so it sees
    one in `repeats` of the samples.

    With `labels`, classes are drawn evenly: each round of as many draws as there are classes has every class once. The
    samples of a class come in an order of their own, and again in another where it has too few, so an epoch repeats
    those of rare classes and sees a share of those of frequent ones. The number of batches stays.

    Iterating does not move the position: call `set_position` before every epoch.

    Attributes:
        substitute: an unreadable image is replaced, so that every batch is full.
    """

    substitute = True

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        repeats: int = 1,
        labels: Sequence[Any] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """
        Args:
            length: number of samples in the data set.
            batch_size: samples per batch and process.
            seed: of the run.
            shuffle: whether the order changes from epoch to epoch.
            repeats: times that a sample stands in a batch.
            labels: class number of every sample, to draw classes evenly; None draws samples evenly.
            rank: of this process, from 0.
            world: number of processes.

        Raises:
            UserError: when the data set is smaller than one batch of all processes.
        """
        self.length, self.batch_size, self.seed, self.shuffle = length, batch_size, seed, shuffle
        self.repeats, self.rank, self.world = repeats, rank, world
        self.members = None if labels is None else _members(np.asarray(labels))
        self.global_batch = batch_size * world
        if not 1 <= self.global_batch <= length:
            per_rank = f" ({batch_size} on each of {world} processes)" if world > 1 else ""
            raise UserError(
                "A batch must hold at least one image and at most the training set",
                f"a batch of {self.global_batch}{per_rank} and {length} training images",
                "Choose a smaller batch size" if length else "",
            )
        self.set_position(0)

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever iteration starts."""
        return self.length // self.global_batch

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Where the next iteration starts.

        Args:
            epoch: from 0.
            batch: batches of this epoch that are already done.
        """
        self.epoch, self.batch = epoch, batch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # Not a generator itself, so that the position counts at the time of iter(), not at the first batch.
        return self._batches(self.epoch, self.batch)

    def _batches(self, epoch: int, first: int) -> Iterator[list[SampleKey]]:
        order = self._order(epoch)
        for batch in range(first, len(self)):
            start, stop = batch * self.global_batch, (batch + 1) * self.global_batch
            # Places in the stream a a a b b b ...; all first repeats of the batch come first, then all second ones.
            places = [
                place
                for repeat in range(self.repeats)
                for place in range(start + (repeat - start) % self.repeats, stop, self.repeats)
            ]
            mine = places[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
            yield [SampleKey(epoch, int(order[place // self.repeats]), place % self.repeats) for place in mine]

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.length)
        seed = int.from_bytes(_digest("order", self.seed, epoch)[:8], "little")
        generator = torch.Generator().manual_seed(seed)
        if self.members is not None:
            return balanced_order(self.members, self.length, generator)
        return torch.randperm(self.length, generator=generator).numpy()


def _members(labels: np.ndarray) -> tuple[Any, ...]:
    """The samples of each class that has any."""
    by_class = np.argsort(labels, kind="stable")
    return tuple(np.split(by_class, np.flatnonzero(np.diff(labels[by_class])) + 1))


def balanced_order(members: tuple[Any, ...], length: int, generator: torch.Generator) -> np.ndarray:
    """Draws of which every class has as many, up to one.

    Args:
        members: the samples of each class.
        length: how many draws.
        generator: of the order of the classes in each round, and of the samples of each class.

    Returns:
        Numbers of samples, (length,).
    """
    rounds = -(-length // len(members))
    keys = torch.rand((rounds, len(members)), generator=generator, dtype=torch.float64)
    classes = keys.argsort(dim=1).flatten()[:length].numpy()
    order = np.empty(length, dtype=np.int64)
    by_class = np.argsort(classes, kind="stable")
    counts = np.bincount(classes, minlength=len(members))
    for own, places in zip(members, np.split(by_class, np.cumsum(counts)[:-1]), strict=True):
        passes = [torch.randperm(len(own), generator=generator).numpy() for _ in range(0, len(places), len(own))]
        if passes:  # with fewer draws than classes, some have none
            order[places] = own[np.concatenate(passes)[: len(places)]]
    return order


class EvalBatchSampler(Sampler[list[SampleKey]]):
    """Every sample exactly once over all processes, in order; nothing is padded or left out.

    All ranks get the same number of batches, since a sharded model must run equally often everywhere. The last batch
    is smaller and shared out evenly. No batch is empty, unless there are fewer samples than processes or the batch
    size is 1.

    Attributes:
        substitute: an unreadable image is left out, since a replacement would count twice.
    """

    substitute = False

    def __init__(self, length: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        """
        Args:
            length: number of samples in the data set.
            batch_size: samples per batch and process.
            rank: of this process, from 0.
            world: number of processes.

        Raises:
            UserError: when the batch size is below 1.
        """
        if batch_size < 1:
            raise UserError("A batch must hold at least one image", batch_size)
        self.length, self.batch_size, self.rank, self.world = length, batch_size, rank, world

    def __len__(self) -> int:
        return -(-self.length // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        starts = list(range(0, self.length, self.batch_size * self.world))
        if len(starts) > 1:  # leave at least one sample per rank for the last batch
            starts[-1] = min(starts[-1], self.length - self.world)
        for start, stop in pairwise([*starts, self.length]):
            first, last = (start + (stop - start) * rank // self.world for rank in (self.rank, self.rank + 1))
            yield [SampleKey(0, index, 0) for index in range(first, last)]
