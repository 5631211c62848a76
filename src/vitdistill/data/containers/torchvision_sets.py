"""The classification sets of torchvision by name: `torchvision:CIFAR10?root=/data&download=true`.

Which splits a set has is asked of its own signature; few need to be told here.
"""

import gzip
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdistill.data.containers.address import FLAGS, Address
from vitdistill.data.containers.labels import Part, source_of
from vitdistill.data.containers.splits import VAL_WORDS
from vitdistill.data.containers.torch_data import class_names, part_of
from vitdistill.data.images.decode import read_image
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, error_words
from vitdistill.files import write_atomically

ROOT = "VITDISTILL_DATA"
OWN = ("root", "download", "train", "val")  # options that every set has
# Parameter that names the split, split to train on, split to validate on; where the signature does not tell.
SPLITS = {
    "INaturalist": ("version", "2021_train", "2021_valid"),
    "LSUN": ("classes", "train", "val"),
    "LFWPeople": ("split", "train", "test"),
    "CelebA": ("split", "train", "valid"),
}
# Of sets with other targets than classes, what makes them classes.
TARGETS: Mapping[str, Mapping[str, Any]] = {"CelebA": {"target_type": "identity"}}
DIGITS = [str(digit) for digit in range(10)]
# Of sets that do not carry the names of their classes.
NAMES = {"SVHN": DIGITS, "USPS": DIGITS, "SEMEION": DIGITS, "PCAM": ["no tumor", "tumor"]}


def default_root() -> Path:
    """Where sets lie: $VITDISTILL_DATA, else ~/.cache/vitdistill/data."""
    return Path(os.environ.get(ROOT) or "~/.cache/vitdistill/data").expanduser()


def open_torchvision(address: Address, *, labels: bool) -> DataSource:
    """Open a set of torchvision.

    Options: `root`, `download`, `train`, `val` (splits; or for `val` the share to hold out), and further arguments of
    the set's constructor, such as `split=balanced` of EMNIST.

    Raises:
        UserError: when there is no such set, it is not below the root, or its samples are not images with a class.
    """
    import torchvision

    name = address.name
    factory = getattr(torchvision.datasets, name)
    parameters = _parameters(factory)
    given = {key: _value(address, key, parameters) for key in address.options if key not in OWN}
    given = {**TARGETS.get(name, {}), **given}
    selector, train, val = _split_of(name, parameters, address)
    try:
        opened = _opened(factory, parameters, address, {**given, **({} if selector is None else {selector: train})})
    except _NoSuchSplit as error:
        raise UserError(f"An option of torchvision:{name} must have a value that it knows", error) from error
    part = part_of(opened, f"torchvision:{name}")
    other = None
    if selector is not None and address.share is None:
        other = _validation(factory, parameters, address, given, selector, train, val)
    val_part = None if other is None else part_of(other, f"torchvision:{name} (validation)")
    names = NAMES.get(name) or class_names(opened)
    if names and names[0] == "N/A":  # EMNIST's letters count from 1
        part, val_part = _from_one(part), None if val_part is None else _from_one(val_part)
        names = names[1:]
    return source_of(name, part, val_part, names=names, labels=labels, share=address.share)


def _parameters(factory: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor, and of those to which it hands its keywords on."""
    found: dict[str, inspect.Parameter] = {}
    for kind in factory.__mro__:
        own = inspect.signature(kind.__init__).parameters if "__init__" in vars(kind) else {}
        for key, parameter in own.items():
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and key != "self":
                found.setdefault(key, parameter)
        if own and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
            break
    return found


def _value(address: Address, key: str, parameters: Mapping[str, inspect.Parameter]) -> Any:
    """An option as the constructor takes it.

    Raises:
        UserError: when the constructor does not take it.
    """
    if key not in parameters or "transform" in key or key == "loader":
        others = [name for name in parameters if "transform" not in name and name != "loader"]
        there = ", ".join(dict.fromkeys((*OWN, *others)))
        raise UserError(f"torchvision:{address.name} has no option '{key}'", f"'{address}'", f"There are {there}")
    text, default = address.options[key], parameters[key].default
    if isinstance(default, bool):
        return address.flag(key)
    if isinstance(default, tuple):
        return tuple(int(part) if part.isdigit() else part for part in text.split(","))
    if text.lstrip("-").isdigit() and (isinstance(default, int) or default is None):
        return int(text)
    return text


def _split_of(
    name: str, parameters: Mapping[str, inspect.Parameter], address: Address
) -> tuple[str | None, Any, str | None]:
    """The parameter that chooses the split, its value for training, and that for validation where it is known."""
    wanted, val = address.options.get("train"), address.val
    if name in SPLITS:
        selector, train, known = SPLITS[name]
        return selector, wanted or train, val or known
    if "train" in parameters:
        if wanted is not None and wanted.lower() in FLAGS:
            return "train", FLAGS[wanted.lower()], val
        if wanted is not None or val is not None:
            raise UserError(f"torchvision:{name} has no named splits", f"'{address}'", "Leave train and val out")
        return "train", True, None
    for selector in ("split", "image_set"):
        if selector in parameters:
            default = parameters[selector].default
            return selector, wanted or (default if isinstance(default, str) else "train"), val
    if wanted is not None or val is not None:
        raise UserError(f"torchvision:{name} has a single split", f"'{address}'", "Hold a share of it out: ?val=0.1")
    return None, None, None


def _validation(
    factory: Any,
    parameters: Mapping[str, inspect.Parameter],
    address: Address,
    given: Mapping[str, Any],
    selector: str,
    train: Any,
    val: str | None,
) -> Any | None:
    """The set to validate on: the named one, or the first usual one that it has; None where there is none."""
    if isinstance(train, bool):
        return _opened(factory, parameters, address, {**given, selector: not train})
    words = ("test",) if train == "trainval" else VAL_WORDS  # val is part of trainval
    for candidate in (val,) if val is not None else words:
        try:
            return _opened(factory, parameters, address, {**given, selector: candidate})
        except _NoSuchSplit as error:
            if val is not None:
                raise UserError(f"torchvision:{address.name} must have the split to validate on", error) from error
    return None


class _NoSuchSplit(Exception):
    pass


def _opened(
    factory: Any, parameters: Mapping[str, inspect.Parameter], address: Address, given: Mapping[str, Any]
) -> Any:
    """Construct a set; what is not there is downloaded where that is asked for.

    Raises:
        UserError: when it is not below the root and not to be downloaded, or an argument is missing or refused.
    """
    root = Path(address.options.get("root") or default_root()).expanduser()
    arguments = dict(given)
    if "root" in parameters:
        arguments["root"] = str(root)
    if "loader" in parameters:
        arguments["loader"] = read_image  # the set's own clips 16 bits, and leaves pictures lying on their side
    downloads, wanted = "download" in parameters, address.flag("download")
    if wanted and not downloads:
        raise UserError(
            f"torchvision:{address.name} cannot be downloaded", f"'{address}'", "Get its files, and name root"
        )
    required = [key for key, one in parameters.items() if one.default is one.empty and key not in arguments]
    if required:
        raise UserError(
            f"torchvision:{address.name} needs the option {required[0]}", f"'{address}'", _choices(factory, required[0])
        )
    try:
        _unpack(factory, root)
        return factory(**arguments, **({"download": False} if downloads else {}))
    except Exception as error:  # each set has exceptions of its own for files that are missing
        if isinstance(error, ValueError) and "Unknown value" in str(error):
            raise _NoSuchSplit(error_words(error)) from error
        if not wanted:
            remedy = f"Name the folder that holds it, ?root=FOLDER{', or add ?download=true' if downloads else ''}"
            what = f"{root} ({type(error).__name__}: {error_words(error)[:160]})"
            raise UserError(f"torchvision:{address.name} must lie below its root", what, remedy) from error
    return _downloaded(factory, address, arguments, root)


def _unpack(factory: Any, root: Path) -> None:
    """Unpack the files of sets like MNIST, which torchvision does only after a download."""
    raw = root / factory.__name__ / "raw"
    for name, _ in getattr(factory, "resources", ()):
        packed = raw / name
        unpacked = packed.with_suffix("")
        if packed.suffix == ".gz" and packed.is_file() and not unpacked.exists():
            content = gzip.decompress(packed.read_bytes())
            write_atomically(unpacked, lambda file, content=content: file.write(content))


def _downloaded(factory: Any, address: Address, arguments: Mapping[str, Any], root: Path) -> Any:
    from filelock import FileLock

    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{address.name}.lock"):  # of several processes, the first downloads
            try:
                return factory(**arguments, download=False)
            except Exception:
                return factory(**arguments, download=True)
    except Exception as error:  # of networks, archives, disks
        raise UserError(
            f"torchvision:{address.name} must be downloadable to {root}",
            f"{type(error).__name__}: {error_words(error)}",
            "Check the network, or get its files by hand",
        ) from error


def _choices(factory: Any, key: str) -> str:
    choices = getattr(factory, f"{key}s", None)
    return (
        f"One of {', '.join(map(str, choices))}, e.g. ?{key}={choices[0]}" if isinstance(choices, tuple | list) else ""
    )


def _from_one(part: Part) -> Part:
    return part if part.values is None else Part(part.name, part.count, part.values - 1, part.make)
