"""What every data source promises. A new source is one line in SOURCES."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitdistill.data import Augment, DataSource, Samples, ViewOptions, open_source
from vitdistill.data.actions.annotations import open_actions
from vitdistill.data.actions.files import ActionFiles
from vitdistill.data.clips.files import video_files
from vitdistill.data.clips.video import Video
from vitdistill.data.loader import CorruptLog, default_workers, make_loader
from vitdistill.data.order import EvalBatchSampler
from vitdistill.errors import UserError
from vitdistill.types import InputSpec

STATISTICS = ((0.5,) * 3, (0.5,) * 3)
SPECS = {"images": InputSpec((3, 16, 16), *STATISTICS), "clips": InputSpec((3, 4, 16, 16), *STATISTICS)}
PLAIN = ViewOptions(augment=Augment(recipe="none"))


def image_folder(folder: Path) -> DataSource:
    for number, name in enumerate(["train/a/1", "train/a/2", "train/b/1", "val/a/1", "val/b/1", "val/b/2"]):
        picture(folder / f"{name}.png", number)
    return open_source(folder)


def unlabelled_folder(folder: Path) -> DataSource:
    for number, name in enumerate(["1", "a/2", "a/deeper/3", "b/4", "b/5"]):
        picture(folder / f"{name}.png", number)
    return open_source(folder, labels=False)


def picture(file: Path, number: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20 + number, 24), (number, 0, 0)).save(file)


def frame_folders(folder: Path) -> DataSource:
    for name in ("train/a/1", "train/b/1", "val/a/1", "val/b/1"):
        frames(folder / name)
    return video_files(folder)


def unlabelled_frame_folders(folder: Path) -> DataSource:
    for name in ("1", "2", "deeper/3"):
        frames(folder / name)
    return video_files(folder, labels=False)


def frames(folder: Path, count: int = 20) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (24, 20), (number, 0, 0)).save(folder / f"img_{number:05d}.png")


def video_folder(folder: Path) -> DataSource:
    write_videos(folder, "train/a/1", "train/b/1", "val/a/1", "val/b/1")
    return open_source(folder)


def video_lists(folder: Path) -> DataSource:
    write_videos(folder, "1", "2", "3", "4")
    (folder / "train.csv").write_text("1.mp4 0\n2.mp4 1\n")
    (folder / "val.csv").write_text("3.mp4 0\n4.mp4 1\n")
    return open_source(folder)


def write_videos(folder: Path, *names: str) -> None:
    pytest.importorskip("av")
    from generated_videos import write_video

    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / f"{name}.mp4", 20)


def key_frames(folder: Path) -> DataSource:
    for name in ("a", "b"):
        frames(folder / "videos" / name)
    (folder / "train.csv").write_text("a,1,0,0,0.5,1,1,0\na,2,0,0,1,1,2,0\nb,1,0,0,1,1,2,0\n")
    (folder / "val.csv").write_text("b,2,0,0,0.5,1,1,0\nb,2,0.5,0,1,1,2,1\nb,3,0,0,1,1,2,0\n")
    files = ActionFiles(train=str(folder / "train.csv"), val=str(folder / "val.csv"), frame_rate=4.0)
    return open_actions(folder / "videos", files).source("actions")


SOURCES: dict[str, Callable[[Path], DataSource]] = {
    "digits": lambda _: open_source("digits"),
    "moving_digits": lambda _: open_source("moving_digits"),
    "moving_digits:motion": lambda _: open_source("moving_digits:motion"),
    "image_folder": image_folder,
    "unlabelled_folder": unlabelled_folder,
    "video_folder": video_folder,
    "video_lists": video_lists,
    "frame_folders": frame_folders,
    "unlabelled_frame_folders": unlabelled_frame_folders,
    "key_frames": key_frames,
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> DataSource:
    return SOURCES[request.param](tmp_path)


@pytest.fixture(params=["train", "val"])
def samples(request: pytest.FixtureRequest, source: DataSource) -> Samples:
    return getattr(source, request.param)


def pixels(sample: Any) -> np.ndarray:
    """What can be compared of an image, or of a video."""
    return sample.read([0, sample.length - 1]) if isinstance(sample, Video) else np.asarray(sample)


def taken(samples: Samples) -> list[InputSpec]:
    """The inputs that these samples can become."""
    found = []
    for spec in SPECS.values():
        try:
            samples.transform(spec, PLAIN, train=False)
            found.append(spec)
        except UserError:
            pass
    return found


def test_names_and_classes(source: DataSource) -> None:
    assert source.name and len(source.classes) == len(set(source.classes))
    assert len(source.classes) != 1, "one class is none: without labels there are no classes"
    assert source.image_size is None or source.image_size > 0
    assert source.train.word == source.val.word and source.train.has_frames == source.val.has_frames


def test_labels_are_class_numbers_and_every_class_occurs(source: DataSource, samples: Samples) -> None:
    assert len(samples) > 0
    if samples.labels is not None:
        assert len(samples) == len(samples.labels) and set(samples.labels) == set(range(len(source.classes)))


def test_loading_gives_the_listed_label_and_the_same_pixels_each_time(source: DataSource, samples: Samples) -> None:
    for index in (0, len(samples) // 2, len(samples) - 1):
        sample, label = samples.load(index)
        assert label == (None if samples.labels is None else samples.labels[index]) and type(label) in (int, type(None))
        assert pixels(sample).shape[-1] == 3 and pixels(sample).dtype == np.uint8
        assert np.array_equal(pixels(sample), pixels(samples.load(index)[0]))
        assert source.image_size is None or pixels(sample).shape[-3:-1] == (source.image_size,) * 2


def test_inspecting_tells_what_loading_gives(samples: Samples) -> None:
    sample, facts = samples.load(0)[0], samples.inspect(0)
    assert facts == samples.inspect(0)
    if type(samples).inspect is not Samples.inspect:  # key frames are not looked at
        assert (facts.height, facts.width) == pixels(sample).shape[-3:-1] and facts.content
        assert facts.frames == (sample.length if isinstance(sample, Video) else None)


def test_paths_tell_samples_apart(source: DataSource) -> None:
    paths = [samples.path(index) for samples in (source.train, source.val) for index in range(len(samples))]
    assert len(set(paths)) == len(paths) and all(paths)


def test_workers_can_receive_a_copy(samples: Samples) -> None:
    copy = pickle.loads(pickle.dumps(samples))
    assert copy.labels == samples.labels
    assert np.array_equal(pixels(copy.load(0)[0]), pixels(samples.load(0)[0]))
    for spec in taken(samples):
        transform = pickle.loads(pickle.dumps(samples.transform(spec, PLAIN, train=True)))
        assert transform.shape == spec.shape


def test_a_transform_keeps_its_promises(samples: Samples) -> None:
    specs = taken(samples)
    assert specs, "a set must suit some network"
    for spec in specs:
        samples.check(spec, PLAIN)
        for train in (True, False):
            transform = samples.transform(spec, PLAIN, train=train)
            made, again = (transform(samples.load(0)[0]) for _ in range(2))
            (image, target), (same, same_target) = (
                one if isinstance(one, tuple) else (one, None) for one in (made, again)
            )
            assert image.shape == transform.shape == spec.shape and image.dtype == torch.uint8
            assert (target is None) == (same_target is None) == (not isinstance(made, tuple))
            if not transform.random:
                assert torch.equal(image, same)
        assert not transform.random, "validation draws nothing"


def test_options_that_would_change_nothing_are_refused(samples: Samples) -> None:
    """Of clips for networks over images, and of test views where there is a single image or key frame."""
    for spec in taken(samples):
        if spec.frames is None:
            for options in ({"stride": 2}, {"sampling": "uniform"}, {"clips": 2}, {"crops": 3}):
                name = "clips" if "crops" in options else next(iter(options))
                with pytest.raises(UserError, match=rf"--{name} has no effect with a network over single images"):
                    samples.transform(spec, ViewOptions(augment=Augment(recipe="none"), **options), train=False)
        else:
            with pytest.raises(UserError, match=r"--crop_pct"):
                samples.transform(spec, ViewOptions(augment=Augment(recipe="none", crop_pct=0.9)), train=False)


def test_what_a_network_cannot_be_given_is_said() -> None:
    images = open_source("digits").train
    with pytest.raises(UserError, match="A network over clips needs videos; got single images. Give a folder of vid"):
        images.transform(SPECS["clips"], PLAIN, train=True)
    assert [spec.frames for spec in taken(open_source("moving_digits").train)] == [None, 4]


def test_key_frames_need_a_network_over_clips(tmp_path: Path) -> None:
    samples = key_frames(tmp_path).train
    with pytest.raises(UserError, match="Key frames need a network over clips"):
        samples.transform(SPECS["images"], PLAIN, train=True)
    with pytest.raises(UserError, match="--sampling has no effect on key frames"):
        samples.transform(SPECS["clips"], ViewOptions(augment=PLAIN.augment, sampling="uniform"), train=True)


def test_every_validation_sample_is_loaded_once(source: DataSource) -> None:
    spec = taken(source.val)[0]
    transform = source.val.transform(spec, PLAIN, train=False)
    batches = list(make_loader(source.val, transform, EvalBatchSampler(len(source.val), 50), seed=0))
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(len(source.val)))
    if source.val.labels is not None:
        assert torch.cat([batch.targets for batch in batches]).tolist() == source.val.labels
    elif not source.classes:
        assert all(batch.targets is None for batch in batches)
    assert all(batch.images.shape[1:] == spec.shape and not batch.skipped for batch in batches)


def test_unreadable_samples_are_called_what_they_are(source: DataSource, caplog: pytest.LogCaptureFixture) -> None:
    CorruptLog.of(source.val).add([source.val.path(0)])
    assert f"Unreadable {source.val.word}, skipped: {source.val.path(0)}" in caplog.text
    assert (default_workers(source) == 0) == source.train.in_memory
