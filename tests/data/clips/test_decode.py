import builtins
import errno
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from generated_videos import av, numbers, picture, turn, write_sound, write_video
from vitdistill.data.clips.decode import VideoFile
from vitdistill.data.clips.frame_folder import FrameFolder
from vitdistill.data.clips.packets import needed_runs
from vitdistill.data.clips.stream import Stream
from vitdistill.data.loader import UNREADABLE
from vitdistill.errors import UserError


def codec_or_skip(name: str) -> str:
    if name not in av.codecs_available:
        pytest.skip(f"no encoder {name}")
    return name


KINDS = [
    ("a.mp4", "libx264", {}),
    ("open.mkv", "libx264", {"x264-params": "open-gop=1:bframes=3:keyint=12"}),
    ("a.mov", "mpeg4", {"bf": "2"}),
    ("a.mkv", "libx264", {}),
    ("a.avi", "mpeg4", {}),
    ("b.avi", "mpeg4", {"bf": "2"}),
    ("a.webm", "libvpx", {}),
]


@pytest.mark.parametrize(("name", "codec", "options"), KINDS)
def test_every_frame_of_every_container_is_the_one_asked_for(tmp_path, name, codec, options):
    path = write_video(tmp_path / name, codec=codec_or_skip(codec), **options)
    assert VideoFile(path).length == 60
    for frames in (range(60), [0], [59], [11, 12, 13, 24], range(30, 46, 4), [40, 3, 40, 23]):
        assert numbers(VideoFile(path).read(list(frames))) == list(frames)


def test_a_file_can_be_read_again_and_again(tmp_path):
    video = VideoFile(write_video(tmp_path / "a.mp4"))
    first = video.read([5, 50])
    assert video.length == 60 and np.array_equal(video.read([50, 5]), first[::-1])


def test_frames_are_resized_to_the_shorter_edge_whatever_the_size(tmp_path):
    video = VideoFile(write_video(tmp_path / "odd.mkv", 3, size=(98, 54), codec="mpeg4"))
    assert video.short_side == 54
    assert video.read([0, 2]).shape == (2, 54, 98, 3)
    assert video.read([0, 2], 27).shape == (2, 27, 49, 3)
    assert video.read([0, 2], 81).shape == (2, 81, 147, 3) and numbers(video.read([2], 81)) == [2]


def test_odd_sizes(tmp_path):
    path = tmp_path / "odd.webm"
    write_video(path, 3, size=(97, 55), codec=codec_or_skip("libvpx"))
    assert VideoFile(path).read([1]).shape == (1, 55, 97, 3) and numbers(VideoFile(path).read([1], 33)) == [1]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(tmp_path, degrees):
    path = write_video(tmp_path / "phone.mp4", 3)
    plain = VideoFile(path).read([2])
    turn(path, degrees)
    rotated = VideoFile(path).read([2])
    assert np.array_equal(rotated[0], np.rot90(plain[0], -degrees // 90))
    assert VideoFile(path).read([2], 32).shape == ((1, 32, 48, 3) if degrees == 180 else (1, 48, 32, 3))


def test_a_short_read_decodes_one_group_of_pictures_and_not_the_file(tmp_path, monkeypatch):
    path, decoded = write_video(tmp_path / "long.mp4", 240), []
    original = Stream.decode
    monkeypatch.setattr(Stream, "decode", lambda self, packet: decoded.append(packet) or original(self, packet))
    assert numbers(VideoFile(path).read([100, 104])) == [100, 104]
    assert sum(packet is not None for packet in decoded) <= 12
    decoded.clear()
    assert numbers(VideoFile(path).read([2, 230])) == [2, 230]  # the gap is jumped over
    kept = [packet.pts for packet in decoded if packet is not None]
    assert len(kept) <= 24 and len(set(kept)) == len(kept)


def test_pictures_of_variable_frame_rate_are_counted_and_found_by_time(tmp_path):
    # 10 pictures in the first second, 50 in the next.
    times = [number * 100 for number in range(10)] + [1000 + number * 20 for number in range(50)]
    video = VideoFile(write_video(tmp_path / "v.mkv", 60, codec="mpeg4", rate=30, pts=times))
    assert video.length == 60 and numbers(video.read([0, 9, 10, 35, 59])) == [0, 9, 10, 35, 59]
    assert [video.number_at(second) for second in (0, 0.52, 0.96, 1.1, 1.98)] == [0, 5, 10, 15, 59]
    assert video.rate == pytest.approx(59 / 1.98) and video.number_at(2.98) == 59 + 30


def test_a_file_without_timestamps_is_counted_through(tmp_path):
    path = write_video(tmp_path / "raw.mp4", 30, codec=codec_or_skip("libx264"), format="h264")
    video = VideoFile(path)
    assert video.length == 30 and numbers(video.read([0, 7, 29])) == [0, 7, 29]


def test_what_is_no_video_is_unreadable_and_named(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all " * 100)
    whole = write_video(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its table of contents was at the end
    for name in ("empty.mp4", "text.mp4", "cut.mp4", "missing.mp4"):
        with pytest.raises(OSError, match=name) as error:
            VideoFile(tmp_path / name).read([0])
        assert isinstance(error.value, UNREADABLE) and not isinstance(error.value, UserError)
        assert ("the file is empty" in str(error.value)) == (name == "empty.mp4")


def test_what_the_system_says_keeps_its_number(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 3)
    for number in (errno.EMFILE, errno.ENFILE):
        with monkeypatch.context() as patched:
            patched.setattr(av, "open", lambda *_, number=number: av.error.err_check(-number, str(path)))
            with pytest.raises(OSError, match="open files") as error:
                VideoFile(path).read([0])
            assert error.value.errno == number
    with pytest.raises(OSError, match="missing.mp4") as missing:
        VideoFile(tmp_path / "missing.mp4").read([0])
    assert missing.value.errno == errno.ENOENT


def test_sound_without_pictures_is_unreadable(tmp_path):
    write_sound(tmp_path / "sound.mp4")
    with pytest.raises(OSError, match="only sound"):
        _ = VideoFile(tmp_path / "sound.mp4").length


def test_a_truncated_file_has_the_pictures_that_are_left_and_says_so(tmp_path, caplog):
    whole = write_video(tmp_path / "whole.mp4", 100, gop=10)
    with (
        av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as out,
        av.open(str(whole)) as into,
    ):
        stream = out.add_stream_from_template(into.streams.video[0])
        for packet in into.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    content = (tmp_path / "fast.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: int(len(content) * 0.6)])
    video = VideoFile(tmp_path / "cut.mp4")
    end = video.length
    assert 30 < end < 80 and f"cut.mp4: truncated, {end} of its 100 pictures are there" in caplog.text
    assert numbers(video.read(list(range(end - 1)))) == list(range(end - 1))


def test_damaged_pictures_are_replaced_by_a_neighbour(tmp_path):
    path = write_video(tmp_path / "a.mp4", 60)
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = list(container.demux(video=0))[30]
        content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(content)
    read = numbers(VideoFile(path).read(list(range(60))))
    assert read[:30] == list(range(30)) and read[36:] == list(range(36, 60)) and len(read) == 60


def test_packets_that_do_not_decode_are_passed_over(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 60, sc_threshold="1000000000")  # keyframes at 0, 12, 24, 36, ... only
    original = Stream.decode

    def fails(stream, packet):
        broken = packet is not None and 24 <= round(packet.pts * packet.time_base * 25) < 36
        return [] if broken else original(stream, packet)

    monkeypatch.setattr(Stream, "decode", fails)
    assert numbers(VideoFile(path).read([22, 23, 25, 34, 37])) == [22, 23, 23, 37, 37]
    with pytest.raises(OSError, match="no picture could be decoded"):
        VideoFile(path).read([30])


def test_frames_out_of_range_are_refused(tmp_path):
    video = VideoFile(write_video(tmp_path / "a.mp4", 5))
    for frames in ([5], [-1], []):
        with pytest.raises(IndexError, match="0 to 4"):
            video.read(frames)


def test_without_pyav_the_extra_is_named(monkeypatch):
    original = builtins.__import__

    def without_av(name, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(UserError, match=r"pip install 'vitdistill\[video\]'"):
        VideoFile("a.mp4")


def test_runs_hold_what_the_wanted_pictures_need_and_no_more():
    def packets(*groups):
        return [SimpleNamespace(pts=pts, is_keyframe=not n) for group in groups for n, pts in enumerate(group)]

    def runs(wanted, *groups):
        return [[packet.pts for packet in run] for run in needed_runs(packets(*groups), wanted)]

    closed = ([0, 2, 1, 3], [4, 6, 5, 7], [8, 10, 9, 11])
    assert runs({1}, *closed) == [[0, 2, 1]]
    assert runs({2, 8}, *closed) == [[0, 2], [8]]
    assert runs({7}, *closed) == [[4, 6, 5, 7]]
    # 4 and 5 are shown before their keyframe 6 and refer to the group before it as well.
    assert runs({4}, [0, 2, 1, 3], [6, 4, 5, 7]) == [[0, 2, 1, 3, 6, 4]]
    assert runs({6}, [0, 2, 1, 3], [6, 4, 5, 7]) == [[6]]


def test_a_folder_of_frames_is_a_video_in_natural_order(tmp_path):
    for number in range(12):
        Image.fromarray(picture(number, 96, 64)).save(tmp_path / f"img_{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    video = FrameFolder(tmp_path)
    assert (video.length, video.short_side) == (12, 64)
    assert numbers(video.read([11, 2, 10, 2])) == [11, 2, 10, 2]
    assert video.read([3], 32).shape == (1, 32, 48, 3)


def test_frames_of_other_sizes_get_the_size_of_the_first(tmp_path):
    Image.new("L", (40, 30)).save(tmp_path / "1.png")
    Image.new("RGBA", (80, 70)).save(tmp_path / "2.png")
    assert FrameFolder(tmp_path).read([0, 1]).shape == (2, 30, 40, 3)


def test_empty_and_broken_folders_of_frames_are_unreadable(tmp_path):
    with pytest.raises(OSError, match="no image"):
        _ = FrameFolder(tmp_path).length
    (tmp_path / "1.jpg").write_bytes(b"no image")
    with pytest.raises(UNREADABLE):
        FrameFolder(tmp_path).read([0])
    with pytest.raises(OSError, match="missing"):
        _ = FrameFolder(tmp_path / "missing").length
