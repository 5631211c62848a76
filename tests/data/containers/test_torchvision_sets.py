"""torchvision's sets by name: splits by signature, names of classes, files that are missing."""

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from contained import write_mnist
from vitdistill.data import open_source
from vitdistill.data.containers import checks, torchvision_sets
from vitdistill.data.containers.address import Address
from vitdistill.errors import UserError

PACKED = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


def test_files_of_mnist_s_format_are_unpacked_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path)
    source = open_source(f"torchvision:FashionMNIST?root={tmp_path}")
    assert (len(source.train), len(source.val), source.classes[0]) == (20, 10, "T-shirt/top")
    assert source.train.labels == [number % 10 for number in range(20)]
    image, label = source.train.load(3)
    assert image.mode == "RGB" and image.size == (28, 28) and label == 3
    assert np.asarray(image)[0, 0, 0] == 3 * 784 % 256
    monkeypatch.setenv("VITDISTILL_DATA", str(tmp_path))
    assert len(open_source("torchvision:FashionMNIST").train) == 20
    assert len(open_source("torchvision:FashionMNIST?val=0.25").val) == 5, "a share of the training images"


@pytest.mark.skipif(not PACKED.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in PACKED.glob("*.gz"):
        (raw / file.name).symlink_to(file)
    source = open_source(f"torchvision:FashionMNIST?root={tmp_path}")
    assert (len(source.train), len(source.val)) == (60000, 10000)
    assert np.bincount(source.train.labels).tolist() == [6000] * 10
    original = torchvision.datasets.FashionMNIST(tmp_path, train=False)
    assert np.array_equal(np.asarray(source.val.load(7)[0])[..., 0], np.asarray(original[7][0]))


def test_folders_of_torchvision_s_layouts(tmp_path: Path) -> None:
    """Sets with and without splits; the names of ImageNet's classes are those of its folders."""
    for split, count in (("train", 2), ("val", 1)):
        for name in ("n01440764", "n02102040"):
            folder = tmp_path / "imagenette2" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8)).save(folder / f"{number}.JPEG")
    for name in ("Forest", "River"):
        (tmp_path / "eurosat/2750" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (8, 8)).save(tmp_path / "eurosat/2750" / name / f"{number}.jpg")
    imagenette = open_source(f"torchvision:Imagenette?root={tmp_path}")
    assert (imagenette.classes, len(imagenette.train), len(imagenette.val)) == (["n01440764", "n02102040"], 4, 2)
    assert imagenette.val.path(1).endswith("val/n02102040/0.JPEG")
    eurosat = open_source(f"torchvision:EuroSAT?root={tmp_path}&val=0.2")
    assert (eurosat.classes, len(eurosat.train), len(eurosat.val)) == (["Forest", "River"], 8, 2)
    (tmp_path / "imagenette2/val/n02102040/0.JPEG").write_bytes(b"nothing")
    damaged = pickle.loads(pickle.dumps(open_source(f"torchvision:Imagenette?root={tmp_path}").val))
    with pytest.raises(OSError, match="cannot identify|identif"):
        damaged.load(1)


def test_every_set_that_is_offered_can_be_asked_for_its_splits() -> None:
    expected = {
        "CIFAR10": ("train", True, None),
        "SVHN": ("split", "train", None),
        "OxfordIIITPet": ("split", "trainval", None),
        "FGVCAircraft": ("split", "trainval", None),
        "Places365": ("split", "train-standard", None),
        "INaturalist": ("version", "2021_train", "2021_valid"),
        "ImageNet": ("split", "train", None),
        "EMNIST": ("train", True, None),
        "LSUN": ("classes", "train", "val"),
        "EuroSAT": (None, None, None),
        "Caltech101": (None, None, None),
    }
    names = [name for name in checks.torchvision_names() if name not in checks.OTHER_TASKS]
    assert len(names) > 35 and set(expected) <= set(names)
    for name in names:
        factory: Any = getattr(torchvision.datasets, name)
        found = torchvision_sets._split_of(name, torchvision_sets._parameters(factory), Address("torchvision", name))
        assert found == expected.get(name, found)


REFUSED = {
    "torchvision:CIFAR10?root=ROOT": r"must lie below its root; got ROOT \(RuntimeError.*download=true",
    "torchvision:ImageNet?root=ROOT&download=true": "cannot be downloaded",
    "torchvision:ImageNet?root=ROOT": r"must lie below its root; .*Name the folder that holds it, \?root=FOLDER$",
    "torchvision:EMNIST?root=ROOT": "needs the option split; .*One of byclass, bymerge, balanced",
    "torchvision:CIFAR10?root=ROOT&val=test": "has no named splits",
    "torchvision:EuroSAT?root=ROOT&val=test": r"has a single split; .*Hold a share of it out: \?val=0.1",
    "torchvision:DTD?root=ROOT&size=3": "has no option 'size'; .*There are root, download, train, val, split, part",
    "torchvision:STL10?root=ROOT&train=bla": "a value that it knows; got Unknown value 'bla'.*'unlabeled'",
    "torchvision:CIFAR10?download=perhaps": "must be true or false; got 'perhaps'",
}


@pytest.mark.parametrize("data", REFUSED)
def test_what_is_missing_or_unknown_is_one_line(data: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=REFUSED[data].replace("ROOT", str(tmp_path))) as caught:
        open_source(data.replace("ROOT", str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_letters_count_from_one(tmp_path: Path) -> None:
    write_mnist(tmp_path, "EMNIST")
    for file in (tmp_path / "EMNIST/raw").iterdir():
        kind, name = ("train", "train") if file.name.startswith("train") else ("test", "t10k")
        target = file.with_name(file.name.replace(name, f"emnist-letters-{kind}", 1))
        content = gzip.decompress(file.read_bytes())
        if "labels" in file.name:
            content = content[:8] + bytes(label + 1 for label in content[8:])
        target.with_suffix("").write_bytes(content)
    source = open_source(f"torchvision:EMNIST?root={tmp_path}&split=letters")
    assert len(source.classes) == 26 and source.classes[0] == "a" and set(source.train.labels) == set(range(10))
