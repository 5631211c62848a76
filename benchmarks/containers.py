"""Random access to samples in containers, against the same files in class folders.

    python benchmarks/containers.py            # a minute; writes benchmarks/results/containers_<machine>.{json,md}
    python benchmarks/containers.py --smoke    # few pictures, writes nothing

Generated photographs (500 x 375, JPEG of about 100 KB, as ImageNet's are) in class folders, tar shards, parquet files
and a folder of `save_to_disk`. Per container, in one thread and taking turns, a block of samples in one random order:

1. reading: the encoded bytes of each sample, without decoding;
2. samples: what a loader worker does, decoding to RGB as well.

And once each: opening the data the first time (indexing, copying) and again. Everything comes from memory (page cache),
so disks and networks are left out: there, one large file per thousand samples is what shards are for.
"""

import io
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from common import machine_name, parser_of, write
from vitdistill.costing.measure import compare, hardware
from vitdistill.data.open import open_source
from vitdistill.data.samples import Samples

WIDTH, HEIGHT = 500, 375
CLASSES = 10
READ_BLOCK, BLOCK = 256, 16  # samples a turn: reading takes microseconds, decoding milliseconds
FOLDERS = "class folders"


def photograph(number: int) -> bytes:
    """A picture with structure and noise, which compresses as a photograph does."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (HEIGHT // 25, WIDTH // 25, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = (smooth + random.integers(-24, 25, (HEIGHT, WIDTH, 1))).clip(0, 255).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(noisy).save(content, "jpeg", quality=90)
    return content.getvalue()


def write_all(root: Path, count: int) -> dict[str, str]:
    """Write the same pictures into every kind of container; returns what `--data` is, by name."""
    import datasets
    import pyarrow
    from pyarrow.parquet import write_table

    pictures = [photograph(number) for number in range(count)]
    labels = [number % CLASSES for number in range(count)]
    for split in ("train", "val"):
        for name in range(CLASSES):
            (root / "folders" / split / f"class{name}").mkdir(parents=True)
    for number, (content, label) in enumerate(zip(pictures, labels, strict=True)):
        (root / f"folders/train/class{label}/{number:05d}.jpg").write_bytes(content)
    for name in range(CLASSES):
        (root / f"folders/val/class{name}/0.jpg").write_bytes(pictures[name])
    (root / "shards").mkdir()
    for shard in range(0, count, 500):
        with tarfile.open(root / f"shards/train-{shard // 500:03d}.tar", "w") as tar:
            for number in range(shard, min(shard + 500, count)):
                for suffix, content in (("jpg", pictures[number]), ("cls", str(labels[number]).encode())):
                    member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    (root / "parquet").mkdir()
    table = pyarrow.table({"image": pictures, "label": labels})
    write_table(table, root / "parquet/train-00000-of-00001.parquet", row_group_size=100)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=CLASSES)})
    columns = {"image": [{"bytes": content, "path": None} for content in pictures], "label": labels}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(root / "saved")
    return {
        FOLDERS: str(root / "folders"),
        "shards": f"shards:{root}/shards/*.tar",
        "parquet": str(root / "parquet"),
        "datasets, save_to_disk": str(root / "saved"),
    }


def opened(data: str) -> tuple[Samples, float]:
    """The training samples, and the seconds that opening them took."""
    begin = time.perf_counter()
    samples = open_source(data).train
    return samples, time.perf_counter() - begin


def reader(samples: Samples) -> Callable[[int], int]:
    """Reads the encoded bytes of a sample; gives their number."""
    from vitdistill.data.containers.rows import EncodedImages

    if isinstance(samples, EncodedImages):
        return lambda index: len(samples.content(int(samples.rows[index])))
    return lambda index: len(Path(samples.path(index)).read_bytes())


def blocks(work: Callable[[int], object], order: list[int], count: int) -> Callable[[], object]:
    """A turn: the next block of so many samples."""
    places = cycle(order)
    return lambda: [work(next(places)) for _ in range(count)]


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    lines = [
        "# Containers",
        "",
        f"`python benchmarks/containers.py`. {result['count']} generated JPEGs of {WIDTH}x{HEIGHT} pixels, "
        f"{result['kilobytes']:.0f} KB each, read in one random order. One thread of {result['cpu']}; "
        f"{result['repeats']} rounds in which all take turns, of {READ_BLOCK} samples read or {BLOCK} decoded. "
        "Everything comes from memory (page cache).",
        "",
        "| container | opened first, s | again, s | reading, us/sample | ratio | decoded sample, us | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["containers"].items():
        lines.append(
            f"| {name} | {row['first_s']:.2f} | {row['again_s']:.2f} | {row['read_us']:.0f} | {row['read_ratio']:.2f} "
            f"| {row['sample_us']:.0f} | {row['sample_ratio']:.2f} |"
        )
    lines += [
        "",
        "Ratios are times over those of class folders, medians of the rounds' ratios. The index of a shard is made at "
        f"{result['indexed_per_s']:,.0f} samples per second of CPU time (two members each), so ImageNet's 1.28 million "
        f"take {1.28e6 / result['indexed_per_s'] / 60:.1f} minutes, once.",
    ]
    return "\n".join(lines) + "\n"


def indexed_per_s(folder: Path, count: int) -> float:
    """Samples of a shard whose places are found per second; pictures are left small, as they are not read."""
    from vitdistill.data.containers.tar_index import index_of

    file = folder / "index.tar"
    with tarfile.open(file, "w") as tar:
        for number in range(count):
            for suffix, content in (("jpg", b"x" * 600), ("cls", b"7")):
                member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    begin = time.process_time()
    assert len(index_of(str(file), None, None).names) == count
    return count / (time.process_time() - begin)


def cpu_name() -> str:
    """The CPU as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return str(hardware()["cpu"])
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), hardware()["cpu"])


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = parser_of(__doc__, smoke="few pictures and rounds", device=False)
    parser.add_argument("--repeats", type=int, default=24, help="timed rounds")
    options = parser.parse_args()

    torch.set_num_threads(1)  # as in a loader's worker
    count, repeats = (60, 2) if options.smoke else (1000, options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VITDISTILL_CACHE"] = f"{folder}/cache"
        import datasets

        datasets.config.HF_DATASETS_CACHE = Path(folder) / "datasets"
        data = write_all(Path(folder), count)
        for text in data.values():  # what is imported at the first opening is not measured
            open_source(text)
        for kept in ("cache", "datasets"):
            shutil.rmtree(Path(folder) / kept, ignore_errors=True)
        first = {name: opened(text) for name, text in data.items()}
        again = {name: opened(text) for name, text in data.items()}
        orders = {
            name: np.random.RandomState(0).permutation(len(samples)).tolist() for name, (samples, _) in again.items()
        }
        sets = {name: samples for name, (samples, _) in again.items()}
        rate = indexed_per_s(Path(folder), 200 if options.smoke else 20000)
        kilobytes = float(np.mean([reader(sets[FOLDERS])(index) for index in range(count)])) / 1024
        read = compare(
            {name: blocks(reader(one), orders[name], READ_BLOCK) for name, one in sets.items()}, repeats, warmup=2
        )
        made = compare({name: blocks(one.load, orders[name], BLOCK) for name, one in sets.items()}, repeats, warmup=1)
    containers = {
        name: {
            "first_s": first[name][1],
            "again_s": again[name][1],
            "read_us": read[name].median_ms * 1000 / READ_BLOCK,
            "read_ratio": read.ratio(name, FOLDERS),
            "sample_us": made[name].median_ms * 1000 / BLOCK,
            "sample_ratio": made.ratio(name, FOLDERS),
        }
        for name in sets
    }
    result = {
        "machine": options.machine or machine_name(torch.device("cpu")),
        "hardware": hardware(),
        "cpu": cpu_name(),
        "count": count,
        "kilobytes": kilobytes,
        "indexed_per_s": rate,
        "repeats": repeats,
        "containers": containers,
    }
    print(markdown(result))
    if not options.smoke:
        write(options.out, "containers", result, markdown(result))


if __name__ == "__main__":
    main()
