import random
import time
import timeit
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdistill.data.order import EpochBatchSampler, EvalBatchSampler, seed_cpu_at, seed_everything_at
from vitdistill.errors import UserError

sizes = st.tuples(st.integers(1, 200), st.integers(1, 9), st.integers(1, 4))


def epoch_of(sampler: EpochBatchSampler, epoch: int, batch: int = 0) -> list[list[tuple[int, int, int]]]:
    sampler.set_position(epoch, batch)
    return [[tuple(key) for key in keys] for keys in sampler]


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, epoch=st.integers(0, 3), seed=st.integers(0, 2**40))
def test_an_epoch_has_each_sample_at_most_once_and_only_a_remainder_is_left(sizes, epoch, seed):
    length, batch_size, world = sizes
    if length < batch_size * world:
        return
    ranks = [
        epoch_of(EpochBatchSampler(length, batch_size, seed=seed, rank=rank, world=world), epoch)
        for rank in range(world)
    ]
    indices = [index for rank in ranks for keys in rank for _, index, _ in keys]
    assert len(set(indices)) == len(indices)
    assert length - len(indices) < batch_size * world
    assert {len(rank) for rank in ranks} == {length // (batch_size * world)}
    assert all(len(keys) == batch_size for rank in ranks for keys in rank)
    assert all(key_epoch == epoch and repeat == 0 for rank in ranks for keys in rank for key_epoch, _, repeat in keys)


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, repeats=st.integers(1, 4), seed=st.integers(0, 99))
def test_the_ranks_put_together_are_the_batch_of_one_process(sizes, repeats, seed):
    length, batch_size, world = sizes
    if length < batch_size * world:
        return
    alone = epoch_of(EpochBatchSampler(length, batch_size * world, seed=seed, repeats=repeats), 1)
    ranks = [
        epoch_of(EpochBatchSampler(length, batch_size, seed=seed, repeats=repeats, rank=rank, world=world), 1)
        for rank in range(world)
    ]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == alone


@settings(max_examples=60, deadline=None)
@given(sizes=sizes)
def test_validation_sees_every_sample_once_in_equally_many_batches_per_rank(sizes):
    length, batch_size, world = sizes
    samplers = [EvalBatchSampler(length, batch_size, rank=rank, world=world) for rank in range(world)]
    ranks = [[[key.index for key in keys] for keys in sampler] for sampler in samplers]
    batches = [list(chain(*parts)) for parts in zip(*ranks, strict=True)]
    assert list(chain(*batches)) == list(range(length))
    assert all(len(batch) == batch_size * world for batch in batches[:-2])
    assert all(rank for rank in chain(*ranks)) or length < world or batch_size == 1
    assert all(len(keys) <= batch_size for rank in ranks for keys in rank)
    assert all(len(rank) == len(sampler) for rank, sampler in zip(ranks, samplers, strict=True))


def test_validation_batches_of_one_process_are_full_up_to_the_last():
    assert [len(keys) for keys in EvalBatchSampler(360, 64)] == [64, 64, 64, 64, 64, 40]


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("batch", [0, 1, 4, 7])
def test_starting_in_the_middle_gives_the_rest_of_the_epoch(batch, repeats):
    make = lambda: EpochBatchSampler(57, 8, seed=3, repeats=repeats)  # noqa: E731
    assert epoch_of(make(), 5, batch) == epoch_of(make(), 5)[batch:]
    assert len(make()) == 7


def test_epochs_and_seeds_differ_and_repeat():
    first = epoch_of(EpochBatchSampler(64, 8, seed=0), 0)
    assert first == epoch_of(EpochBatchSampler(64, 8, seed=0), 0)
    indices = [[index for _, index, _ in keys] for keys in first]
    for other in (EpochBatchSampler(64, 8, seed=0), EpochBatchSampler(64, 8, seed=1)):
        keys_of_epoch = epoch_of(other, 1 if other.seed == 0 else 0)
        assert indices != [[index for _, index, _ in keys] for keys in keys_of_epoch]


def test_without_shuffling_the_order_is_that_of_the_set():
    batches = epoch_of(EpochBatchSampler(7, 2, seed=0, shuffle=False), 2)
    assert batches == [[(2, 0, 0), (2, 1, 0)], [(2, 2, 0), (2, 3, 0)], [(2, 4, 0), (2, 5, 0)]]


def test_repeats_stand_in_one_global_batch_on_different_ranks():
    ranks = [epoch_of(EpochBatchSampler(90, 4, seed=0, repeats=3, rank=rank, world=3), 0) for rank in range(3)]
    assert len(ranks[0]) == 90 // 12  # the epoch keeps its number of batches
    for parts in zip(*ranks, strict=True):
        assert [[repeat for _, _, repeat in keys] for keys in parts] == [[0] * 4, [1] * 4, [2] * 4]
        indices = [[index for _, index, _ in keys] for keys in parts]
        assert indices[0] == indices[1] == indices[2] and len(set(indices[0])) == 4
    seen = [key[1:] for rank in ranks for keys in rank for key in keys]
    assert len(set(seen)) == len(seen) == 84


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    batch_size=st.integers(1, 5),
    repeats=st.integers(1, 3),
    epoch=st.integers(0, 3),
)
def test_balanced_draws_are_even_over_classes_and_within_each(counts, batch_size, repeats, epoch):
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(len(counts)) * 2, counts))  # numbers with gaps
    if len(labels) < batch_size:
        return
    make = lambda: EpochBatchSampler(len(labels), batch_size, seed=3, repeats=repeats, labels=labels.tolist())  # noqa: E731
    batches = epoch_of(make(), epoch)
    assert len(batches) == len(labels) // batch_size == len(make())
    assert epoch_of(make(), epoch, len(batches) // 2) == batches[len(batches) // 2 :]
    draws = make()._order(epoch)
    drawn = np.bincount(labels[draws], minlength=2 * len(counts))[::2]
    assert drawn.sum() == len(labels) and drawn.max() - drawn.min() <= 1
    every = len(counts)
    assert all(len(set(labels[draws[at : at + every]])) == every for at in range(0, len(draws) - every, every))
    of_samples = np.bincount(draws, minlength=len(labels))
    for number in range(len(counts)):
        mine = of_samples[labels == 2 * number]
        assert mine.max() - mine.min() <= 1, "a sample comes again only when its whole class has come"


@settings(max_examples=20, deadline=None)
@given(world=st.integers(1, 3), repeats=st.integers(1, 3))
def test_balanced_ranks_put_together_are_the_batch_of_one_process(world, repeats):
    options = {"seed": 1, "repeats": repeats, "labels": [0] * 40 + [1] * 5}
    alone = epoch_of(EpochBatchSampler(45, 4 * world, **options), 2)
    ranks = [epoch_of(EpochBatchSampler(45, 4, rank=rank, world=world, **options), 2) for rank in range(world)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == alone
    assert alone != epoch_of(EpochBatchSampler(45, 4 * world, **options), 1), "every epoch in an order of its own"


def test_a_batch_larger_than_the_set_is_refused_with_both_numbers():
    with pytest.raises(UserError, match=r"batch of 12 \(6 on each of 2 processes\) and 10 training images"):
        EpochBatchSampler(10, 6, seed=0, world=2)
    with pytest.raises(UserError, match="a batch of 0 and 10"):
        EpochBatchSampler(10, 0, seed=0)
    with pytest.raises(UserError, match="at least one image; got 0"):
        EvalBatchSampler(10, 0)


@pytest.mark.parametrize("seed_at", [seed_cpu_at, seed_everything_at])
def test_draws_are_a_function_of_the_keys(seed_at):
    def at(*keys: int | str) -> tuple[float, float, float]:
        seed_at(*keys)
        return draws()

    first = at(0, 5)
    assert at(0, 6) != first and at(5, 0) != first and at(0, 5, 0) != first and at("step", 0, 5) != first
    assert at(0, 5) == first
    assert len({round(value, 9) for value in first}) == 3, "the three generators must not run in step"
    assert at(-1, 2**70) != first


def test_seeds_are_the_same_everywhere_and_forever():
    # A checkpoint made today must resume bit for bit tomorrow: this value must never change.
    seed_cpu_at("step", 1, 2)
    assert draws()[:2] == pytest.approx(FROZEN_DRAWS, abs=1e-12)


FROZEN_DRAWS = (0.8705278790368407, 0.5873696073893925)


def test_seeding_is_quick():
    best = min(timeit.repeat(lambda: seed_everything_at(1, 2, 3), timer=time.process_time, number=100, repeat=5)) / 100
    assert best < 200e-6, f"{best * 1e6:.0f} microseconds; about 20 on an idle core"
