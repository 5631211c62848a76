"""How `--data` becomes a data source: bundled names, folders, and the schemes of containers.

To add a bundled source: write one file with a function that returns a `DataSource`, and name it in `bundled`.
To add a container: write one file in `containers/`, and one line in `SCHEMES`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from vitdistill.data.containers import checks
from vitdistill.data.containers.address import SCHEME, Address, absolute, check_options, parse, split_path
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, near

LOOKED_AT = 1000  # entries of a folder
SCENES, SOUNDS = "scenes", "sounds"
BUNDLED = ("digits", "moving_digits", "moving_digits:motion", SOUNDS, SCENES)


@dataclass(frozen=True)
class Scheme:
    """A kind of container.

    Attributes:
        opens: function from an address (and whether labels are needed) to a source, as module and name.
        check: refuses what the text alone shows to be wrong.
        options: names of the options behind the question mark; None where the container decides.
        example: for messages.
    """

    opens: str
    check: Callable[[Address], None]
    options: tuple[str, ...] | None
    example: str


CONTAINERS = "vitdistill.data.containers"
SCHEMES = {
    "torchvision": Scheme(
        f"{CONTAINERS}.torchvision_sets:open_torchvision", checks.check_torchvision, None, "torchvision:CIFAR10"
    ),
    "hf": Scheme(
        f"{CONTAINERS}.hf:open_hub",
        checks.check_hub,
        ("config", "revision", "train", "val", "image", "label"),
        "hf:owner/name",
    ),
    "shards": Scheme(
        f"{CONTAINERS}.shards:open_shards",
        checks.check_files(".tar"),
        ("train", "val", "image", "label", "cache"),
        "shards:train-{000..146}.tar",
    ),
    "parquet": Scheme(
        f"{CONTAINERS}.parquet:open_parquet",
        checks.check_parquet,
        ("train", "val", "image", "label"),
        "parquet:photos.parquet",
    ),
    "csv": Scheme(
        f"{CONTAINERS}.csv_file:open_csv",
        checks.check_csv,
        ("path", "label", "split", "train", "val"),
        "csv:labels.csv",
    ),
    "esc50": Scheme(
        "vitdistill.data.audio.esc50:open_esc50", checks.check_esc50, ("fold",), "esc50:ESC-50-master?fold=1"
    ),
}
SUFFIXES = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".tar": "shards"}  # of files that need no scheme


def bundled() -> dict[str, Callable[[], DataSource]]:
    """Sources that need no download, by the name that `--data` takes."""
    from vitdistill.data.bundled.digits import digits
    from vitdistill.data.bundled.moving_digits import moving_digits
    from vitdistill.data.bundled.sounds import sounds

    opens = (digits, moving_digits, partial(moving_digits, "motion"), sounds, _scenes)
    return dict(zip(BUNDLED, opens, strict=True))


def _scenes() -> DataSource:
    rule = "The bundled scenes have boxes, and a class for each of their pixels, but none for the whole picture"
    raise UserError(rule, SCENES, "Give --task boxes or --task segmentation to a verb that has it")


def address_of(data: str | Path) -> Address | None:
    """The container that `--data` names: by its scheme, or as a path to one; None for bundled names and other paths.

    Raises:
        UserError: when there is no such scheme, or options cannot be read.
    """
    text = str(data)
    if data in BUNDLED:
        return None
    address = parse(text) if isinstance(data, str) else None
    if address is not None and address.scheme in SCHEMES:
        return address
    path, options = split_path(text)
    place = Path(path).expanduser()
    if place.exists():
        scheme = _scheme_of(place)
        return None if scheme is None else Address(scheme, path, options)
    if address is not None and not text.startswith(tuple(f"{name}:" for name in BUNDLED)):
        examples = ", ".join(scheme.example for scheme in SCHEMES.values())
        remedy = near(address.scheme, SCHEMES) or f"There are {examples}"
        raise UserError("--data must have a scheme that there is", f"'{SCHEME.fullmatch(text)[1]}:'", remedy)  # type: ignore[index]
    return None


def _scheme_of(place: Path) -> str | None:
    """The scheme of a file or folder that exists, where it is a container."""
    if place.is_file():
        return SUFFIXES.get(place.suffix.lower())
    if any((place / name).is_file() for name in ("dataset_dict.json", "state.json")):  # of datasets' save_to_disk
        return "hf"
    if (place / checks.ESC50_TABLE).is_file():
        return "esc50"
    looked_in = [place, *(place / name for name in ("data", "train", "default", "default/train"))]
    names = [entry.name for folder in looked_in if folder.is_dir() for entry in islice(os.scandir(folder), LOOKED_AT)]
    suffixes = {Path(name).suffix.lower() for name in names}
    if ".parquet" in suffixes:
        return "parquet"
    return "shards" if ".tar" in suffixes and not any(entry.is_dir() for entry in place.iterdir()) else None


def check_there(data: str | Path) -> None:
    """Quick, and without loading torch.

    Raises:
        UserError: when `--data` names neither a bundled source, nor a container, nor anything that exists.
    """
    text = str(data)
    if text.startswith("<") and text.endswith(">"):
        raise UserError("The run was given its data as a Python object", text, "Give --data, or the object in Python")
    address = address_of(data)
    if address is not None:
        scheme = SCHEMES[address.scheme]
        if scheme.options is not None:
            check_options(address, scheme.options)
        _ = address.share
        scheme.check(address)
    elif data not in BUNDLED and not (text.strip() and Path(data).expanduser().exists()):
        raise UserError(
            f"--data must be an existing folder or a bundled source ({', '.join(BUNDLED)})",
            f"'{data}'",
            near(text, BUNDLED),
        )


def absolute_data(data: str) -> str:
    """What `--data` says, with the paths in a container's address absolute: so a run's record holds anywhere.

    Bundled names, plain paths and names of the hub stay as they are.
    """
    address = None if Path(data).expanduser().exists() else address_of(data)
    if address is None:
        return data
    is_path = address.scheme in ("shards", "parquet", "csv", "esc50") or Path(address.name).expanduser().is_dir()
    options = dict(address.options)
    for name in ("root", "cache", *(("train", "val") if address.scheme in ("shards", "parquet") else ())):
        if name in options and not (name == "val" and address.share is not None):
            options[name] = absolute(options[name])
    return str(Address(address.scheme, absolute(address.name) if is_path else address.name, options))


def open_source(data: Any, *, labels: bool = True) -> DataSource:
    """Open what `--data` names.

    Args:
        data: the name of a bundled source, a folder with `train/` and `val/`, a container such as
            `torchvision:CIFAR10`, a source that is already open, or a map-style torch `Dataset` of (picture, class),
            or a pair (train, val) of them. A bundled name or a scheme wins over a folder of the same name; write
            `./digits` to mean the folder.
        labels: False opens any folder of images, see `image_folder`, and containers without labels; all else is opened
            as ever.

    Raises:
        UserError: when it is none of these, or when the source itself is unusable.
    """
    if isinstance(data, DataSource):
        if labels and not data.classes:
            raise UserError("Labelled data is needed", f"{data.name}, which has no labels")
        return data
    if not isinstance(data, str | Path):
        from vitdistill.data.containers.torch_data import open_torch

        return open_torch(data, labels=labels)
    check_there(data)
    if isinstance(data, str) and data in BUNDLED:
        return bundled()[data]()
    from vitdistill.data.audio.files import sound_files
    from vitdistill.data.clips.files import has_videos, video_files
    from vitdistill.data.folders import listing
    from vitdistill.data.images.folder import image_folder
    from vitdistill.data.media import has_sounds

    address = address_of(data)
    if address is not None and not _is_video_list(address):
        module, _, function = SCHEMES[address.scheme].opens.partition(":")
        return getattr(import_module(module), function)(address, labels=labels)
    with listing(data):
        if has_sounds(data):
            return sound_files(data, labels=labels)
        return (video_files if has_videos(data) else image_folder)(data, labels=labels)


def _is_video_list(address: Address) -> bool:
    """Whether a csv file without options is a list of videos, which has rules of its own."""
    if address.scheme != "csv" or address.options:
        return False
    from vitdistill.data.media import is_video
    from vitdistill.data.tables import is_table

    return not is_table(Path(address.name).expanduser(), is_video)
