"""Sounds on disk: what is read, resampled and kept, and one line for everything that is wrong with a file."""

import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sounds import class_folders, tone, write
from vitdistill.data import Augment, ViewOptions, open_source
from vitdistill.data.audio.decode import KEPT, RATE, Sound, kept_file, resampled
from vitdistill.data.left_out import _said
from vitdistill.data.loader import make_loader
from vitdistill.data.media import has_sounds
from vitdistill.data.order import EvalBatchSampler
from vitdistill.errors import UserError
from vitdistill.types import InputSpec
from vitdistill.verbs.check import check

SPEC = InputSpec((1, 16, 28), (-5.0,), (6.0,), sound=True)
PLAIN = ViewOptions(augment=Augment(recipe="none"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "calls", 2, 1)


def test_class_folders_of_any_format_and_rate(folder: Path) -> None:
    write(folder / "train/low/more.flac", tone(400, 1, rate=44_100), 44_100)
    write(folder / "train/low/other.OGG", tone(400, 2, rate=8_000), 8_000, format="OGG", subtype="VORBIS")
    (folder / "train/low/notes.txt").write_text("of the recordings")
    (folder / "notes").mkdir()
    for number in range(1001):  # before the sounds
        (folder / "notes" / f"{number}.json").touch()
    assert has_sounds(folder)
    shutil.rmtree(folder / "notes")
    source = open_source(str(folder))
    assert source.classes == ["high", "low"] and len(source.train) == 6 and len(source.val) == 2
    assert source.train.word == "sound" and source.train.labels == [0, 0, 1, 1, 1, 1]
    for index in range(6):
        waveform = source.train.load(index)[0].read()
        assert abs(len(waveform) - 0.3 * RATE) <= 1 and 0.2 < np.abs(waveform).max() < 0.6
    assert len(open_source(str(folder / "train/low"), labels=False).train) == 3


def test_what_was_resampled_is_kept_and_made_anew_for_another_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.wav", tone(400, 1, seconds=1.0, rate=44_100), 44_100)
    sound = Sound(str(file), str(tmp_path))
    whole, begun = Sound(str(file)).read(), sound.read(3000)
    assert len(whole) == RATE and len(begun) == 3000
    np.testing.assert_allclose(begun, whole[:3000], atol=1e-6)
    np.testing.assert_allclose(whole, resampled(soundfile.read(file, dtype="float32")[0], 44_100), atol=1e-7)
    (kept,) = (tmp_path / KEPT).rglob("*.npy")
    assert kept == kept_file(str(file), tmp_path, 3000)
    before = kept.stat().st_mtime_ns
    assert np.array_equal(sound.read(3000), begun) and kept.stat().st_mtime_ns == before, "read, not made again"
    kept.write_bytes(kept.read_bytes()[:100])
    assert np.array_equal(sound.read(3000), begun) and np.load(kept).shape == (3000,), "a damaged one is made again"
    write(file, tone(3000, 1, seconds=1.0, rate=44_100), 44_100)
    os.utime(file, ns=(1, 1))
    assert not np.allclose(sound.read(3000), begun)


def test_what_cannot_be_kept_in_the_folder_is_kept_in_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    file = write(tmp_path / "data/a.wav", tone(400, 1, rate=8_000), 8_000)
    Sound(str(file), str(tmp_path / "data")).read()
    assert not (tmp_path / "data" / KEPT).exists() and len(list((tmp_path / "cache/sounds").rglob("*.npy"))) == 1


def spoilt(folder: Path) -> dict[str, Path]:
    """One file for everything that may be wrong with one."""
    whole = write(folder / "cut.wav", tone(400, 1)).read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.wav").write_bytes(b"")
    write(folder / "nothing.wav", np.zeros(0, dtype=np.float32))
    (folder / "text.wav").write_text("no sound")
    write(folder / "blip.wav", tone(400, 1)[:100])
    write(folder / "nan.wav", np.full(8000, np.nan, dtype=np.float32), subtype="FLOAT")
    for name, rate in (("still", 0), ("slow", 10), ("fast", 40_000_000)):
        made = bytearray(whole)
        made[24:28] = struct.pack("<I", rate)
        (folder / f"{name}.wav").write_bytes(made)
    write(folder / "loud.wav", 1e30 * tone(400, 1), subtype="FLOAT")  # its power would overflow
    flac = write(folder / "cut.flac", tone(400, 1)).read_bytes()
    (folder / "cut.flac").write_bytes(flac[: len(flac) // 2])
    return {file.name: file for file in folder.iterdir()}


REASONS = {
    "cut.wav": "cut off: ",
    "cut.flac": "",  # in libsndfile's words
    "empty.wav": "an empty file",
    "nothing.wav": "no samples in it",
    "text.wav": "",
    "blip.wav": "6.25 ms long, and a spectrogram needs 25",
    "nan.wav": "it holds values that are no numbers",
    "loud.wav": "it holds values above 1e+09, where -1..1 is meant",
    "still.wav": "",
    "slow.wav": "a rate of 10 samples per second, which must lie between 1000 and 1000000",
    "fast.wav": "a rate of 40000000 samples per second",
}


def test_every_unreadable_sound_has_a_reason_of_one_line(tmp_path: Path) -> None:
    files = spoilt(tmp_path)
    assert set(files) == set(REASONS)
    for name, reason in REASONS.items():
        with pytest.raises((ValueError, OSError)) as raised:
            Sound(str(files[name])).read()
        words = str(raised.value)
        assert words.startswith(reason) and len(words) > 5 and "\n" not in words, (name, words)


@pytest.mark.skipif(os.name != "posix", reason="names are bytes")
def test_names_that_are_no_text_are_read(tmp_path: Path) -> None:
    name = os.fsencode(write(tmp_path / "a.wav", tone(400, 1)))
    other = os.path.join(os.path.dirname(name), b"\xff.wav")
    try:
        os.rename(name, other)
    except OSError:
        pytest.skip("the file system takes text only")
    assert len(Sound(os.fsdecode(other)).read()) == 4800


def test_unreadable_sounds_are_skipped_named_and_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train/low/broken.wav").write_bytes(b"")
    write(folder / "train/low/silent.wav", np.zeros(4800, dtype=np.float32))
    source = open_source(str(folder))
    loader = make_loader(source.train, source.train.transform(SPEC, PLAIN, train=False), EvalBatchSampler(6, 6), seed=0)
    (batch,) = loader
    assert len(batch.index) == 5 and batch.skipped[0].reason == "an empty file"
    inputs = source.train.on_device(SPEC, PLAIN, 2).eval(batch.images)
    assert inputs.shape == (5, 1, 16, 28) and inputs.isfinite().all(), "silence is a sound"
    result = check(str(folder), workers=0)
    assert result["counts"]["unreadable"] == 1 and result["splits"]["train"]["seconds"] == [0.3, 0.3, 0.3]
    assert "16000" in capsys.readouterr().out


def test_loader_processes_read_and_keep_the_same(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "calls", 3, 1, rate=22_050)
    samples = open_source(str(folder)).train
    transform = samples.transform(SPEC, PLAIN, train=True)
    here, there = (
        torch.cat(
            [b.images for b in make_loader(samples, transform, EvalBatchSampler(6, 2), seed=0, num_workers=count)]
        )
        for count in (2, 0)
    )
    assert torch.equal(here.nan_to_num(), there.nan_to_num())
    assert len(list((folder / "train" / KEPT).rglob("*.npy"))) == 6
    assert not list((folder / "train" / KEPT).rglob("*.tmp"))
    assert len(open_source(str(folder)).train) == 6, "what is kept is no class and no sample"


def test_stereo_and_long_sounds_are_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    both = np.stack((tone(400, 1, seconds=2.0), np.zeros(32_000, dtype=np.float32)), axis=1)
    file = write(folder / "train/low/stereo.wav", both)
    np.testing.assert_allclose(Sound(str(file)).read(), both.mean(axis=1), atol=1e-4)
    samples = open_source(str(folder)).train
    _said.clear()
    for _ in range(2):
        samples.check(SPEC, PLAIN)
    assert caplog.text.count("1 of 5 sounds of") == 2, "one line on each"
    assert "several channels, which are mixed down" in caplog.text
    assert "only their first 0.2 s are heard; the longest has 2 s" in caplog.text
    caplog.clear()
    samples.check(InputSpec((1, 16, 512), (0.0,), (1.0,), sound=True), PLAIN)
    assert "last at most 2 s of the network's 5.1 s" in caplog.text


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"augment": {"scale": 0.5}}, "augment.scale"),
        ({"stride": 2}, "stride"),
        ({"augment": {"erasing": 0.1}}, "erasing"),
    ],
    ids=["scale", "stride", "erasing"],
)
def test_options_of_pictures_are_refused(folder: Path, options: dict[str, Any], option: str) -> None:
    given = ViewOptions(
        **{
            "augment": Augment(),
            **options,
            **({"augment": Augment(**options["augment"])} if "augment" in options else {}),
        }
    )
    with pytest.raises(UserError, match=rf"--\S*{option} has no effect on sounds"):
        open_source(str(folder)).train.transform(SPEC, given, train=True)


def test_networks_and_data_of_other_kinds_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="Sounds need a network over spectrograms"):
        open_source(str(folder)).train.transform(InputSpec((3, 16, 16), (0.5,) * 3, (0.5,) * 3), PLAIN, train=True)
    for name, word in (("digits", "images"), ("moving_digits", "videos")):
        with pytest.raises(UserError, match=f"A network over spectrograms needs sounds; got {word}"):
            open_source(name).train.transform(SPEC, PLAIN, train=True)
        for augment in (Augment(freq_mask=0.1), Augment(recipe="sound")):
            with pytest.raises(UserError, match="has no effect on|is for sounds"):
                open_source(name).train.transform(SPECS[name], ViewOptions(augment=augment), train=True)


SPECS = {
    "digits": InputSpec((3, 12, 12), (0.5,) * 3, (0.5,) * 3),
    "moving_digits": InputSpec((3, 4, 16, 16), (0.5,) * 3, (0.5,) * 3),
}


def test_without_soundfile_one_line_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(UserError, match=r"Sounds need soundfile and SciPy. Run: pip install 'vitdistill\[audio\]'"):
        open_source(str(folder))
