import pickle
import sys
import time

import numpy as np
import pytest
from PIL import Image

from vitdistill.data.bundled.digits import digits
from vitdistill.data.bundled.moving_digits import (
    CANVAS,
    CLASSES,
    FRAMES,
    MOTIONS,
    VELOCITY,
    MovingDigit,
    moving_digits,
    positions,
    write_mp4,
)
from vitdistill.data.clips.video import Video
from vitdistill.errors import UserError

ALL = range(FRAMES)
MANY = 4000  # paths per motion in statistical tests


def clips(video_set, numbers) -> np.ndarray:
    """Grey values of some clips (n, frames, height, width)."""
    return np.stack([video_set.load(number)[0].read(ALL)[..., 0] for number in numbers])


def paths(motion: str, count: int = MANY) -> np.ndarray:
    random = np.random.RandomState(MOTIONS.index(motion))
    return np.stack([positions(motion, random) for _ in range(count)])


def steps(places: np.ndarray) -> np.ndarray:
    """Shortest way from every frame to the next on the canvas that wraps around."""
    return (np.diff(places, axis=-2) + CANVAS // 2) % CANVAS - CANVAS // 2


def test_sizes_names_and_classes():
    spatial, temporal = moving_digits(), moving_digits("motion")
    assert (spatial.name, temporal.name) == ("moving_digits", "moving_digits:motion")
    assert spatial.classes == list("0123456789") and temporal.classes == list(MOTIONS)
    assert spatial.image_size == CANVAS
    for source in (spatial, temporal):
        assert (len(source.train), len(source.val)) == (1437, 360)
        assert source.train.in_memory and source.val.in_memory
    assert moving_digits() is spatial, "opened once"


@pytest.mark.parametrize("part", ["train", "val"])
def test_both_tasks_label_the_same_clips(part):
    spatial, temporal = getattr(moving_digits(), part), getattr(moving_digits("motion"), part)
    for number in (0, 5, 359):
        (clip, digit), (same, motion) = spatial.load(number), temporal.load(number)
        assert np.array_equal(clip.read(ALL), same.read(ALL))
        assert (digit, motion) == (spatial.labels[number], temporal.labels[number])
        assert spatial.path(number) == temporal.path(number)
        assert MOTIONS[motion] == temporal.motion(number) and MOTIONS[motion] in temporal.path(number)
    assert spatial.labels == getattr(digits(), part).labels


def test_frames_are_the_real_scans_of_their_part_of_the_split():
    for part in ("train", "val"):
        still, moving = getattr(digits(), part), getattr(moving_digits(), part)
        for number in range(0, 360, 40):
            image, label = still.load(number)
            # The scan's whole row and column of black around it come with the larger canvas.
            canvas = np.zeros((CANVAS, CANVAS), dtype=np.uint8)
            canvas[: image.height, : image.width] = np.asarray(image)[..., 0]
            rolls = [np.roll(canvas, (y, x), (0, 1)) for y in range(CANVAS) for x in range(CANVAS)]
            video, digit = moving.load(number)
            assert digit == label and still.path(number) in moving.path(number)
            for frame in video.read(ALL):
                assert any(np.array_equal(frame[..., 0], roll) for roll in rolls)


def test_no_scan_of_the_validation_clips_is_in_a_training_clip():
    source = moving_digits(clips_per_scan=2)
    scans = [{part.path(number).split("/")[1] for number in range(len(part))} for part in (source.train, source.val)]
    assert (len(scans[0]), len(scans[1])) == (1437, 360)
    assert not scans[0] & scans[1]


@pytest.mark.parametrize("part", ["train", "val"])
def test_every_digit_comes_with_every_motion_equally_often(part):
    table = np.zeros((10, len(MOTIONS)), dtype=int)
    np.add.at(table, (getattr(moving_digits(), part).labels, getattr(moving_digits("motion"), part).labels), 1)
    assert table.min() > 0
    assert (table.max(axis=1) - table.min(axis=1)).max() <= 1


def test_more_clips_per_scan_keep_the_first_and_add_other_motions():
    once, thrice = moving_digits("motion").train, moving_digits("motion", clips_per_scan=3).train
    assert len(thrice) == 3 * len(once) and len(thrice.labels) == len(thrice)
    assert thrice.labels[: len(once)] == once.labels
    assert np.array_equal(clips(once, [7, 1436]), clips(thrice, [7, 1436]))
    motions = [thrice.labels[7 + again * len(once)] for again in range(3)]
    assert len(set(motions)) == 3
    assert len({thrice.path(7 + again * len(once)) for again in range(3)}) == 3


def test_a_clip_depends_on_seed_and_index_only():
    train = moving_digits("motion").train
    numbers = [11, 3, 11, 900]
    first = clips(train, numbers)
    assert np.array_equal(first[0], first[2])
    assert np.array_equal(first, clips(pickle.loads(pickle.dumps(train)), numbers))
    moving_digits.cache_clear()
    assert np.array_equal(first, clips(moving_digits("motion").train, numbers))
    assert not np.array_equal(first, clips(moving_digits("motion", seed=1).train, numbers))


def test_the_clips_never_change():
    assert positions("clockwise", np.random.RandomState(0))[:3].tolist() == FIRST_PLACES, "published results need it"


FIRST_PLACES = [[7, 9], [6, 10], [6, 11]]


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_position_in_a_single_frame_is_uniform_for_every_motion(motion):
    places = paths(motion)
    cells = CANVAS**2
    for frame in (0, 1, FRAMES // 2, FRAMES - 1):
        counts = np.bincount(places[:, frame] @ [CANVAS, 1], minlength=cells)
        chi2 = ((counts - MANY / cells) ** 2).sum() / (MANY / cells)
        # chi^2 has mean cells - 1 and this standard deviation when the position is uniform.
        assert abs(chi2 - (cells - 1)) < 5 * np.sqrt(2 * (cells - 1))


def test_a_single_frame_tells_the_digit_but_not_the_motion():
    temporal, spatial = moving_digits("motion", clips_per_scan=2), moving_digits(clips_per_scan=2)
    frames, val_frames = (clips(part, range(len(part)))[:, 3] for part in (temporal.train, temporal.val))
    spread = np.sqrt(0.1 * 0.9 / len(temporal.val))
    by_pixels = nearest(frames, val_frames)
    by_shape = nearest(*(np.abs(np.fft.fft2(part)) for part in (frames, val_frames)))  # wherever the digit is
    assert abs(agreement(temporal, by_pixels) - 0.1) < 4 * spread
    assert abs(agreement(temporal, by_shape) - 0.1) < 4 * spread
    assert agreement(spatial, by_shape) > 0.9


def nearest(train: np.ndarray, val: np.ndarray) -> np.ndarray:
    """For every validation frame, the training frame with the highest cosine similarity."""
    flat = [frames.reshape(len(frames), -1).astype(float) for frames in (train, val)]
    normed = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in flat]
    return (normed[1] @ normed[0].T).argmax(axis=1)


def agreement(source, neighbours: np.ndarray) -> float:
    """Share of validation clips with the label of their neighbour."""
    return float(np.mean(np.array(source.val.labels) == np.array(source.train.labels)[neighbours]))


@pytest.mark.parametrize("motion", list(VELOCITY))
def test_straight_motions_have_one_velocity(motion):
    assert (steps(paths(motion, 50)) == np.array(VELOCITY[motion])).all()


@pytest.mark.parametrize(("motion", "sense"), [("clockwise", 1), ("anticlockwise", -1)])
def test_circles_turn_once_in_their_sense_at_about_one_pixel_per_frame(motion, sense):
    moves = steps(paths(motion, 200)).astype(float)
    assert np.abs(moves).max() <= 2
    assert np.linalg.norm(moves, axis=-1).mean() == pytest.approx(1, abs=0.25)
    travelled = np.concatenate([np.zeros((200, 1, 2)), np.cumsum(moves, axis=1)], axis=1)
    row, column = np.moveaxis(travelled - travelled.mean(axis=1, keepdims=True), -1, 0)
    # Twice the area enclosed; rows count downwards, so clockwise is positive.
    doubled = (column * np.roll(row, -1, axis=1) - row * np.roll(column, -1, axis=1)).sum(axis=1)
    assert (sense * doubled).min() > 0
    assert (sense * doubled).mean() / 2 == pytest.approx(np.pi * (FRAMES / (2 * np.pi)) ** 2, rel=0.15)


def test_jitter_stays_at_its_place_but_never_still():
    places = paths("jitter", 200)
    moves = steps(places)
    assert np.abs(moves).max() == 2 and (moves != 0).any(axis=(1, 2)).all()
    travelled = np.cumsum(moves, axis=1)
    assert (np.ptp(travelled, axis=1) <= 3).all()


def test_only_the_order_of_frames_tells_opposite_motions_apart():
    for one, other in [("left", "right"), ("up", "down"), ("fast_left", "fast_right")]:
        assert (steps(paths(one, 20)[:, ::-1]) == np.array(VELOCITY[other])).all()


def test_the_video_honours_frames_and_size():
    video, _ = moving_digits().train.load(4)
    assert isinstance(video, Video) and video.length == FRAMES
    whole = video.read(ALL)
    assert whole.shape == (FRAMES, CANVAS, CANVAS, 3) and whole.dtype == np.uint8
    assert np.array_equal(video.read([9, 2, 2]), whole[[9, 2, 2]])
    assert np.array_equal(video.read([5], short_side=CANVAS), whole[5:6])
    doubled = video.read([5, 6], short_side=2 * CANVAS)
    assert np.array_equal(doubled, whole[5:7].repeat(2, axis=1).repeat(2, axis=2))
    halved = video.read([5], short_side=CANVAS // 2)[0, ..., 0]
    means = whole[5, ..., 0].reshape(CANVAS // 2, 2, CANVAS // 2, 2).mean(axis=(1, 3))
    assert np.abs(halved - means).max() <= 1, "rows and columns are rounded one after the other"
    assert video.read([], short_side=24).shape == (0, 24, 24, 3)
    assert video.read([0, 1], short_side=24).shape == (2, 24, 24, 3)
    # What a reader does to its frames must not reach the next one.
    whole[:] = 0
    assert video.read(ALL).any()


@pytest.mark.parametrize("side", [5, 16, 17, 25, 32, 33, 100])
def test_frames_of_other_sizes_are_pillow_s_box_filter(side):
    video, _ = moving_digits().train.load(7)
    whole, resized = video.read([0, 9]), video.read([0, 9], short_side=side)
    for frame, seen in zip(whole, resized, strict=True):
        assert np.array_equal(np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BOX)), seen)


@pytest.mark.parametrize("frames", [[FRAMES], [0, -1]])
def test_frames_that_are_not_there_are_no_unreadable_video(frames):
    with pytest.raises(IndexError, match=r"0 to 15"):
        moving_digits().train.load(0)[0].read(frames)


def test_the_digit_wraps_around():
    places = np.full((FRAMES, 2), CANVAS - 4)
    frame = MovingDigit(np.full((8, 8), 255, dtype=np.uint8), places).read([0])[0, ..., 0]
    assert frame.astype(bool).sum() == 64 and frame[:4, :4].all() and frame[-4:, -4:].all() and not frame[4:12].any()


def test_rendering_is_quick():
    train = moving_digits().train
    clips(train, range(10))
    fastest = min(_seconds(lambda: clips(train, range(50))) for _ in range(5))
    assert fastest / 50 < 1e-3


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_written_files_show_the_clips(tmp_path):
    av = pytest.importorskip("av")
    folder = write_mp4(tmp_path / "clips", "motion", train=12, val=10, size=64)
    source = moving_digits("motion")
    assert sorted(entry.name for entry in folder.iterdir()) == ["train", "train.csv", "val", "val.csv"]
    for part, count in (("train", 12), ("val", 10)):
        lines = [line.split(" ") for line in (folder / f"{part}.csv").read_text().splitlines()]
        assert len(lines) == count == len(list((folder / part).glob("*/*.mp4")))
        assert {label for _, label in lines} == {str(label) for label in range(10)}, "all classes"
        for name, label in lines[:3]:
            file = folder / name
            assert file.parent == folder / part / source.classes[int(label)]
            with av.open(str(file)) as container:
                decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
            video, target = getattr(source, part).load(int(file.stem))
            assert target == int(label)
            assert np.abs(decoded - video.read(ALL, 64).astype(float)).mean() < 2


def test_the_digit_task_has_folders_of_digits(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "empty").mkdir()
    folder = write_mp4(tmp_path / "empty", train=10, val=1, size=CANVAS)
    assert sorted(entry.name for entry in (folder / "train").iterdir()) == list(CLASSES["digit"])


def test_bad_requests_for_files_are_named_and_write_nothing(tmp_path):
    pytest.importorskip("av")
    target = tmp_path / "clips"
    with pytest.raises(UserError, match=r"multiple of 16 pixels; got 40"):
        write_mp4(target, size=40)
    with pytest.raises(UserError, match=r"1 to 360 clips to write for val; got 361"):
        write_mp4(target, train=1, val=361)
    assert not target.exists()
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="new or empty"):
        write_mp4(target, train=1, val=1)
    assert [entry.name for entry in target.iterdir()] == ["mine.txt"]


def test_missing_av_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'vitdistill\[video\]'"):
        write_mp4(tmp_path / "clips")


@pytest.mark.usefixtures("unchecked")
def test_bad_sources_are_named():
    with pytest.raises(UserError, match=r"digit, motion; got 'motions'. Did you mean 'motion'"):
        moving_digits("motions")
    with pytest.raises(UserError, match="at least one clip per scan"):
        moving_digits(clips_per_scan=0)
