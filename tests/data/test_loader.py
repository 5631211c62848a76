import errno
import logging
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitdistill.data import Augment, ViewOptions, open_source
from vitdistill.data.images.recipes import eval_transform, train_transform
from vitdistill.data.images.samples import ImageSamples
from vitdistill.data.loader import Batch, CorruptLog, default_workers, make_loader, start_worker, worker_context
from vitdistill.data.order import EpochBatchSampler, EvalBatchSampler
from vitdistill.data.samples import SeveralViews
from vitdistill.errors import UserError
from vitdistill.types import InputSpec

SIZE = 16


def train_batches(data, *, epoch=1, first=0, workers=0, batch_size=3, seed=5, recipe="deit", **sampling):
    source = open_source(data)
    sampler = EpochBatchSampler(len(source.train), batch_size, seed=seed, **sampling)
    transform = train_transform(Augment(recipe=recipe), SIZE)
    loader = make_loader(source.train, transform, sampler, seed=seed, num_workers=workers)
    sampler.set_position(epoch, first)
    return list(loader)


def val_batches(data, *, workers=0, batch_size=3):
    source = open_source(data)
    transform = eval_transform(Augment(), SIZE)
    sampler = EvalBatchSampler(len(source.val), batch_size)
    return list(make_loader(source.val, transform, sampler, seed=0, num_workers=workers))


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.images, other.images) and torch.equal(batch.targets, other.targets)
        assert torch.equal(batch.index, other.index) and batch.skipped == other.skipped


def paths(batch: Batch) -> list[str]:
    return [path for path, _ in batch.skipped]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_batches_have_the_promised_shapes(photos):
    (batch, *_) = train_batches(photos)
    assert batch.images.shape == (3, 3, SIZE, SIZE) and batch.images.dtype == torch.uint8
    assert batch.targets.dtype == batch.index.dtype == torch.int64 and batch.skipped == []
    labels = open_source(photos).train.labels
    assert batch.targets.tolist() == [labels[index] for index in batch.index.tolist()]


def test_workers_and_the_starting_batch_change_nothing(photos):
    truncate(photos / "train/cat/002.jpg")
    whole = train_batches(photos, repeats=2)
    assert_same(whole, train_batches(photos, repeats=2, workers=2))
    assert_same(whole[1:], train_batches(photos, repeats=2, first=1))


def test_persistent_workers_follow_the_position(photos):
    source = open_source(photos)
    sampler = EpochBatchSampler(len(source.train), 3, seed=5)
    loader = make_loader(source.train, train_transform(Augment(), SIZE), sampler, seed=5, num_workers=1)
    for epoch, first in [(0, 0), (1, 2), (1, 0)]:
        sampler.set_position(epoch, first)
        assert_same(list(loader), train_batches(photos, epoch=epoch, first=first, recipe="tiny"))
    assert len(loader) == 3


def test_the_state_of_the_generators_does_not_matter_and_stays_when_nothing_is_random(photos):
    first = train_batches(photos)
    torch.manual_seed(123)
    assert_same(first, train_batches(photos))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    val_batches(photos)
    train_batches(photos, recipe="none")
    assert torch.equal(state, torch.get_rng_state())


def test_seed_epoch_and_repeat_change_the_augmentation(photos):
    first = train_batches(photos, shuffle=False)
    for other in (train_batches(photos, shuffle=False, epoch=2), train_batches(photos, shuffle=False, seed=6)):
        assert torch.equal(first[0].index, other[0].index)
        assert not torch.equal(first[0].images, other[0].images)
    (batch, *_) = train_batches(photos, shuffle=False, batch_size=6, repeats=3)
    assert batch.index.tolist() == [0, 1] * 3
    assert len({tuple(image.flatten().tolist()) for image in batch.images}) == 6


def test_two_ranks_together_are_one_process(photos):
    alone = train_batches(photos, batch_size=4, repeats=2)
    ranks = [train_batches(photos, batch_size=2, repeats=2, rank=rank, world=2) for rank in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
        assert torch.equal(whole.targets, torch.cat([part.targets for part in parts]))


def test_unreadable_training_images_are_replaced_by_the_next(photos):
    truncate(photos / "train/cat/003.jpg")
    (photos / "train/cat/004.jpg").write_text("not an image")
    (batch,) = train_batches(photos, batch_size=10, shuffle=False)
    assert batch.index.tolist() == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9]
    assert batch.targets.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    bad = [str(photos / "train/cat/003.jpg"), str(photos / "train/cat/004.jpg")]
    assert sorted({path for path, _ in batch.skipped}) == bad
    reasons = dict(batch.skipped)
    assert "truncated" in reasons[bad[0]].lower() and "cannot identify" in reasons[bad[1]]


def test_unreadable_validation_images_are_left_out(photos):
    truncate(photos / "val/cat/001.jpg")
    (photos / "val/dog/001.jpg").write_bytes(b"")
    first, second = val_batches(photos)
    assert first.index.tolist() == [0, 2] and paths(first) == [str(photos / "val/cat/001.jpg")]
    assert second.images.shape == (0, 3, SIZE, SIZE) and second.targets.shape == (0,)
    assert second.images.dtype == torch.uint8 and paths(second) == [str(photos / "val/dog/001.jpg")]


@pytest.mark.parametrize("name", ["bad.png", "bad.webp", "bad.tiff", "bad.bmp", "bad.ppm"])
@pytest.mark.parametrize("keep", [0, 4, 30, 0.5])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_files_of_every_format_are_noticed(photos, name, keep):
    source = open_source(photos)
    bad = photos / "val/dog" / name
    source.val.load(0)[0].save(bad)
    data = bad.read_bytes()
    bad.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    batches = val_batches(photos)
    assert [path for batch in batches for path in paths(batch)] == [str(bad)]


def test_a_whole_unreadable_set_ends_in_the_log_and_not_in_a_hang(photos):
    for file in (photos / "train").rglob("*.jpg"):
        file.write_text("nothing")
    log = CorruptLog()
    for batch in train_batches(photos):
        assert len(batch.images) == 0
        log.add(batch.skipped)
    with pytest.raises(UserError, match="10 of 10"):
        log.check(10)


def test_the_log_warns_once_per_path(caplog):
    log = CorruptLog([("known.jpg", "old")])
    with caplog.at_level(logging.WARNING):
        log.add([("b.jpg", "no image"), ("a.jpg", "empty"), ("known.jpg", "new")])
        log.add([("a.jpg", "empty")])
    assert [record.getMessage() for record in caplog.records] == [
        "Unreadable image, skipped: b.jpg (no image)",
        "Unreadable image, skipped: a.jpg (empty)",
    ]
    reasons = {"known.jpg": "old", "b.jpg": "no image", "a.jpg": "empty"}
    assert log.as_dict() == {
        "unreadable_images": 3,
        "unreadable_paths": ["known.jpg", "b.jpg", "a.jpg"],
        "unreadable_reasons": reasons,
    }


def test_processes_make_one_log_of_theirs(caplog):
    logs = [CorruptLog(), CorruptLog()]
    found = [[("a.jpg", "empty"), ("b.jpg", "empty")], [("b.jpg", "here it is no image"), ("c.jpg", "empty")]]
    with caplog.at_level(logging.WARNING):
        for log, unreadable in zip(logs, found, strict=True):
            log.add(unreadable)
        said = len(caplog.records)
        told = [dict(log.untold) for log in logs]
        for log in logs:
            log.exchange(lambda mine: told if mine in told else [])
        for log in logs:
            assert sorted(log.paths) == ["a.jpg", "b.jpg", "c.jpg"] and log.untold == {}
            log.add([("a.jpg", "empty"), ("b.jpg", "empty"), ("c.jpg", "empty")])  # no news anywhere
            assert log.untold == {}
            log.check(50)
            with pytest.raises(UserError, match="got 3 of 8"):
                log.check(8)
    assert len(caplog.records) == said == 4


def test_more_than_one_percent_stops_the_run():
    log = CorruptLog((f"{number}.jpg", "empty") for number in range(4))
    log.check(400)
    with pytest.raises(UserError, match=r"At most 1%.*got 4 of 399: 0.jpg \(empty\), 1.jpg .*, \.\.\.\. Repair"):
        log.check(399)


@pytest.mark.parametrize(
    ("share", "total", "most"),
    [(0.01, 50, 3), (0.01, 8, 2), (0.01, 3, 0), (0.0, 50, 0), (0.5, 50, 25), (1.0, 50, 49), (0.01, 1000, 10)],
)
def test_how_many_a_run_bears(share, total, most):
    borne, one_more = (CorruptLog(((str(n), "") for n in range(count)), share=share) for count in (most, most + 1))
    borne.check(total)
    with pytest.raises(UserError, match=f"got {most + 1} of {total}"):
        one_more.check(total)


def test_images_in_memory_are_made_once():
    source = open_source("digits")
    sampler = EpochBatchSampler(len(source.train), 64, seed=0)
    transform, made = train_transform(Augment(recipe="none"), source.image_size), []
    steps = transform.steps
    counting = replace(transform, steps=lambda image: made.append(1) or steps(image))
    loader = make_loader(source.train, counting, sampler, seed=0)
    for epoch in range(3):
        sampler.set_position(epoch)
        assert sum(len(batch.images) for batch in loader) == 1437 // 64 * 64
    assert len(made) <= 1437, "later epochs take the images that the first has made"


def test_kept_images_are_not_changed_by_what_is_done_to_a_batch():
    source = open_source("digits")
    sampler = EvalBatchSampler(len(source.val), 64)
    loader = make_loader(source.val, eval_transform(Augment(recipe="none"), source.image_size), sampler, seed=0)
    first = [batch.images.clone() for batch in loader]
    for batch in loader:
        batch.images.zero_()
    assert all(torch.equal(one, batch.images) for one, batch in zip(first, loader, strict=True))


# --- several views ---------------------------------------------------------------------------------------------------


class Crops:
    """Two views of an image: a random piece of it, and all of it, twice as large."""

    random, shape = True, ((3, 4, 6), (3, 16, 16))

    def __init__(self, target: float | None = None) -> None:
        self.target = target

    def __call__(self, image: Image.Image) -> SeveralViews:
        left, top = torch.randint(5, (2,)).tolist()
        views = (image.crop((left, top, left + 6, top + 4)), image.resize((16, 16)))
        target = None if self.target is None else torch.full((2, 3), self.target)
        return SeveralViews(tuple(torch.from_numpy(np.array(view)).permute(2, 0, 1) for view in views), target)


class TwoViews(ImageSamples):
    """Six images, of which the fifth is unreadable."""

    def __len__(self) -> int:
        return 6

    def load(self, index: int) -> tuple[Image.Image, int]:
        if index == 4:
            raise OSError("broken")
        pixels = np.random.RandomState(index).randint(0, 256, (12, 12, 3), dtype=np.uint8)
        return Image.fromarray(pixels), index % 2

    def path(self, index: int) -> str:
        return f"image {index}"

    @property
    def labels(self) -> list[int]:
        return [index % 2 for index in range(6)]

    def transform(self, spec: InputSpec, options: ViewOptions, *, train: bool) -> Crops:
        return Crops()


@pytest.mark.parametrize("workers", [0, 1])
def test_several_views_are_stacked_view_by_view(workers):
    samples, options = TwoViews(), ViewOptions(augment=Augment())
    transform = samples.transform(InputSpec((3, 16, 16), (0.5,) * 3, (0.5,) * 3), options, train=True)
    sampler = EpochBatchSampler(len(samples), 3, seed=0, shuffle=False)
    first, second = make_loader(samples, transform, sampler, seed=3, num_workers=workers)
    assert [view.shape for view in first.images] == [(3, 3, 4, 6), (3, 3, 16, 16)]
    assert second.index.tolist() == [3, 5, 5] and second.targets.tolist() == [1, 1, 1]
    assert second.skipped == [("image 4", "broken")]
    small, large = second.images
    assert torch.equal(large[1], large[2]) and small.dtype == large.dtype == torch.uint8
    again = next(iter(make_loader(samples, transform, sampler, seed=3)))
    other = next(iter(make_loader(samples, transform, sampler, seed=4)))
    assert torch.equal(again.images[0], first.images[0]) and not torch.equal(other.images[0], first.images[0])


def test_several_views_without_a_readable_sample_are_empty():
    sampler = EvalBatchSampler(6, 1)
    batches = list(make_loader(TwoViews(), Crops(), sampler, seed=0))
    assert [view.shape for view in batches[4].images] == [(0, 3, 4, 6), (0, 3, 16, 16)]
    assert len(batches[4].index) == 0 and paths(batches[4]) == ["image 4"]


def test_several_views_may_bring_a_target_of_their_own():
    (batch, *_) = make_loader(TwoViews(), Crops(target=0.5), EvalBatchSampler(6, 2), seed=0)
    assert torch.equal(batch.targets, torch.full((2, 2, 3), 0.5))


def test_default_workers(photos):
    assert default_workers(open_source("digits")) == 0
    assert 1 <= default_workers(open_source(photos)) <= 8


# --- reasons, and the machine's own failures -------------------------------------------------------------------------


class Failing(TwoViews):
    """Six images, of which the fifth cannot be read for a given reason."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def load(self, index: int) -> tuple[Image.Image, int]:
        if index == 4:
            raise self.error
        return super().load(index)


def read_all(error: Exception, workers: int) -> list[Batch]:
    return list(make_loader(Failing(error), Crops(), EvalBatchSampler(6, 2), seed=0, num_workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOSPC, errno.EIO, errno.ENFILE])
def test_failures_of_the_machine_are_raised_as_themselves_in_one_line(workers, number):
    with pytest.raises(OSError, match=f"image 4 .*{os.strerror(number)}") as error:
        read_all(OSError(number, os.strerror(number), "image 4"), workers)
    assert error.value.errno == number and isinstance(error.value, UserError)
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_out_of_memory_is_raised_as_itself(workers):
    with pytest.raises(MemoryError, match="enough memory to decode a sample; got image 4"):
        read_all(MemoryError(), workers)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "image 4"), "No such file or directory"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "image 4"), "Is a directory"),
        (ValueError("image 4: no pictures\nin it"), "no pictures in it"),
        (OSError("cannot identify image file 'image 4'"), "cannot identify image file"),
        (EOFError(), "EOFError"),
    ],
)
def test_damage_keeps_its_reason_without_the_path(error, reason):
    assert read_all(error, 0)[2].skipped == [("image 4", reason)]


def test_a_users_mistake_found_by_a_worker_is_one_line():
    with pytest.raises(UserError) as error:
        read_all(UserError("Pictures must be square", "4x3"), 1)
    assert str(error.value) == "Pictures must be square; got 4x3"


def test_workers_leave_signals_to_the_training_process(photos):
    """As when the whole process group is signalled; whoever started them can still end them."""
    source = open_source(photos)
    sampler = EpochBatchSampler(len(source.train), 3, seed=5)
    loader = make_loader(source.train, train_transform(Augment(), SIZE), sampler, seed=5, num_workers=1)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    batches = iter(loader)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    (worker,) = loader._iterator._workers
    for _ in range(3):  # also before it is set up
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == len(sampler)
    assert worker.is_alive()
    loader._iterator._shutdown_workers()
    assert worker.exitcode == 0


def stay(started) -> None:
    start_worker(0)
    started.set()
    time.sleep(60)


def test_a_worker_that_does_not_end_can_be_terminated():
    context = worker_context(1)
    started = context.Event()
    worker = context.Process(target=stay, args=(started,), daemon=True)
    worker.start()
    assert started.wait(30)
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == -signal.SIGKILL
    assert worker_context(0) is None
