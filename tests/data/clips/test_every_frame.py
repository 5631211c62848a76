"""The frame asked for is the frame got, in every container and codec and however the file was cut.

Right is what decoding the whole file from its start gives with PyAV's own loop: how many pictures, which, in which
order.
"""

import random
import shutil
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generated_videos import av, numbers, picture, write_video
from vitdistill.data.clips.decode import VideoFile

SIZE, RATE, COUNT = (64, 64), 25, 26
X264 = "keyint=8:min-keyint=8:scenecut=0:b-adapt=0"
CODECS = {
    "h264": ("libx264", {"preset": "ultrafast", "x264-params": f"{X264}:bframes=0"}),
    "h264 B": ("libx264", {"preset": "ultrafast", "x264-params": f"{X264}:bframes=3:b-pyramid=normal"}),
    "h264 open": ("libx264", {"preset": "ultrafast", "x264-params": f"{X264}:bframes=3:open-gop=1"}),
    "h264 refresh": ("libx264", {"preset": "ultrafast", "x264-params": "intra-refresh=1:keyint=8:bframes=0"}),
    "h264 fields": ("libx264", {"preset": "ultrafast", "x264-params": f"{X264}:bframes=2:tff=1"}),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "keyint=8:bframes=3:open-gop=1:log-level=none"}),
    "vp8": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "40k", "cpu-used": "8", "quality": "good"}),
    "vp9": ("libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "40k", "cpu-used": "5"}),
    "av1": ("libsvtav1", {"preset": "12", "svtav1-params": "keyint=8"}),
    "mpeg4": ("mpeg4", {}),
    "mpeg4 B": ("mpeg4", {"bf": "2"}),
    "mpeg2": ("mpeg2video", {"bf": "2"}),
    "mjpeg": ("mjpeg", {}),
    "wmv": ("wmv2", {}),
    "flv": ("flv", {}),
    "gif": ("gif", {}),
    "ffv1": ("ffv1", {}),
}
ALL = {
    "mp4": ["h264", "h264 B", "h264 open", "h264 refresh", "h264 fields", "hevc", "vp9", "av1", "mpeg4 B", "mpeg2"],
    "mov": ["h264 B", "mjpeg", "mpeg4"],
    "mkv": ["h264", "h264 B", "h264 open", "h264 refresh", "h264 fields", "hevc", "vp8", "vp9", "mpeg4 B", "ffv1"],
    "webm": ["vp8", "vp9", "av1"],
    "avi": ["h264", "h264 B", "h264 open", "mpeg4", "mpeg4 B", "mjpeg", "ffv1"],
    "ts": ["h264 B", "h264 open", "hevc", "mpeg2"],
    "mpg": ["mpeg2"],
    "flv": ["h264 B", "flv"],
    "asf": ["h264 B", "wmv"],
    "wmv": ["wmv"],
    "h264": ["h264 B", "h264 open"],
    "hevc": ["hevc"],
    "ivf": ["vp8", "vp9"],
    "nut": ["h264 B"],
    "gif": ["gif"],
}  # fmt: skip
QUICK = [("avi", "h264 B"), ("mkv", "h264 open"), ("webm", "vp8"), ("mp4", "h264 B"), ("ts", "mpeg2"), ("avi", "mpeg4")]


def clip(path: Path, codec: str, count: int = COUNT, *, first: int = 0, late: int = 0, **more) -> Path:
    """Pictures from `first` on, all different, from a second on; skips the test where there is no such encoder."""
    name, options = CODECS[codec]
    if name not in av.codecs_available:
        pytest.skip(f"no encoder {name}")
    with av.open(str(path), "w", **more) as container:
        stream = container.add_stream(name, rate=RATE, options=options)
        stream.width, stream.height = SIZE
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(name, "yuv420p")
        stream.gop_size = 8
        for number in range(first, first + count):
            moving = np.roll(picture(number, *SIZE), number, axis=0)
            moving[number % SIZE[1], :, 1] = 200
            frame = av.VideoFrame.from_ndarray(moving, format="rgb24")
            frame.pts, frame.time_base = number - first + late * RATE, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def copied(source: Path, to: Path, seconds: tuple[float, float]) -> Path:
    """The same packets in another file: those from the keyframe before a time on, as `ffmpeg -ss -t -c copy` does.

    Pictures before that time are in the file and its edit list hides them, where the container has one.
    """
    begin, end = seconds
    with av.open(str(source)) as into, av.open(str(to), "w") as out:
        stream = into.streams.video[0]
        copy = out.add_stream_from_template(stream)
        start = stream.start_time + int(begin / stream.time_base)
        into.seek(start, stream=stream)
        for packet in into.demux(stream):
            if not packet.size or (packet.pts - stream.start_time) * stream.time_base >= end:
                break
            packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copy
            out.mux(packet)
    return to


def whole(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def check(path: Path, *, seeks: bool | None = None) -> None:
    """Every way of asking gives the pictures of the whole; where an edit list hides all of them, an error."""
    right = whole(path)
    video = VideoFile(path)
    if not right:
        with pytest.raises(OSError, match="no picture could be decoded"):
            _ = video.length
        return
    assert video.length == len(right)
    if seeks is not None:
        assert (not video._pictures().doubt) == seeks
    draws = random.Random(0)
    requests: list[list[int]] = [list(range(len(right))), [len(right) - 1]]
    requests += [[draws.randrange(len(right))] for _ in range(6)]
    requests += [sorted(draws.sample(range(len(right)), min(4, len(right)))) for _ in range(4)]
    for asked in requests:
        for number, got in zip(asked, VideoFile(path).read(asked), strict=True):
            assert np.array_equal(got, right[number]), (path.name, asked, number)


def kinds() -> Iterator[object]:
    for suffix, codecs in ALL.items():
        for codec in codecs:
            yield pytest.param(suffix, codec, marks=() if (suffix, codec) in QUICK else pytest.mark.slow)


@pytest.mark.parametrize(("suffix", "codec"), kinds())
def test_whole_files_and_files_that_begin_late(tmp_path, suffix, codec, caplog):
    path = clip(tmp_path / f"a.{suffix}", codec)
    check(path)
    if suffix not in ("avi", "h264", "hevc", "gif"):
        check(clip(tmp_path / f"late.{suffix}", codec, late=8))
    assert not caplog.records, "an undamaged file counts as damaged"


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    "codec",
    [
        "h264 B",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("h264 open", "h264 refresh", "hevc", "vp9", "mpeg4 B")
        ),
    ],
)
@pytest.mark.parametrize("seconds", [(0.28, 0.8), (0.64, 9)])
def test_files_that_were_cut_without_encoding_them_again(tmp_path, suffix, codec, seconds, caplog):
    source = clip(tmp_path / "a.mp4", codec)
    check(copied(source, tmp_path / f"cut.{suffix}", seconds))
    assert not caplog.records, "an undamaged file counts as damaged"


@settings(max_examples=12, deadline=None)
@given(begin=st.integers(0, COUNT - 3), frames=st.integers(3, COUNT), suffix=st.sampled_from(["mp4", "mkv"]))
def test_any_cut(tmp_path_factory, begin, frames, suffix):
    folder = tmp_path_factory.getbasetemp()
    if not (source := folder / "cuts.mp4").exists():
        clip(source, "h264 B")
    check(copied(source, folder / f"cut.{suffix}", (begin / RATE, (begin + frames) / RATE)))


def test_a_cut_of_which_nothing_is_shown_is_unreadable(tmp_path):
    cut = copied(clip(tmp_path / "a.mp4", "h264 B"), tmp_path / "cut.mp4", (9 / RATE, 12 / RATE))
    assert not whole(cut)
    check(cut)


def test_normal_files_and_those_that_decoding_has_proved_are_read_by_seeking(tmp_path):
    check(clip(tmp_path / "a.mp4", "h264 B"), seeks=True)
    check(clip(tmp_path / "a.mkv", "h264"), seeks=True)
    check(copied(tmp_path / "a.mp4", tmp_path / "cut.mp4", (0.4, 0.9)), seeks=True)
    check(clip(tmp_path / "a.avi", "h264 B"), seeks=False)


def test_files_without_timestamps_of_pictures_still_tell_the_time(tmp_path):
    # A copy into AVI: two ticks a picture, each of which the decoder hands to another picture.
    with av.open(str(clip(tmp_path / "a.ts", "h264 B"))) as into, av.open(str(tmp_path / "a.avi"), "w") as out:
        stream = out.add_stream_from_template(into.streams.video[0])
        stream.time_base = Fraction(1, 2 * RATE)
        for number, packet in enumerate(packet for packet in into.demux(video=0) if packet.size):
            packet.pts = packet.dts = 2 * number
            packet.time_base, packet.stream = Fraction(1, 2 * RATE), stream
            out.mux(packet)
    with av.open(str(tmp_path / "a.avi")) as container:
        assert container.streams.video[0].average_rate == 2 * RATE  # what the header says
    video = VideoFile(tmp_path / "a.avi")
    assert video.length == COUNT and video.rate == pytest.approx(RATE, rel=0.05)
    assert [video.number_at(second) for second in (0, 0.4, 0.8)] == [0, 10, 20]
    check(tmp_path / "a.avi", seeks=False)


def test_packets_of_prores_that_hold_nothing_are_no_pictures(tmp_path, caplog):
    if "prores_ks" not in av.codecs_available:
        pytest.skip("no encoder prores_ks")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("prores_ks", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv422p10le"
        for number in range(6):
            frame = av.VideoFrame.from_ndarray(picture(number, *SIZE), format="rgb24")
            frame.pts, frame.time_base = 2 * number, Fraction(1, RATE)
            for packet in stream.encode(frame):
                container.mux(packet)
                nothing = av.Packet(
                    b"\0\0\0\x08icpf"
                )  # as of a copy out of AVI, which counts pictures that are not there
                nothing.pts = nothing.dts = 2 * number + 1
                nothing.time_base, nothing.stream, nothing.is_keyframe = Fraction(1, RATE), stream, True
                container.mux(nothing)
        container.mux(stream.encode())
    video = VideoFile(tmp_path / "a.mkv")
    assert video.length == 6 and numbers(video.read(range(6))) == list(range(6)) and not caplog.records


def test_sound_that_lasts_longer_or_begins_earlier_changes_nothing(tmp_path):
    for suffix, codec, sound in (("mp4", "h264 B", "aac"), ("webm", "vp8", "libopus")):
        name, options = CODECS[codec]
        with av.open(str(tmp_path / f"a.{suffix}"), "w") as container:
            stream = container.add_stream(name, rate=RATE, options=options)
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
            audio = container.add_stream(sound, rate=48000)
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 48000 * 3), np.float32), format="fltp", layout="mono")
            samples.sample_rate = 48000
            container.mux(audio.encode(samples))
            container.mux(audio.encode())
            for number in range(12):
                frame = av.VideoFrame.from_ndarray(picture(number, *SIZE), format="rgb24")
                frame.pts, frame.time_base = number + 30, Fraction(1, RATE)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        assert VideoFile(tmp_path / f"a.{suffix}").length == 12
        check(tmp_path / f"a.{suffix}")


def test_fragments_pieces_and_timestamps_that_lie(tmp_path):
    check(clip(tmp_path / "frag.mp4", "h264 B", options={"movflags": "frag_keyframe+empty_moov"}), seeks=True)
    check(clip(tmp_path / "negative.mp4", "h264 B", options={"movflags": "negative_cts_offsets"}), seeks=True)
    # Two transport streams behind one another: time begins anew.
    first, second = clip(tmp_path / "1.ts", "h264 B"), clip(tmp_path / "2.ts", "h264 B", 10, first=40)
    (tmp_path / "both.ts").write_bytes(first.read_bytes() + second.read_bytes())
    check(tmp_path / "both.ts")
    # Pictures in the order of decoding under ascending timestamps, as a copy out of AVI has them.
    with av.open(str(clip(tmp_path / "a.mp4", "h264 B"))) as into, av.open(str(tmp_path / "lies.mkv"), "w") as out:
        stream = out.add_stream_from_template(into.streams.video[0])
        for packet in into.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.stream = packet.dts, stream
                out.mux(packet)
    check(tmp_path / "lies.mkv", seeks=False)
    # Pictures that share a timestamp.
    with av.open(str(clip(tmp_path / "a.mkv", "h264"))) as into, av.open(str(tmp_path / "twice.mkv"), "w") as out:
        stream = out.add_stream_from_template(into.streams.video[0])
        for packet in into.demux(video=0):
            if packet.size:
                packet.pts = packet.dts = packet.pts - packet.pts % 120
                packet.stream = stream
                out.mux(packet)
    check(tmp_path / "twice.mkv", seeks=False)


def test_the_second_picture_stream_is_not_read(tmp_path):
    with av.open(str(tmp_path / "two.mkv"), "w") as container:
        streams = [container.add_stream("mpeg4", rate=RATE) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(6):
            for stream, shown in zip(streams, (number, 100 + number), strict=True):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(shown, *SIZE), format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    check(tmp_path / "two.mkv")


def test_a_file_is_decoded_to_its_end_once_in_a_process(tmp_path, monkeypatch):
    from vitdistill.data.clips.stream import Stream

    calls, original = [], Stream.frames
    monkeypatch.setattr(Stream, "frames", lambda self: calls.append(self.path) or original(self))
    path = clip(tmp_path / "a.avi", "h264 B", 12)
    assert [VideoFile(path).length for _ in range(3)] == [12] * 3 and len(calls) == 1
    write_video(path, 5)
    assert VideoFile(path).length == 5, "another file under the same name"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg command")
@pytest.mark.parametrize(
    "words", ["-ss 0.5 -i {} -t 1 -c copy", "-i {} -ss 0.5 -t 1 -c copy", "-sseof -0.6 -i {} -c copy"]
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "ts", "avi", "flv"])
def test_cuts_of_the_ffmpeg_command(tmp_path, words, suffix):
    source, to = clip(tmp_path / "a.mp4", "h264 B", 50), tmp_path / f"cut.{suffix}"
    command = ["ffmpeg", "-v", "error", "-nostdin", *words.format(source).split(), str(to)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this ffmpeg does not write such a file")
    check(to)
