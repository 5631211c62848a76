"""Where the samples of a tar shard lie in it: found once by reading its headers, then kept in a cache.

The `webdataset` package reads shards as streams, in which a sample cannot be reached by its number; exact resume and
orders that do not depend on the number of workers need just that. Python's `tarfile` gives the offsets.
"""

import json
import os
import re
import tarfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitdistill.data.images.decode import image_suffixes
from vitdistill.data.samples import digest_of, reason_of
from vitdistill.errors import UserError, error_words
from vitdistill.files import write_atomically

VERSION = 2  # of the cached files
CACHE = "VITDISTILL_CACHE"
# As webdataset: a sample is what agrees up to the first dot of the file's name.
MEMBER = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")
NAMED_IMAGE = (".img", ".image")  # what pictures of any format are called in some shards
CLASS_SUFFIXES = ("cls", "cls.txt", "label", "class")
CLASS_KEYS = ("label", "cls", "class", "target", "class_id", "class_name", "label_name")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class TarIndex(NamedTuple):
    """The samples of one tar, in order.

    Attributes:
        names: of the images in the tar, bytes (samples,).
        offsets: of the images in the file, int64 (samples,).
        sizes: of the images in bytes, int64 (samples,).
        classes: what the tar says of each class, as text, (samples,); None where it says nothing of any.
        other: members that belong to no sample with an image.
    """

    names: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    classes: np.ndarray | None
    other: int


def cache_folder(given: str | None = None) -> Path:
    """Where indices are kept: the folder given, else $VITDISTILL_CACHE, else ~/.cache/vitdistill."""
    return Path(given or os.environ.get(CACHE) or "~/.cache/vitdistill").expanduser() / "shards"


def cache_file(tar: str, image: str | None, label: str | None, folder: Path) -> Path:
    """The index of a tar as it is now; another size, time or choice of members is another file.

    Raises:
        UserError: when there is no such tar.
    """
    try:
        status = os.stat(tar)
    except OSError as error:
        raise UserError("A shard must be readable", f"{tar} ({error.strerror})") from error
    facts = [VERSION, os.path.abspath(tar), status.st_size, status.st_mtime_ns, image, label]
    return folder / f"{digest_of(json.dumps(facts).encode())}.npz"


def read_index(file: Path) -> TarIndex | None:
    """A kept index; None where there is none, or it is damaged."""
    with suppress(OSError, ValueError, KeyError, EOFError), np.load(file, allow_pickle=False) as kept:
        classes = kept["classes"] if bool(kept["labelled"]) else None
        return TarIndex(kept["names"], kept["offsets"], kept["sizes"], classes, int(kept["other"]))
    return None


def write_index(file: Path, index: TarIndex) -> None:
    """Keep an index where that is possible; a folder that cannot be written only costs time at the next opening."""
    content = BytesIO()
    np.savez(
        content,
        names=index.names,
        offsets=index.offsets,
        sizes=index.sizes,
        labelled=index.classes is not None,
        classes=np.array([], dtype=str) if index.classes is None else index.classes,
        other=index.other,
    )
    with suppress(UserError):
        write_atomically(file, lambda opened: opened.write(content.getvalue()))


def index_of(tar: str, image: str | None, label: str | None) -> TarIndex:
    """Read the headers of a tar.

    Args:
        tar: its path.
        image: suffix of the images, e.g. `left.jpg`; None takes the only image of each sample.
        label: what says the class: a suffix (`cls`), a field of a json file (`json:breed`), or `folder`; None takes
            `cls`, then the usual fields of a json file.

    Raises:
        UserError: when it is compressed or damaged, or a sample has several images or nothing that says its class
            although others have it.
    """
    _refuse_compressed(tar)
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    other = 0
    try:
        with tarfile.open(tar, "r:") as opened:
            for member in opened:
                if not member.isfile():
                    continue
                match = MEMBER.fullmatch(member.name)
                if match is None or os.path.basename(member.name).startswith("."):
                    other += 1
                    continue
                files, suffix = samples.setdefault(match[1], {}), match[2].lower()
                if suffix in files:
                    raise UserError(f"{tar} must hold each member once", f"{member.name} twice")
                files[suffix] = member
            _check_end(tar, opened.offset)
            chosen = {key: one for key, files in samples.items() if (one := _image(tar, key, files, image)) is not None}
            other += sum(len(files) for key, files in samples.items() if key not in chosen)
            classes = [_class_of(opened, key, samples[key], label) for key in chosen]
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = reason_of(error, tar)
        raise UserError("A shard must be a whole tar file", f"{tar} ({reason})", "Get it anew") from error
    known = sum(one is not None for one in classes)
    if 0 < known < len(classes):
        missing = next(key for key, one in zip(chosen, classes, strict=True) if one is None)
        raise UserError(
            f"Every sample in {tar} must say its class",
            f"{len(classes) - known} of {len(classes)} that do not, the first {missing}",
            "Name what does, e.g. ?label=json:label",
        )
    members = list(chosen.values())
    return TarIndex(
        np.array([os.fsencode(member.name) for member in members], dtype=np.bytes_),
        np.array([member.offset_data for member in members], dtype=np.int64),
        np.array([member.size for member in members], dtype=np.int64),
        np.array(classes, dtype=str) if known else None,
        other,
    )


def _check_end(tar: str, offset: int) -> None:
    """Refuse what `tarfile` takes for the end of an archive and is none: a damaged header, or another archive behind.

    Args:
        tar: its path.
        offset: where the headers ended.
    """
    with open(tar, "rb") as file:
        file.seek(offset)
        rest = file.read(1 << 20)
    if rest.strip(b"\0"):
        raise tarfile.ReadError(f"no tar header at byte {offset}, where more follows")


def _refuse_compressed(tar: str) -> None:
    try:
        with open(tar, "rb") as file:
            begin = file.read(8)
    except OSError as error:
        raise UserError("A shard must be readable", f"{tar} ({error.strerror})") from error
    kind = next((kind for magic, kind in COMPRESSED.items() if begin.startswith(magic)), None)
    if kind is not None:
        raise UserError(
            "Shards must not be compressed, as a sample in the middle could not be reached",
            f"{tar} ({kind})",
            "Decompress it, e.g. with gunzip; images are compressed already",
        )


def _image(tar: str, key: str, files: dict[str, tarfile.TarInfo], wanted: str | None) -> tarfile.TarInfo | None:
    """The image among a sample's members; None where there is none."""
    if wanted is not None:
        return files.get(wanted.lower().lstrip("."))
    known = image_suffixes().union(NAMED_IMAGE)
    found = [suffix for suffix in files if f".{suffix.rpartition('.')[2]}" in known]
    if len(found) > 1:
        raise UserError(
            "A sample must have one image",
            f"{', '.join(found)} of {key} in {tar}",
            f"Name the one to read: ?image={found[0]}",
        )
    return files[found[0]] if found else None


def _class_of(opened: tarfile.TarFile, key: str, files: dict[str, tarfile.TarInfo], label: str | None) -> str | None:
    """What says the class of a sample, as text; None where nothing does."""
    if label == "folder":
        return os.path.basename(os.path.dirname(key)) or None
    suffix, _, field = (label or "").partition(":")
    if suffix and suffix != "json":
        return _text(opened, files[suffix]) if suffix in files else None
    if not suffix and (present := next((one for one in CLASS_SUFFIXES if one in files), None)):
        return _text(opened, files[present])
    if "json" not in files:
        return None
    try:
        content = json.loads(_text(opened, files["json"]))
    except ValueError as error:
        if not suffix:
            return None
        raise UserError(
            "A json member must be JSON", f"{key}.json in {opened.name!s} ({error_words(error)})"
        ) from error
    if not isinstance(content, dict):
        return str(content) if isinstance(content, str | int) else None
    value = next((content[one] for one in ([field] if field else CLASS_KEYS) if one in content), None)
    return str(value) if isinstance(value, str | int) else None


def _text(opened: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file: Any = opened.fileobj  # quicker than `extractfile`, which wraps every member in two objects
    file.seek(member.offset_data)
    return file.read(member.size).decode("utf-8", "replace").strip()
