"""`vitdistill embed`: features of images and videos."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from vitdistill.errors import UserError
from vitdistill.evaluation.features import Pool, pooled, pooling_of
from vitdistill.evaluation.files import open_files, read_files, reader_of
from vitdistill.evaluation.loading import Checkpoint
from vitdistill.files import readable, write_atomically
from vitdistill.models.names import ModelName
from vitdistill.runs.directory import list_in_run
from vitdistill.verbs.common import refuse_classes
from vitdistill.verbs.rows import RowWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

ENDINGS = (".npy", ".parquet")


def embed(
    model: ModelName,
    files: list[str],
    *,
    out: str | None = None,
    pool: Pool = "auto",
    checkpoint: Checkpoint = "exported",
    stride: int | None = None,
    sampling: Literal["dense", "uniform"] | None = None,
    batch_size: int = 64,
    image_size: int | None = None,
    crop_pct: float | None = None,
    device: str = "auto",
    workers: int | None = None,
    model_args: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Features of images and videos, which are made ready as in the model's own evaluation: what `knn` and `probe` see.

    Files that cannot be read are named in one line each and left out.

    Args:
        model: run directory, timm name (pretrained weights are downloaded), name@weights-file, or a bundled name. It
            needs no classifier.
        files: images, videos, and folders of them at any depth. Networks over clips take videos and folders of frames;
            those over images see the middle frame of a video, those over spectrograms take sounds.
        out: file to write: FILE.npy holds the features, one row for each readable file, and FILE.csv beside it their
            paths; FILE.parquet holds both, in columns `path` and `features`.
        pool: features are the class token (cls) or the mean over the patches (avg); auto takes the class token where
            the network's own head reads it, and the mean elsewhere.
        checkpoint: of a run: the exported student, the last or best checkpoint, or the averaged weights.
        stride: of videos: frames from one frame of a dense clip to the next; by default as in training.
        sampling: of videos: dense or uniform; by default as in training.
        batch_size: images, or clips, per step.
        image_size: input size in pixels; by default the model's.
        crop_pct: share of the resized image that the centre crop keeps; by default as in the model's evaluation.
        device: auto, cpu, cuda, ...
        workers: loader processes; by default one per core up to 8, and none for bundled data or a single batch.
        model_args: further arguments of the architecture.

    Returns:
        paths of the readable files, and their features, float32 (files, channels), in the same order.

    Raises:
        UserError: when --out has another ending, the model has no encoder or no such pooling, or no file can be read.
    """
    if out is not None and Path(out).suffix not in ENDINGS:
        raise UserError(f"--out must end in {' or '.join(ENDINGS)}", out)
    refuse_classes(model_args, "model_args")
    if out is not None and out.endswith(".npy"):
        place = Path(out).expanduser()
        if place.with_suffix(".csv").exists() and not place.exists():
            beside = place.with_suffix(".csv")
            raise UserError(f"{beside} would be replaced by the paths of {place.name}", remedy="Choose another --out")
    subject = open_files(
        model,
        files,
        checkpoint=checkpoint,
        image_size=image_size,
        crop_pct=crop_pct,
        model_args=model_args,
        stride=stride,
        sampling=sampling,
    )
    network = subject.backbone
    pooling = pooling_of(network, pool)  # refuses before any file is read
    reader = reader_of(subject, batch_size=batch_size, device=device, workers=workers)
    network.eval().to(reader.place)
    paths: list[str] = []
    parts: list[np.ndarray] = []
    for names, inputs in read_files(reader, "embedding"):
        with torch.inference_mode():
            parts.append(pooled(network, inputs, pool).float().cpu().numpy())
        paths += names
    features = np.concatenate(parts)
    if out is not None:
        list_in_run(*_write(Path(out).expanduser(), paths, features))
    count, channels = features.shape
    where = ", kept nowhere: --out names a file" if out is None else f", written to {out}"
    print(f"{count} files, {channels} channels (pool {pooling}){where}")
    return {"paths": paths, "features": features}


def _write(out: Path, paths: "Sequence[str]", features: np.ndarray) -> list[Path]:
    """Write the features and their paths; returns the files."""
    if out.suffix == ".npy":
        write_atomically(out, lambda file: np.save(file, features))
        with RowWriter(str(out.with_suffix(".csv")), "csv") as writer:
            writer.write([{"path": path} for path in paths])
        return [out, out.with_suffix(".csv")]
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise UserError("Parquet needs its extra", remedy="pip install 'vitdistill[hf]', or write .npy") from None
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
    content = pa.table({"path": pa.array(map(readable, paths), pa.string()), "features": vectors})
    write_atomically(out, lambda file: parquet.write_table(content, file))
    return [out]
