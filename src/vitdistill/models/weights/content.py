"""The content of weights files: safetensors, pickles and shards, told apart by their bytes; no code is ever run."""

import argparse
import datetime
import json
import pathlib
import pickle
import re
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray, numeric
from safetensors import SafetensorError, safe_open

from vitdistill.errors import UserError

# What a folder of `save_pretrained` calls its weights, first match wins; a run calls its own by another name.
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

# What torch's weights-only reader says about objects; its other complaints are about damage.
_SIGNS_OF_CODE = ("unsupported global", "can only create new object", "can only build", "must be imported to load")

# Files that people give and that hold no PyTorch weights.
_OTHERS = {
    ".npz": "JAX",
    ".npy": "NumPy",
    ".msgpack": "Flax",
    ".h5": "Keras",
    ".onnx": "ONNX",
    ".gguf": "GGUF",
    ".tflite": "TensorFlow Lite",
}

# What begins like this was downloaded or packed, and is no file of weights.
_SIGNS = {
    b"<": ("a web page, such as a site answers in place of the file", "Download it again"),
    b"{": ("JSON, perhaps a configuration or a site's answer", "Give the file of the weights"),
    b"\x1f\x8b": ("compressed by gzip", "Unpack it first"),
    b"BZh": ("compressed by bzip2", "Unpack it first"),
    b"\xfd7zXZ": ("compressed by xz", "Unpack it first"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "Unpack it first"),
}


def read_content(path: Path) -> dict[str, Any]:
    """What a weights file holds, as it stands there.

    Raises:
        UserError: when it is no weights file, is damaged, or holds objects that would run code.
    """
    if path.name.endswith(".index.json"):
        return _shards(path)
    if path.suffix.lower() in _OTHERS:
        kind = _OTHERS[path.suffix.lower()]
        raise UserError("The weights must be in PyTorch's or the safetensors format", f"{path} ({kind})")
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        remedy = "Fetch the file itself with `git lfs pull`"
        raise UserError("The weights file must be whole", f"{path} (a Git LFS pointer)", remedy)
    if _is_safetensors(path, start):
        return _safetensors(path)
    if found := next((words for sign, words in _SIGNS.items() if start.lstrip().startswith(sign)), None):
        rule = "The weights file must be in PyTorch's or the safetensors format"
        raise UserError(rule, f"{path} ({found[0]})", found[1])
    return _pickled(path)


def read_shapes(path: Path) -> dict[str, Any]:
    """What `read_content` gives, of safetensors without their values (tensors on the meta device).

    Raises:
        UserError: as `read_content`.
    """
    if path.name.endswith(".index.json"):
        shards = sorted(set(_weight_map(path).values()))
        return {name: value for shard in shards for name, value in read_shapes(path.parent / shard).items()}
    with path.open("rb") as file:
        start = file.read(64)
    if not _is_safetensors(path, start):
        return read_content(path)
    try:
        with safe_open(path, framework="pt") as opened:
            names = opened.keys()
            return {name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError("The weights file must be a whole safetensors file", f"{path} ({error})") from error


def weights_in(folder: Path) -> Path:
    """The weights file in a folder of `save_pretrained`.

    Raises:
        UserError: when there is none.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    there = sorted(path.name for path in folder.iterdir())[:6]
    raise UserError(
        f"A folder that is given as a model must hold {NAMES[0]} or {NAMES[2]}",
        f"{folder} with {', '.join(there)}",
    )


def _is_safetensors(path: Path, start: bytes) -> bool:
    """By content: the length of the header in eight bytes, then its JSON. By suffix where it is neither format."""
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return True
    return path.suffix == ".safetensors" and not start.startswith((b"PK\x03\x04", b"\x80"))


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise UserError("The weights file must be a whole safetensors file", f"{path} ({error})") from error


def _weight_map(index: Path) -> dict[str, str]:
    """Which file holds which tensor; the files are there."""
    try:
        files = {str(name): str(file) for name, file in json.loads(index.read_text())["weight_map"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError("The index of weights must map names to files", f"{index} ({error})") from error
    shards = sorted(set(files.values()))
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        got = f"{len(missing)} of {len(shards)} missing: {', '.join(missing[:3])}"
        raise UserError(f"The shards that {index} names must be there", got, "Copy them again")
    return files


def _shards(index: Path) -> dict[str, Any]:
    """The tensors of all shards that an index names."""
    files = _weight_map(index)
    content: dict[str, Any] = {}
    for name in sorted(set(files.values())):
        content |= read_content(index.parent / name)
    absent = [name for name in files if name not in content]
    if absent:
        raise UserError(f"The shards must hold what {index} names", f"none has {absent[0]}", "Copy them again")
    return content


def _pickled(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_plain_types()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, beside the one line of a refusal
            with path.open("rb") as file:  # by a path, torch would go by its suffix
                content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_plain_pickle(path):
            raise UserError(
                "The weights file must be one that torch.save or safetensors wrote",
                f"{path} (a pickle of another writer)",
                "Load it where you trust it, and save its tensors by name as safetensors",
            ) from error
        if any(sign in str(error).lower() for sign in _SIGNS_OF_CODE):
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise UserError(
                "A weights file may hold only tensors and plain values; this one holds code, which is not run",
                f"{path} ({found[1]})" if found else path,
                "Load it where you trust it, and save the state_dict() as safetensors",
            ) from error
        raise UserError("The weights file must be whole", f"{path} (damaged pickle)", "Copy it again") from error
    except Exception as error:  # a damaged file can fail anywhere in the reader
        if "torchscript" in str(error).lower():
            remedy = "Load it with torch.jit.load, and save its state_dict()"
            raise UserError(
                "A weights file holds tensors by name", f"{path} (a TorchScript program)", remedy
            ) from error
        words = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise UserError("The weights file must be whole", f"{path} ({words})", "Copy it again") from error
    if not isinstance(content, dict):
        raise UserError(
            "The weights file must hold a mapping from names to tensors", f"{path}: {type(content).__name__}"
        )
    return content


def _is_plain_pickle(path: Path) -> bool:
    """Whether a file is a whole pickle of a protocol that torch does not write; nothing of it is executed."""
    with path.open("rb") as file:
        head = file.read(2)
        file.seek(max(0, path.stat().st_size - 1))
        return head[:1] == b"\x80" and head[1:] > b"\x02" and file.read(1) == b"."


def _dict(*_: Any) -> dict[Any, Any]:
    """What a defaultdict becomes: torch's reader fills plain mappings alone."""
    return {}


def _list(*_: Any) -> list[Any]:
    """What a deque becomes."""
    return []


def _plain_types() -> list[Any]:
    """Types of plain values that training codes put beside the weights: data, whose creation runs no code of the file.

    The names are those under which NumPy 1 and 2, and Python before and after 3.13, pickle them. A path of another
    system becomes one that is never opened.
    """
    plain: list[Any] = [
        argparse.Namespace,
        types.SimpleNamespace,
        (_dict, "collections.defaultdict"),
        (_list, "collections.deque"),
        *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone),
        *(np.ndarray, np.dtype),
        *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdgFDSUOmM"),
        *((kind, f"builtins.{kind.__name__}") for kind in (dict, list, tuple, frozenset, int, float, str, bool, slice)),
    ]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        plain += [(multiarray.scalar, f"{module}.scalar"), (multiarray._reconstruct, f"{module}._reconstruct")]
    for module in ("numpy.core.numeric", "numpy._core.numeric"):
        plain.append((numeric._frombuffer, f"{module}._frombuffer"))  # type: ignore[attr-defined]
    for module in ("pathlib", "pathlib._local"):
        for kind in ("PosixPath", "PurePosixPath"):
            plain.append((pathlib.PurePosixPath, f"{module}.{kind}"))
        for kind in ("WindowsPath", "PureWindowsPath"):
            plain.append((pathlib.PureWindowsPath, f"{module}.{kind}"))
    return plain
