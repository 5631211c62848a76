import pickle
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tvf

from vitdistill.data.clips.samples import VideoSamples
from vitdistill.data.clips.sampling import Sampling, Views
from vitdistill.data.clips.transforms import (
    cut_views,
    eval_transform,
    finetune_transform,
    multi_scale_crop,
    pretrain_transform,
    views_of,
    views_transform,
)
from vitdistill.data.clips.video import Video
from vitdistill.data.images.augment import Augment
from vitdistill.data.order import seed_cpu_at
from vitdistill.data.samples import ViewOptions
from vitdistill.errors import UserError
from vitdistill.types import InputSpec

FINETUNE = Augment(recipe="finetune", auto_augment="rand-m7-n4-mstd0.5-inc1")
PLAIN = Augment(recipe="none")
STATISTICS = ((0.5,) * 3, (0.5,) * 3)
SPEC, OPTIONS = InputSpec((3, 16, 32, 32), *STATISTICS), ViewOptions(augment=PLAIN)


class Made(Video):
    """A video in memory: red tells the frame, green the row and blue the column. Notes what is read."""

    def __init__(self, length: int = 100, height: int = 60, width: int = 80, still: bool = False) -> None:
        self._length, self.still = length, still
        self.size = (height, width)
        self.reads: list[tuple[list[int], int | None]] = []

    @property
    def length(self) -> int:
        return self._length

    def read(self, frames: Sequence[int], short_side: int | None = None) -> np.ndarray:
        self.reads.append((list(frames), short_side))
        height, width = self.size
        if short_side is not None:
            height, width = (round(edge * short_side / min(self.size)) for edge in self.size)
        made = np.zeros((len(frames), height, width, 3), dtype=np.uint8)
        made[..., 0] = 0 if self.still else np.array(frames)[:, None, None]
        made[..., 1] = np.arange(height)[None, :, None]
        made[..., 2] = np.arange(width)[None, None, :]
        return made


class Sized(Made):
    """One that knows its size, as files do."""

    @property
    def short_side(self) -> int:
        return min(self.size)


class MadeSet(VideoSamples):
    def __init__(self, lengths: list[int | None], clip_frames: int | None = None) -> None:
        self.lengths, self.loaded, self.clip_frames = lengths, 0, clip_frames

    def __len__(self) -> int:
        return len(self.lengths)

    def load(self, index: int) -> tuple[Video, int]:
        self.loaded += 1
        if (length := self.lengths[index]) is None:
            raise OSError("broken")
        return Made(length), 0

    def path(self, index: int) -> str:
        return str(index)

    @property
    def labels(self) -> list[int]:
        return [0] * len(self)


@pytest.fixture(autouse=True)
def seeded():
    seed_cpu_at("test", 0)


# --- sampling --------------------------------------------------------------------------------------------------------


def test_dense_clips_lie_anywhere_in_the_video():
    sampling = Sampling(frames=4, stride=3)
    clips = [sampling.train(20) for _ in range(300)]
    assert all(np.diff(clip).tolist() == [3, 3, 3] for clip in clips)
    assert {clip[0] for clip in clips} == set(range(20 - 12 + 1)) and max(map(max, clips)) < 20


def test_dense_test_clips_are_spread_evenly_and_a_single_one_is_the_centre():
    sampling = Sampling(frames=16, stride=4)
    assert sampling.test(300)[0] == (300 - 64) // 2
    assert [sampling.test(300, clip, 5)[0] for clip in range(5)] == [0, 59, 118, 177, 236]


@pytest.mark.parametrize("length", [1, 2, 15, 63])
def test_short_videos_are_taken_whole_and_their_last_frame_repeated(length):
    for clip in (Sampling().train(length), Sampling().test(length), Sampling().test(length, 4, 5)):
        assert len(clip) == 16 and clip[0] == 0 and max(clip) == min(length - 1, 60)
        assert clip == sorted(clip)


def test_uniform_clips_have_one_frame_of_every_segment():
    sampling = Sampling(frames=8, kind="uniform")
    clips = np.array([sampling.train(80) for _ in range(300)])
    assert (clips // 10 == np.arange(8)).all() and len(np.unique(clips)) == 80
    assert sampling.test(80) == [5, 15, 25, 35, 45, 55, 65, 75]
    # As the authors' test clips: shifted by half a segment for two of them.
    assert sampling.test(80, 0, 2) == list(range(0, 80, 10)) and sampling.test(80, 1, 2) == sampling.test(80)
    assert sampling.test(3) == [0, 0, 0, 1, 1, 2, 2, 2]


def test_bad_sampling_is_refused():
    sampling = Sampling()
    object.__setattr__(sampling, "kind", "dens")  # the type check of these tests would refuse it first
    with pytest.raises(UserError, match="Did you mean 'dense'"):
        sampling.__post_init__()
    for options in ({"frames": 0}, {"stride": 0}):
        with pytest.raises(UserError, match="at least one frame"):
            Sampling(**options)


def test_a_clip_longer_than_every_video_is_refused():
    with pytest.raises(UserError, match="span 61 frames, and the longest video has 60"):
        MadeSet([10, None, 60, 59]).check(SPEC, OPTIONS)
    MadeSet([10, None, 61]).check(SPEC, OPTIONS)
    MadeSet([10]).check(SPEC, replace(OPTIONS, sampling="uniform"))
    MadeSet([10]).check(InputSpec((3, 32, 32), *STATISTICS), OPTIONS)  # single frames
    MadeSet([None]).check(SPEC, OPTIONS)  # the loader says what is wrong with it


def test_the_length_check_opens_few_videos():
    videos = MadeSet([100] * 1000)
    videos.check(SPEC, OPTIONS)
    assert videos.loaded == 64
    with pytest.raises(UserError, match="longest"):
        (short := MadeSet([9] * 1000)).check(SPEC, OPTIONS)
    assert short.loaded == 64


# --- transforms ------------------------------------------------------------------------------------------------------

TRANSFORMS = {
    "pretrain": pretrain_transform(32, Sampling()),
    "finetune": finetune_transform(32, Sampling(), FINETUNE),
    "jitter": finetune_transform(32, Sampling(), Augment(recipe="tiny", color_jitter=0.4)),
    "plain": finetune_transform(32, Sampling(kind="uniform"), PLAIN),
    "eval": eval_transform(32, Sampling()),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("size", [(60, 80), (90, 40), (32, 32), (20, 17)])
def test_the_contract_of_transforms(name, size):
    transform = pickle.loads(pickle.dumps(TRANSFORMS[name]))
    outcomes = []
    for seed in (1, 1, 2):
        seed_cpu_at(seed)
        outcomes.append(transform(Made(100, *size)))
    assert outcomes[0].shape == (3, 16, 32, 32) and outcomes[0].dtype == torch.uint8 and outcomes[0].is_contiguous()
    assert torch.equal(outcomes[0], outcomes[1])
    assert torch.equal(outcomes[0], outcomes[2]) != transform.random
    assert transform.random == (name != "eval")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_video_without_frames_is_unreadable_and_a_single_frame_will_do(name):
    with pytest.raises(ValueError, match="without frames"):
        TRANSFORMS[name](Made(0))
    clip = TRANSFORMS[name](Made(1))
    assert (clip == clip[:, :1]).all()


@pytest.mark.parametrize("name", ["finetune", "jitter"])
def test_all_frames_are_distorted_alike(name):
    for seed in range(8):
        seed_cpu_at(seed)
        clip = TRANSFORMS[name](Made(still=True))
        assert (clip == clip[:, :1]).all()


def test_distortions_differ_from_clip_to_clip_and_do_something():
    plain = finetune_transform(32, Sampling(), Augment(recipe="finetune", auto_augment="none", hflip=0.0, scale=1.0))
    rand = finetune_transform(32, Sampling(), Augment(recipe="finetune", hflip=0.0, scale=1.0))
    untouched = plain(Made(still=True))
    clips = [rand(Made(still=True)) for _ in range(6)]
    assert sum(not torch.equal(clip, untouched) for clip in clips) >= 4
    assert len({clip.numpy().tobytes() for clip in clips}) >= 4


def test_the_flip_turns_all_frames():
    options = {"recipe": "none"}
    straight = finetune_transform(32, Sampling(), Augment(**options, hflip=0.0))
    turned = finetune_transform(32, Sampling(), Augment(**options, hflip=1.0))
    for transform, sign in ((straight, 1), (turned, -1)):
        assert torch.sign(transform(Made())[2, :, 0].int().diff(dim=-1)).unique().tolist() == [sign]


def test_evaluation_is_the_centre_of_the_middle_clip_in_one_resize():
    video = Made(100, 60, 90)
    clip = eval_transform(30, Sampling(frames=4, stride=2))(video)
    assert video.reads == [([46, 48, 50, 52], 30)]
    assert clip[0, :, 0, 0].tolist() == [46, 48, 50, 52]
    assert clip[2, 0, 0].tolist() == list(range(7, 37)) or clip[2, 0, 0].tolist() == list(range(8, 38))


def test_random_crops_decode_no_larger_than_needed():
    for transform, short_side in ((pretrain_transform(224, Sampling()), 340), (TRANSFORMS_224, 256)):
        for video, read in ((Made(), short_side), (Sized(), None), (Sized(10, 1080, 1920), short_side)):
            transform(video)
            assert video.reads[0][1] == read


TRANSFORMS_224 = finetune_transform(224, Sampling(), Augment(recipe="tiny"))


def test_multi_scale_crops_are_those_of_tsn():
    crops = {multi_scale_crop(100, 200) for _ in range(6000)}
    sizes = {(height, width) for _, _, height, width in crops}
    edges = [100, 87, 75, 66]
    expected = {(edge, edge) for edge in edges} | {pair for a, b in pairwise(edges) for pair in ((a, b), (b, a))}
    assert sizes == expected
    smallest = {(top, left) for top, left, *size in crops if size == [66, 66]}
    row, column = 34 // 4, 134 // 4
    halfway = {(row * a, column * b) for a in (1, 3) for b in (1, 3)}
    assert smallest == {(row * a, column * b) for a in (0, 2, 4) for b in (0, 2, 4)} | halfway
    assert all(top + height <= 100 and left + width <= 200 for top, left, height, width in crops)


def test_crops_are_resized_as_torchvision_does(monkeypatch):
    monkeypatch.setattr(random, "choice", lambda options: options[-1])
    video = Made(16, 60, 80)
    clip = pretrain_transform(32, Sampling(frames=1, stride=1))(video)
    frame = torch.from_numpy(video.read([0], 49)[0]).permute(2, 0, 1)
    edge = int(49 * 0.66)
    top, left = 3 * ((49 - edge) // 4), 3 * ((65 - edge) // 4)
    expected = tvf.resize(frame[:, top : top + edge, left : left + edge].contiguous(), [32, 32], antialias=True)
    assert (clip[1:, 0].int() - expected[1:].int()).abs().max() <= 1


def test_options_out_of_range_are_refused():
    with pytest.raises(UserError, match="scale"):
        finetune_transform(32, Sampling(), Augment(scale=2.0))
    with pytest.raises(UserError, match="bilinear, bicubic or nearest"):
        finetune_transform(32, Sampling(), Augment(interpolation="lanczos"))


# --- which transform a source gets -----------------------------------------------------------------------------------


def chosen(augment: Augment, *, labels: bool, bundled: int | None = None):
    spec = InputSpec((3, 4, 32, 32), *STATISTICS)
    options = ViewOptions(augment=augment, stride=2, labels=labels)
    return MadeSet([100, 100], bundled).transform(spec, options, train=True)


def test_pretraining_without_a_random_crop_takes_the_centre_of_random_clips():
    transform, video = chosen(PLAIN, labels=False), Made(100, 60, 80)
    clips = [transform(video) for _ in range(8)]
    assert all(short_side == 32 for _, short_side in video.reads)  # one resize, while decoding
    places = torch.stack([clip[1:] for clip in clips])  # green and blue tell row and column
    assert (places == places[:1]).all() and len({int(clip[0, 0, 0, 0]) for clip in clips}) > 4
    assert places[0, 0, 0, :, 0].tolist() == list(range(32))
    multi_scale = chosen(Augment(recipe="pretrain"), labels=False)
    assert len({multi_scale(video)[1:].numpy().tobytes() for _ in range(8)}) > 4


@pytest.mark.parametrize(
    "options",
    [{"hflip": 0.5}, {"scale": 0.5}, {"color_jitter": 0.4}, {"auto_augment": "rand-m7"}, {"interpolation": "bicubic"}],
)
@pytest.mark.parametrize("bundled", [None, 16])
def test_pretraining_on_clips_refuses_what_it_leaves_out(options, bundled):
    with pytest.raises(UserError, match=rf"--augment\.{next(iter(options))} has no effect on clips without labels"):
        chosen(Augment(recipe="pretrain", **options), labels=False, bundled=bundled)
    chosen(Augment(recipe="pretrain", hflip=0.0, auto_augment="none"), labels=False)  # says what happens anyway


def test_bundled_clips_are_recoloured_where_asked():
    video = Made(still=True)
    assert not chosen(PLAIN, labels=True, bundled=8).random
    jitter = chosen(Augment(recipe="none", color_jitter=0.4), labels=True, bundled=8)
    assert len({jitter(video).numpy().tobytes() for _ in range(4)}) == 4


@pytest.mark.parametrize("labels", [False, True])
def test_bundled_clips_longer_than_the_networks_are_cut_anywhere(labels):
    transform, video = chosen(PLAIN, labels=labels, bundled=16), Made()
    assert transform.random and len({transform(video).numpy().tobytes() for _ in range(8)}) > 4


def test_a_centre_crop_has_no_interpolation_to_choose():
    with pytest.raises(UserError, match=r"--augment\.interpolation has no effect with scale 1"):
        chosen(Augment(recipe="none", interpolation="bicubic"), labels=True)


@pytest.mark.parametrize("labels", [False, True])
def test_clips_have_no_share_of_the_centre_crop(labels):
    with pytest.raises(UserError, match=r"--augment\.crop_pct has no effect on clips"):
        chosen(Augment(recipe="none", crop_pct=0.9), labels=labels)


# --- views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "channel"), [(60, 90, 2), (90, 60, 1)])
def test_views_are_clips_times_crops_along_the_longer_edge(height, width, channel):
    video, sampling = Made(100, height, width), Sampling(frames=4, stride=2)
    seen = views_of(video, 30, sampling, Views(5, 3))
    assert seen.shape == (15, 3, 4, 30, 30) and seen.dtype == torch.uint8
    assert len(video.reads) == 1
    starts = [sampling.test(100, clip, 5) for clip in range(5)]
    assert seen[:, 0, :, 0, 0].tolist() == [start for start in starts for _ in range(3)]
    assert seen[:3, channel, 0, 0, 0].tolist() == [0, 8, 15]
    single = views_of(video, 30, sampling, Views())
    assert torch.equal(single[0, 0], eval_transform(30, sampling)(video)[0])


def test_square_videos_and_bad_views():
    seen = views_of(Made(10, 30, 30), 30, Sampling(frames=2, stride=1), Views(2, 3))
    assert torch.equal(seen[0], seen[2])
    for clips, crops in ((0, 1), (1, 2)):
        with pytest.raises(UserError, match="1 or 3 crops"):
            Views(clips, crops)


def test_views_travel_as_one_clip_and_are_cut_apart_again():
    video, sampling, chosen = Made(100, 60, 90), Sampling(frames=4, stride=2), Views(5, 3)
    transform = views_transform(30, sampling, chosen)
    clips = torch.stack([transform(video), transform(Made(90, 60, 90))])
    assert clips.shape[1:] == transform.shape and not transform.random
    single = cut_views(clips, chosen)
    assert torch.equal(single[:15], views_of(video, 30, sampling, chosen))
    assert torch.equal(single[15:], views_of(Made(90, 60, 90), 30, sampling, chosen))
