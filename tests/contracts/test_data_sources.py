"""What every data source promises. A new source is one line in SOURCES."""

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import box_trees
import contained
import sounds
from made_pairs import ade20k
from vitdistill.cli import main
from vitdistill.data import Augment, DataSource, Samples, ViewOptions, open_source
from vitdistill.data.actions.annotations import open_actions
from vitdistill.data.actions.files import ActionFiles
from vitdistill.data.boxes.sources import open_boxes
from vitdistill.data.boxes.transforms import BoxImage
from vitdistill.data.clips.files import video_files
from vitdistill.data.clips.video import Video
from vitdistill.data.images.decode import has_heif
from vitdistill.data.loader import CorruptLog, default_workers, make_loader
from vitdistill.data.order import EpochBatchSampler, EvalBatchSampler
from vitdistill.data.segments.files import SegmentFiles
from vitdistill.data.segments.folder import segment_folder
from vitdistill.data.segments.samples import Segmented
from vitdistill.data.segments.scenes import scene_segments
from vitdistill.errors import UserError
from vitdistill.types import InputSpec
from vitdistill.verbs.check import check

STATISTICS = ((0.5,) * 3, (0.5,) * 3)
SPECS = {
    "images": InputSpec((3, 16, 16), *STATISTICS),
    "clips": InputSpec((3, 4, 16, 16), *STATISTICS),
    "sounds": InputSpec((1, 16, 26), (-5.0,), (6.0,), sound=True),
}
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


def sound_folder(folder: Path) -> DataSource:
    pytest.importorskip("soundfile")
    return open_source(sounds.class_folders(folder, 2, 1, rate=22_050))


def esc50(folder: Path) -> DataSource:
    pytest.importorskip("soundfile")
    return open_source(f"{sounds.esc50(folder)}?fold=1")


def once(write: Callable[[Path], DataSource]) -> Callable[[Path], DataSource]:
    """Containers are written and opened once for all tests, which only read."""
    made: list[DataSource] = []

    def source(folder: Path) -> DataSource:
        if not made:
            made.append(write(folder))
        return made[0]

    return source


# Containers that hold pictures as files are encoded, so that one may be unreadable.
CONTAINERS: dict[str, Callable[..., DataSource]] = {
    "shards": contained.shards,
    "hf_saved": contained.saved,
    "parquet": contained.parquet,
    "csv": contained.csv,
    "torch_dataset": contained.torch_data,
}


def pairs(folder: Path) -> DataSource:
    return segment_folder(ade20k(folder, sizes=((20, 20), (24, 24), (28, 28))))


SOURCES: dict[str, Callable[[Path], DataSource]] = {
    "segment_folder": pairs,
    "segmented_scenes": lambda _: scene_segments(SegmentFiles(), sizes=(6, 4)),
    "digits": lambda _: open_source("digits"),
    "moving_digits": lambda _: open_source("moving_digits"),
    "moving_digits:motion": lambda _: open_source("moving_digits:motion"),
    "sounds": lambda _: open_source("sounds"),
    "sound_folder": sound_folder,
    "esc50": esc50,
    "image_folder": image_folder,
    "unlabelled_folder": unlabelled_folder,
    "video_folder": video_folder,
    "video_lists": video_lists,
    "frame_folders": frame_folders,
    "unlabelled_frame_folders": unlabelled_frame_folders,
    "key_frames": key_frames,
    "voc": lambda folder: open_boxes(box_trees.voc(folder)),
    "coco": lambda folder: open_boxes(box_trees.coco(folder)),
    "scenes": lambda _: open_boxes("scenes"),
    "torchvision": once(contained.torchvision),
    **{name: once(write) for name, write in CONTAINERS.items()},
    **{f"unlabelled_{name}": once(partial(write, labelled=False)) for name, write in CONTAINERS.items()},
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices and copies of containers are kept in a folder of the tests."""
    monkeypatch.setenv("VITDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "indices"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> DataSource:
    return SOURCES[request.param](tmp_path)


@pytest.fixture(params=["train", "val"])
def samples(request: pytest.FixtureRequest, source: DataSource) -> Samples:
    return getattr(source, request.param)


def pixels(sample: Any) -> np.ndarray:
    """What can be compared of an image, of a video, or of a sound."""
    sample = sample.image if isinstance(sample, Segmented | BoxImage) else sample
    if hasattr(sample, "header"):
        return sample.read()
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
        if source.train.word == "sound":
            assert pixels(sample).ndim == 1 and pixels(sample).dtype == np.float32
        else:
            assert pixels(sample).shape[-1] == 3 and pixels(sample).dtype == np.uint8
        assert np.array_equal(pixels(sample), pixels(samples.load(index)[0]))
        assert source.image_size is None or pixels(sample).shape[-3:-1] == (source.image_size,) * 2


def test_inspecting_tells_what_loading_gives(samples: Samples) -> None:
    sample, facts = samples.load(0)[0], samples.inspect(0)
    assert facts == samples.inspect(0)
    if samples.word == "sound":
        assert facts.seconds == round(len(pixels(sample)) / 16_000, 3) and facts.content and facts.rate
    elif type(samples).inspect is not Samples.inspect:  # key frames are not looked at
        assert (facts.height, facts.width) == pixels(sample).shape[-3:-1] and facts.content
        assert facts.frames == (sample.length if isinstance(sample, Video) else None)


def test_paths_tell_samples_apart(source: DataSource) -> None:
    paths = [samples.path(index) for samples in (source.train, source.val) for index in range(len(samples))]
    assert len(set(paths)) == len(paths) and all(paths)


def test_a_digest_says_which_samples_there_are(source: DataSource) -> None:
    for samples in (source.train, source.val):
        digest = samples.digest()
        assert digest is not None and int(digest, 16) > 0
        assert pickle.loads(pickle.dumps(samples)).digest() == digest


def test_workers_can_receive_a_copy(samples: Samples) -> None:
    copy = pickle.loads(pickle.dumps(samples))
    assert copy.labels == samples.labels
    assert np.array_equal(pixels(copy.load(0)[0]), pixels(samples.load(0)[0]))
    for spec in taken(samples):
        transform = pickle.loads(pickle.dumps(samples.transform(spec, PLAIN, train=True)))
        assert transform.shape == ((4400,) if spec.sound else spec.shape)


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
            assert image.shape == transform.shape
            assert image.dtype == (torch.float32 if spec.sound else torch.uint8)
            inputs = samples.on_device(spec, PLAIN, 2).eval(torch.stack((image, same)))
            assert inputs.shape == (2, *spec.shape) and inputs.isfinite().all()
            assert (target is None) == (same_target is None) == (not isinstance(made, tuple))
            if not transform.random:
                assert torch.equal(image.nan_to_num(), same.nan_to_num())
        assert not transform.random, "validation draws nothing"


def test_options_that_would_change_nothing_are_refused(samples: Samples) -> None:
    """Of clips for networks over images, and of test views where there is a single image or key frame."""
    for spec in taken(samples):
        if spec.sound:
            for option in ({"stride": 2}, {"sampling": "uniform"}, {"clips": 2}, {"crops": 3}):
                with pytest.raises(UserError, match=rf"--{next(iter(option))} has no effect on sounds"):
                    samples.transform(spec, ViewOptions(augment=Augment(recipe="none"), **option), train=False)
            with pytest.raises(UserError, match=r"--augment.crop_pct has no effect on sounds"):
                samples.transform(spec, ViewOptions(augment=Augment(recipe="none", crop_pct=0.9)), train=False)
        elif spec.frames is None:
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
    assert all(batch.images.shape[1:] == transform.shape and not batch.skipped for batch in batches)


def test_unreadable_samples_are_called_what_they_are(source: DataSource, caplog: pytest.LogCaptureFixture) -> None:
    CorruptLog.of(source.val).add([(source.val.path(0), "empty")])
    assert f"Unreadable {source.val.word}, skipped: {source.val.path(0)} (empty)" in caplog.text
    assert (default_workers(source) == 0) == source.train.in_memory


def test_an_epoch_goes_on_in_the_middle_as_if_it_had_not_stopped(source: DataSource) -> None:
    first = train_batches(source)
    again = train_batches(source, start=1)
    assert len(first) >= 2 and len(again) == len(first) - 1
    for batch, other in zip(first[1:], again, strict=True):
        assert torch.equal(batch.index, other.index) and torch.equal(
            batch.images.nan_to_num(), other.images.nan_to_num()
        )


def test_the_batches_of_two_processes_are_those_of_one(source: DataSource) -> None:
    whole = train_batches(source, batch_size=2)
    halves = [train_batches(source, batch_size=1, rank=rank, world=2) for rank in (0, 1)]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(batch.index, torch.cat([part.index for part in parts]))
        both = torch.cat([part.images for part in parts])
        assert torch.equal(batch.images.nan_to_num(), both.nan_to_num())


def train_batches(source: DataSource, *, start: int = 0, batch_size: int = 1, rank: int = 0, world: int = 1) -> list:
    """Up to four batches of the second epoch, flipped at random where that means something."""
    spec = taken(source.train)[0]
    augment = Augment(recipe="none", hflip=None if spec.sound else 0.5)
    transform = source.train.transform(spec, ViewOptions(augment=augment), train=True)
    sampler = EpochBatchSampler(len(source.train), batch_size, seed=3, rank=rank, world=world)
    sampler.set_position(1, start)
    batches = iter(make_loader(source.train, transform, sampler, seed=3))
    return [next(batches) for _ in range(min(len(sampler), 4) - start)]


@pytest.mark.parametrize("name", CONTAINERS)
def test_unreadable_pictures_of_containers_are_skipped_and_named(name: str, tmp_path: Path) -> None:
    source = CONTAINERS[name](tmp_path, broken=(2,))
    for samples in (source.train, source.val):
        assert samples.labels == [number % 2 for number in range(len(samples))]
        transform = samples.transform(SPECS["images"], PLAIN, train=False)
        (batch,) = make_loader(samples, transform, EvalBatchSampler(len(samples), 50), seed=0)
        assert batch.index.tolist() == [number for number in range(len(samples)) if number != 2]
        assert len(batch.skipped) == 1 and samples.path(2) in str(batch.skipped[0])


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_hold_what_was_put_into_them(name: str, tmp_path: Path) -> None:
    source, again = (CONTAINERS[name](tmp_path / place) for place in made_folders(tmp_path))
    assert source.classes == contained.CLASSES
    reds = [samples.load(index)[0].getpixel((3, 3))[0] for samples in (source.train, source.val) for index in range(4)]
    assert reds == [0, 10, 20, 30, 60, 70, 80, 90]
    if name != "csv":  # files on disk have no digest
        assert source.train.digest() == again.train.digest() != source.val.digest(), "wherever the container lies"


def made_folders(root: Path) -> tuple[str, str]:
    for name in ("here", "there"):
        (root / name).mkdir()
    return "here", "there"


@pytest.mark.parametrize("name", ["shards", "parquet", "hf_saved"])
def test_loader_processes_read_containers_as_one_process_does(name: str, tmp_path: Path) -> None:
    samples = CONTAINERS[name](tmp_path).train
    transform = samples.transform(SPECS["images"], PLAIN, train=False)
    samples.load(0)  # so that they inherit an open file
    here, there = (
        list(make_loader(samples, transform, EvalBatchSampler(len(samples), 2), seed=0, num_workers=count))
        for count in (0, 2)
    )
    assert all(torch.equal(one.images, other.images) for one, other in zip(here, there, strict=True))


def test_checking_goes_through_every_sample(source: DataSource, capsys: pytest.CaptureFixture[str]) -> None:
    result = check(source, labels=bool(source.classes), workers=0)
    assert result["ok"] and result["complete"] and not result["counts"].get("unreadable")
    for split, samples in (("train", source.train), ("val", source.val)):
        assert result["splits"][split]["samples"] == result["splits"][split]["checked"] == len(samples)
        if samples.labels is not None:
            assert sum(counts[split] for counts in result["classes"].values()) == len(samples)
    assert f"{source.train.word}s" in capsys.readouterr().out


@pytest.mark.parametrize("name", CONTAINERS)
def test_checking_containers_names_what_cannot_be_read(name: str, tmp_path: Path) -> None:
    source = CONTAINERS[name](tmp_path, broken=(2,))
    found = [one for one in check(source, workers=0)["findings"] if one["kind"] == "unreadable"]
    assert [(one["split"], one["path"]) for one in found] == [
        (split, samples.path(2)) for split, samples in (("train", source.train), ("val", source.val))
    ]
    assert all(one["detail"] for one in found)


def test_checking_reads_what_folders_read(tmp_path: Path) -> None:
    """HEIC, AVIF, animations and 16 bits, beside what is none."""
    pytest.importorskip("pillow_heif")
    endings = ("heic", "avif", "gif", "tiff", "jp2", "jfif")
    for number, place in enumerate(("train/a", "train/b", "val/a", "val/b")):
        (tmp_path / place).mkdir(parents=True)
        for ending in endings:
            has_heif()  # Pillow saves HEIC once it knows it
            Image.new("RGB", (24, 20), (10 * number, 80, 0)).save(tmp_path / place / f"1.{ending}")
    result = check(str(tmp_path), workers=0)
    assert result["ok"] and result["splits"]["train"]["checked"] == 2 * len(endings)


def test_containers_are_checked_by_their_addresses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for write in (contained.shards, contained.saved, contained.parquet, contained.csv, contained.torchvision):
        (tmp_path / write.__name__).mkdir()
        write(tmp_path / write.__name__)
    addresses = (
        f"shards:{tmp_path}/shards/*.tar",
        f"hf:{tmp_path}/saved/saved",
        f"parquet:{tmp_path}/parquet",
        f"csv:{tmp_path}/csv/labels.csv?label=breed",
        f"{tmp_path}/csv",
        f"torchvision:FashionMNIST?root={tmp_path}/torchvision",
    )
    for address in addresses:
        assert main(["check", address, "--workers", "0"]) == 0, address
        assert "cat" in (printed := capsys.readouterr().out) or "Trouser" in printed
