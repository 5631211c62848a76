"""Real video files, good and bad, through sets, transforms and batches."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from generated_videos import numbers, turn, write_sound, write_video
from vitdistill.data.clips.files import video_files
from vitdistill.data.clips.sampling import Sampling, Views
from vitdistill.data.clips.transforms import eval_transform, pretrain_transform, views_transform
from vitdistill.data.images.recipes import Augment
from vitdistill.data.loader import CorruptLog, make_loader
from vitdistill.data.order import EpochBatchSampler, EvalBatchSampler
from vitdistill.data.samples import ViewOptions
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.types import InputSpec

SIZE, SAMPLING = 32, Sampling(frames=4, stride=2)
GOOD = ["a_plain.mp4", "b_single.mp4", "c_short.avi", "d_turned.mp4", "e_odd.mkv", "f_variable.mkv", "g_cut.mkv"]
BAD = ["m_empty.mp4", "n_text.mp4", "o_sound.mp4", "p_headless.mp4", "q_frames"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    """Every good file, then every bad one, in each class of each split."""
    root = tmp_path_factory.mktemp("mixed")
    for place in ("train/x", "train/y", "val/x", "val/y"):
        make(root / place)
    return video_files(root)


def make(folder: Path) -> None:
    folder.mkdir(parents=True)
    plain = write_video(folder / "a_plain.mp4", 20)
    write_video(folder / "b_single.mp4", 1)
    write_video(folder / "c_short.avi", 3)  # of the 7 frames that a clip spans
    turn(write_video(folder / "d_turned.mp4", 20))
    write_video(folder / "e_odd.mkv", 20, size=(97, 55), codec="ffv1")
    times = [40 * number for number in range(10)] + [400 + 10 * number for number in range(10)]
    write_video(folder / "f_variable.mkv", 20, rate=30, pts=times)
    cut = write_video(folder / "g_cut.mkv", 60)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    (folder / "m_empty.mp4").touch()
    (folder / "n_text.mp4").write_text("no video " * 50)
    write_sound(folder / "o_sound.mp4")
    (folder / "p_headless.mp4").write_bytes(plain.read_bytes()[:500])
    (folder / "q_frames").mkdir()
    (folder / "q_frames" / "img_1.jpg").write_bytes(b"no image")


def names(paths: list[str]) -> list[str]:
    return [Path(path).name for path in paths]


def test_training_batches_are_full_and_what_is_unreadable_is_named(source):
    sampler = EpochBatchSampler(len(source.train), 12, seed=0, shuffle=False)
    batches = list(make_loader(source.train, pretrain_transform(SIZE, SAMPLING), sampler, seed=0))
    assert [batch.images.shape for batch in batches] == [(12, 3, 4, SIZE, SIZE)] * 2
    assert sorted(set(names([path for batch in batches for path, _ in batch.skipped]))) == BAD
    shown = names([source.train.path(index) for index in batches[0].index.tolist()])
    assert shown[:7] == GOOD and shown[7:] == ["a_plain.mp4"] * 5, "the next readable one takes their place"
    assert batches[0].targets.tolist() == [0] * 7 + [1] * 5


def test_validation_leaves_out_what_is_unreadable(source):
    transform = eval_transform(SIZE, SAMPLING)
    batches = list(make_loader(source.val, transform, EvalBatchSampler(len(source.val), 12), seed=0))
    assert [names([source.val.path(index) for index in batch.index.tolist()]) for batch in batches] == [GOOD, GOOD]
    assert [names(path for path, _ in batch.skipped) for batch in batches] == [BAD, BAD]
    views = views_transform(SIZE, SAMPLING, Views(2, 3))
    (first, _) = make_loader(source.val, views, EvalBatchSampler(len(source.val), 12), seed=0)
    assert first.images.shape == (7, 3, 6 * 4, SIZE, SIZE) and names(path for path, _ in first.skipped) == BAD
    (_, empty) = make_loader(source.val, transform, EvalBatchSampler(7 + 5, 7), seed=0)
    assert empty.images.shape == (0, 3, 4, SIZE, SIZE) and len(empty.skipped) == 5


def test_workers_read_the_same(source):
    def images(workers: int) -> torch.Tensor:
        sampler = EvalBatchSampler(len(source.val), 8)
        loader = make_loader(source.val, eval_transform(SIZE, SAMPLING), sampler, seed=0, num_workers=workers)
        return torch.cat([batch.images for batch in loader])

    assert torch.equal(images(0), images(1))


def test_videos_are_called_videos_where_they_are_counted(source, caplog):
    log = CorruptLog.of(source.val)
    log.add((f"x/{name}.mp4", "no pictures") for name in "abcd")
    assert "Unreadable video, skipped: x/a.mp4 (no pictures)" in caplog.text
    with pytest.raises(UserError, match="At most 1% of the videos may be unreadable; got 4 of 24: x/a.mp4"):
        log.check(24)


def test_short_videos_among_long_ones_repeat_their_last_frame(source):
    spec, options = InputSpec((3, 4, SIZE, SIZE), (0.5,) * 3, (0.5,) * 3), ViewOptions(augment=Augment(), stride=2)
    source.val.check(spec, options)
    video, _ = source.val.load(GOOD.index("c_short.avi"))
    assert numbers(video.read(SAMPLING.test(video.length))) == [0, 2, 2, 2]
    single, _ = source.val.load(GOOD.index("b_single.mp4"))
    assert np.ptp(single.read(SAMPLING.test(single.length)), axis=0).max() == 0
    with pytest.raises(UserError, match="span 121 frames, and the longest video has"):
        source.val.check(spec, replace(options, stride=40))
