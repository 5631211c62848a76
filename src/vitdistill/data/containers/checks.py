"""What the text of an address shows to be wrong, before torch is imported."""

import ast
import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from vitdistill.data.containers.address import Address
from vitdistill.data.containers.splits import split_files
from vitdistill.errors import UserError, near

# What torchvision has for other tasks than the classification of images.
OTHER_TASKS = frozenset(
    [
        "CocoCaptions",
        "CocoDetection",
        "Cityscapes",
        "Flickr8k",
        "Flickr30k",
        "Kitti",
        "LFWPairs",
        "MovingMNIST",
        "PhotoTour",
        "SBDataset",
        "SBU",
        "VOCDetection",
        "VOCSegmentation",
        "VisionDataset",
        "WIDERFace",
        "KittiFlow",
        "Sintel",
        "FlyingChairs",
        "FlyingThings3D",
        "HD1K",
        "Kitti2012Stereo",
        "Kitti2015Stereo",
        "CarlaStereo",
        "Middlebury2014Stereo",
        "CREStereo",
        "FallingThingsStereo",
        "SceneFlowStereo",
        "SintelStereo",
        "InStereo2k",
        "ETH3DStereo",
        "Kinetics",
        "HMDB51",
        "UCF101",
        "DatasetFolder",
        "LSUNClass",
    ]
)


def check_torchvision(address: Address) -> None:
    """Refuse names that torchvision does not have."""
    known = [name for name in torchvision_names() if name not in OTHER_TASKS]
    if address.name in OTHER_TASKS:
        raise UserError(
            "torchvision: takes sets of images with classes",
            f"'{address.name}', which is for another task",
            "Videos are read from their folder" if address.name in ("Kinetics", "HMDB51", "UCF101") else "",
        )
    if known and address.name not in known:
        same = [name for name in known if name.lower() == address.name.lower()]
        remedy = f"Did you mean '{same[0]}'?" if same else near(address.name, known)
        raise UserError(
            "torchvision must have the data set", f"'{address.name}'", remedy or f"It has {', '.join(known)}"
        )


@cache
def torchvision_names() -> tuple[str, ...]:
    """The data sets of the torchvision that is installed, read from its source: importing it loads torch."""
    package = find_spec("torchvision")
    file = None if package is None or package.origin is None else Path(package.origin).parent / "datasets/__init__.py"
    if file is None or not file.is_file():
        return ()
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return tuple(name for name in ast.literal_eval(statement.value) if name[0].isupper())
    return ()


def check_hub(address: Address) -> None:
    """Refuse what is neither a folder nor a name of the hub, and `datasets` that is not installed."""
    needs_datasets(address)
    name = address.name
    is_folder = os.path.isdir(os.path.expanduser(name))
    if not name or (not is_folder and (name.startswith((".", "/", "~")) or name.count("/") > 1)):
        rule = "hf: takes the name of a data set on the hub, owner/name, or a folder"
        raise UserError(rule, f"'{name}'" + (", which is no folder" if name else ""))


def check_files(suffix: str) -> Callable[[Address], None]:
    """A check that all files of an address are there."""
    return lambda address: (split_files(address, suffix), None)[1]


def check_parquet(address: Address) -> None:
    """Refuse files that are missing, and `datasets` that is not installed."""
    needs_datasets(address)
    split_files(address, ".parquet")


def needs_datasets(address: Address) -> None:
    """Refuse what the `datasets` library reads where it is not installed."""
    if find_spec("datasets") is None:
        raise UserError(f"{address.scheme}: needs the datasets library", remedy="Run: pip install 'vitdistill[hf]'")


def check_csv(address: Address) -> None:
    """Refuse a csv file that is not there."""
    if not os.path.isfile(os.path.expanduser(address.name)):
        raise UserError("The csv file must exist", f"'{address.name}'")


ESC50_TABLE = "meta/esc50.csv"
ESC50_LAYOUT = f"Expected audio/*.wav and {ESC50_TABLE} with the columns filename, fold, target, category"


def check_esc50(address: Address) -> None:
    """Refuse a folder that is none of ESC-50's, and one without a fold to validate on."""
    name = address.name
    if not os.path.isfile(os.path.join(os.path.expanduser(name), ESC50_TABLE)):
        raise UserError(f"esc50: takes a folder with {ESC50_TABLE}", f"'{name}'", ESC50_LAYOUT)
    if "fold" not in address.options:
        remedy = (
            f"Write '{name}?fold=1', or train on each: vitdistill chain RECIPE --data {name} --folds 5 --out FOLDER"
        )
        raise UserError("ESC-50 needs the fold to validate on", f"'{name}'", remedy)
