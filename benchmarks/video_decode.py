"""Clips per second and loader worker out of video files, against what a training step takes and a plain reader.

    python benchmarks/video_decode.py            # a minute; writes benchmarks/results/video_decode_<machine>.{json,md}
    python benchmarks/video_decode.py --smoke    # files of three seconds, writes nothing

Dense clips of 16 frames with stride 4 at a random start, shorter edge 224, from a generated file of ten seconds,
320 x 240, 25 frames/s: H.264 with a keyframe every 250 (x264's default) and every 12 frames where the encoder is
there, else MPEG-4. Per file, all in one thread and taking turns:

1. our reader and a plain one, which decodes the whole file and resizes every frame; both open the file every time;
2. a loader worker's whole sample of pre-training: the same file opened, a random clip decoded, cropped and resized.

What a step takes comes from the results of `mvd_step.py` beside this benchmark's, of every machine there, or from
`--need`; the last table says how many workers feed it.
"""

import json
import math
import random
import tempfile
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from common import machine_name, parser_of, write
from vitdistill.costing.measure import compare, hardware
from vitdistill.data.clips.decode import VideoFile
from vitdistill.data.clips.sampling import Sampling
from vitdistill.data.clips.transforms import pretrain_transform

WIDTH, HEIGHT, RATE = 320, 240, 25
SHORT_SIDE = 224
SAMPLING = Sampling(frames=16, stride=4)
OURS, WHOLE = "VideoFile", "plain: whole file, every frame resized"
WORKER = "loader worker, pre-training: VideoFile, multi-scale crop, resize to 224x224"
STARTS = 8  # different starts, the same for both readers


def write_video(path: Path, seconds: int, gop: int) -> str:
    """Write moving texture with noise, which compresses like a camera's picture rather than a drawing's.

    Returns:
        The name of the encoder.
    """
    encoder = next(name for name in ("libx264", "libopenh264", "mpeg4") if name in av.codecs_available)
    rng = np.random.default_rng(0)
    scene = rng.integers(40, 216, (HEIGHT // 20, WIDTH // 10, 3)).repeat(20, 0).repeat(20, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", gop
        for number in range(seconds * RATE):
            noise = rng.normal(0, 4, (HEIGHT, WIDTH, 1))
            picture = np.roll(scene, 3 * number, axis=1)[:, :WIDTH] + noise
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return encoder


def read_ours(path: str, frames: list[int]) -> np.ndarray:
    """A fresh `VideoFile`, as the loader opens one per sample."""
    return VideoFile(path).read(frames, SHORT_SIDE)


def read_whole(path: str, frames: list[int]) -> np.ndarray:
    """The plain reader: everything is decoded and resized, then the clip is picked."""
    width = round(WIDTH * SHORT_SIDE / HEIGHT)
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        pictures = [
            frame.to_ndarray(format="rgb24", width=width, height=SHORT_SIDE, interpolation="BILINEAR", threads=1)
            for frame in container.decode(video=0)
        ]
    return np.stack([pictures[number] for number in frames])


def measure(path: Path, seconds: int, repeats: int) -> dict[str, Any]:
    """Milliseconds per clip of both readers, and of a worker's sample, on one file.

    Raises:
        AssertionError: when the readers do not give the same pictures.
    """
    length = seconds * RATE
    starts = np.linspace(0, max(0, length - SAMPLING.needed), STARTS).astype(int)
    places = np.arange(SAMPLING.frames) * SAMPLING.stride
    clips = [np.minimum(start + places, length - 1).tolist() for start in starts]
    for clip in (clips[0], clips[-1]):
        assert np.array_equal(read_ours(str(path), clip), read_whole(str(path), clip)), "readers differ"

    def turn(read: Callable[[str, list[int]], np.ndarray]) -> Callable[[], object]:
        order = cycle(clips)
        return lambda: read(str(path), next(order))

    transform = pretrain_transform(SHORT_SIDE, SAMPLING)
    random.seed(0)
    torch.manual_seed(0)
    np.random.seed(0)
    work = {OURS: turn(read_ours), WHOLE: turn(read_whole), WORKER: lambda: transform(VideoFile(path))}
    timings = compare(work, repeats, warmup=1)
    return {
        "readers": {
            # Clips/s from the mean: starts late in a group of pictures take longer, and a worker meets all of them.
            name: {
                "median_ms": time.median_ms,
                "spread_ms": time.spread_ms,
                "clips_per_s": 1000 / float(np.mean(time.samples_ms)),
            }
            for name, time in timings.items()
        },
        "speedup": timings.ratio(WHOLE, OURS),
    }


def needs(folder: Path, given: float | None) -> dict[str, float]:
    """Clips/s that steps take, by what they are: the given figure, else those of `mvd_step.py` in a folder."""
    if given is not None:
        return {"given": given}
    found = {}
    for path in sorted(folder.glob("mvd_step_*.json")):
        measured = json.loads(path.read_text())
        for part in measured["settings"]:
            rate = part["training_step"]["candidates"]["ours"]["clips_per_s"]
            found[f"{measured['machine']}, {part['label']}"] = rate
    return found


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    facts = result["hardware"]
    lines = [
        "# Decoding clips",
        "",
        f"`python benchmarks/video_decode.py`. Clips of {SAMPLING.frames} frames, stride {SAMPLING.stride}, from "
        f"{WIDTH}x{HEIGHT} files of {result['seconds']} s, {RATE} frames/s, {result['encoder']}; the readers resize to "
        f"a shorter edge of {SHORT_SIDE}. One thread of {facts['cpu']}, PyAV {result['av']}; {result['repeats']} "
        "rounds in which all take turns, with the same clips for both readers. Files come from memory (page cache), so "
        "disks and networks are left out.",
        "",
        "| keyframe every | reader | ms/clip (median) | spread | clips/s per core |",
        "|---|---|---:|---:|---:|",
    ]
    for gop, measured in result["files"].items():
        lines += [
            f"| {gop} frames | {name} | {row['median_ms']:.1f} | {row['spread_ms']:.1f} | {row['clips_per_s']:.1f} |"
            for name, row in measured["readers"].items()
        ]
        lines.append(f"| {gop} frames | VideoFile is faster by | {measured['speedup']:.1f}x | | |")
    return "\n".join([*lines, "", *needs_table(result)]) + "\n"


def needs_table(result: dict[str, Any]) -> list[str]:
    """How many workers like these feed each step."""
    if not result["needs"]:
        return ["No results of `mvd_step.py` to compare with; `--need` gives the clips/s that a step takes."]
    gops = list(result["files"])
    lines = [
        "What a training step with one mask per clip takes (`mvd_step.py`), and how many loader workers on cores like "
        "this one feed it; on a CPU that trains, they take that share of its cores from the step:",
        "",
        "| step | clips/s | " + " | ".join(f"workers, keyframe every {gop}" for gop in gops) + " |",
        "|---|---:|" + "---:|" * len(gops),
    ]
    for name, need in result["needs"].items():
        busy = [need / result["files"][gop]["readers"][WORKER]["clips_per_s"] for gop in gops]
        cells = " | ".join(f"{math.ceil(cores)} ({cores:.2f} busy)" for cores in busy)
        lines.append(f"| {name} | {need:,.2f} | {cells} |")
    return lines


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = parser_of(__doc__, smoke="a short file and few rounds", device=False)
    parser.add_argument("--repeats", type=int, default=24, help="timed rounds")
    parser.add_argument("--need", type=float, help="clips/s that a training step takes, instead of mvd_step's results")
    options = parser.parse_args()

    torch.set_num_threads(1)  # as in a loader's worker
    seconds, repeats = (3, 2) if options.smoke else (10, options.repeats)
    facts = hardware()
    files, encoder = {}, ""
    with tempfile.TemporaryDirectory() as folder:
        for gop in (250, 12):
            path = Path(folder) / f"{gop}.mp4"
            encoder = write_video(path, seconds, gop)
            files[str(gop)] = measure(path, seconds, repeats)
    result = {
        "machine": options.machine or machine_name(torch.device("cpu")),
        "hardware": facts,
        "encoder": encoder,
        "av": av.__version__,
        "seconds": seconds,
        "repeats": repeats,
        "needs": needs(options.out, options.need),
        "files": files,
    }
    print(markdown(result))
    if not options.smoke:
        write(options.out, "video_decode", result, markdown(result))


if __name__ == "__main__":
    main()
