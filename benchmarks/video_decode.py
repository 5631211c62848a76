"""Clips per second and core out of a video file, against a reader that decodes the whole file and resizes every frame.

    python benchmarks/video_decode.py            # writes benchmarks/results/video_decode_<machine>.{json,md}
    python benchmarks/video_decode.py --smoke    # a one-second file, writes nothing

Dense clips of 16 frames with stride 4 at a random start, shorter edge 224, from a generated file of ten seconds,
320 x 240, 25 frames/s: H.264 with a keyframe every 250 (x264's default) and every 12 frames where the encoder is
there, else MPEG-4. Both readers open the file, decode in one thread and resize with swscale; they take turns.
`--need` is the clips/s that a training step takes; the table then says how many loader workers feed it.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import av
import numpy as np

from vitdistill.costing.measure import compare, hardware
from vitdistill.data.clips import Sampling
from vitdistill.data.video_decode import VideoFile

WIDTH, HEIGHT, RATE = 320, 240, 25
SHORT_SIDE = 224
SAMPLING = Sampling(frames=16, stride=4)
OURS, WHOLE = "VideoFile", "whole file, every frame resized"
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
    """Milliseconds per clip of both readers on one file.

    Raises:
        AssertionError: when the readers do not give the same pictures.
    """
    length = seconds * RATE
    starts = np.linspace(0, max(0, length - SAMPLING.needed), STARTS).astype(int)
    clips = [np.minimum(start + np.arange(16) * 4, length - 1).tolist() for start in starts]
    for clip in (clips[0], clips[-1]):
        assert np.array_equal(read_ours(str(path), clip), read_whole(str(path), clip)), "readers differ"

    def turn(read: Callable[[str, list[int]], np.ndarray]) -> Callable[[], object]:
        order = cycle(clips)
        return lambda: read(str(path), next(order))

    timings = compare({OURS: turn(read_ours), WHOLE: turn(read_whole)}, repeats, warmup=1)
    rows = {name: {"median_ms": time.median_ms, "spread_ms": time.spread_ms} for name, time in timings.items()}
    clips_per_s = {name: 1000 / row["median_ms"] for name, row in rows.items()}
    return {"readers": rows, "clips_per_s": clips_per_s, "speedup": timings.ratio(WHOLE, OURS)}


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    facts = result["hardware"]
    lines = [
        "# Decoding clips",
        "",
        f"Clips of 16 frames, stride 4, shorter edge {SHORT_SIDE}, from {WIDTH}x{HEIGHT} files "
        f"of {result['seconds']} s, {result['encoder']}; "
        f"one thread of {facts['cpu']}; {result['repeats']} rounds.",
        "",
        "| keyframe every | reader | ms/clip (median) | spread | clips/s per core |"
        + (" workers for the step |" if result["need"] else ""),
        "|---|---|---|---|---|" + ("---|" if result["need"] else ""),
    ]
    for gop, measured in result["files"].items():
        for name, row in measured["readers"].items():
            per_second = measured["clips_per_s"][name]
            workers = f" {math.ceil(result['need'] / per_second)} |" if result["need"] else ""
            times = f"{row['median_ms']:.1f} | {row['spread_ms']:.1f}"
            lines.append(f"| {gop} frames | {name} | {times} | {per_second:.1f} |{workers}")
        end = " |" if result["need"] else ""
        lines.append(f"| {gop} frames | speed-up | {measured['speedup']:.1f}x | | |{end}")
    if result["need"]:
        lines += ["", f"The step takes {result['need']:g} clips/s."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=24, help="timed rounds")
    parser.add_argument("--need", type=float, default=0.0, help="clips/s that a training step takes; 0: unknown")
    parser.add_argument("--machine", help="name of the machine in the file names")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    parser.add_argument("--smoke", action="store_true", help="a short file and few rounds; print, write nothing")
    options = parser.parse_args()

    seconds, repeats = (3, 2) if options.smoke else (10, options.repeats)
    facts = hardware()
    files, encoder = {}, ""
    with tempfile.TemporaryDirectory() as folder:
        for gop in (250, 12):
            path = Path(folder) / f"{gop}.mp4"
            encoder = write_video(path, seconds, gop)
            files[str(gop)] = measure(path, seconds, repeats)
    result = {
        "machine": options.machine or f"cpu_{facts['cpu_cores']}core",
        "hardware": facts,
        "encoder": encoder,
        "av": av.__version__,
        "seconds": seconds,
        "repeats": repeats,
        "need": options.need,
        "files": files,
    }
    print(markdown(result))
    if not options.smoke:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"video_decode_{result['machine']}"
        path.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
        path.with_suffix(".md").write_text(markdown(result))
        print(f"wrote {path}.json and .md")


if __name__ == "__main__":
    main()
