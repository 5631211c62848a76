"""Which data a run was started on: digests, and what is said when a resumed run meets other data."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from colours import COLOURS, NETWORK, colours, options, renamed
from vitdistill.data.bundled.digits import digits
from vitdistill.data.bundled.moving_digits import moving_digits
from vitdistill.data.folders import as_bytes
from vitdistill.data.images.folder import FolderImages, image_folder
from vitdistill.errors import UserError
from vitdistill.runs.data import changes, describe_data
from vitdistill.training.module import TrainingModule
from vitdistill.verbs.resume import resume
from vitdistill.verbs.supervised import supervised

# --- digests --------------------


def files(root: str, names: list[str], labels: list[int] | None = None) -> FolderImages:
    return FolderImages(Path(root), as_bytes(names), None if labels is None else np.array(labels))


def test_a_digest_goes_by_names_and_classes_and_not_by_place() -> None:
    one = files("/a", ["x/1.png", "y/2.png"], [0, 1])
    assert one.digest() == files("/elsewhere", ["x/1.png", "y/2.png"], [0, 1]).digest()
    others = (
        files("/a", ["y/2.png", "x/1.png"], [1, 0]),
        files("/a", ["x/1.png", "y/2.png"], [0, 0]),
        files("/a", ["x/1.png", "y/3.png"], [0, 1]),
        files("/a", ["x/1.png"], [0]),
        files("/a", ["x/1.png", "y/2.png"]),
    )
    assert len({one.digest(), *(each.digest() for each in others)}) == 6
    # A list may name files by their whole paths.
    assert files("/l", ["/d/1.mp4", "/d/e/2.mp4"]).digest() == files("/m", ["/f/g/1.mp4", "/f/g/e/2.mp4"]).digest()
    assert files("/l", ["/d/1.mp4"]).digest() != files("/l", ["/d/2.mp4"]).digest()


def test_bundled_data_has_digests() -> None:
    sources = (digits(), moving_digits(), moving_digits("motion"))
    found = [split.digest() for source in sources for split in (source.train, source.val)]
    assert None not in found and len(set(found)) == len(found)


# --- words --------------------


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({}, {}, []),
        ({"class_names": ["a", "b"]}, {"class_names": ["a", "c"]}, ["class 'b' is 'c' now"]),
        ({"class_names": ["a", "b"]}, {"class_names": ["a", "b", "c"]}, ["class 'c' new"]),
        ({"class_names": ["a", "b", "c", "d"]}, {"class_names": ["a", "b"]}, ["classes 'c', 'd' gone"]),
        (
            {"class_names": ["0", "1", "10", "2"]},
            {"class_names": ["0", "1", "2", "10"]},
            ["the same classes in another order ('0', '1', '2' and 1 more, after '0', '1', '10' and 1 more)"],
        ),
        ({"train_images": 48}, {"train_images": 64}, ["64 images to train on, after 48"]),
        ({"val_images": 9}, {"val_images": 8}, ["8 images to validate on, after 9"]),
        (
            {"digest": {"train": "x", "val": "y"}},
            {"digest": {"train": "z", "val": "y"}},
            ["as many images to train on, but others: names, classes, boxes or their order differ"],
        ),
        # What is not known is not compared: earlier versions, and data that cannot tell.
        ({"digest": None}, {}, []),
        ({"digest": {"train": None, "val": None}}, {}, []),
        ({"class_names": []}, {"class_names": ["a"]}, []),
        ({"classes": 2}, {"classes": 3}, ["3 classes, after 2"]),
    ],
)
def test_what_changed_is_named(before: dict[str, Any], now: dict[str, Any], words: list[str]) -> None:
    base = {"train_images": 48, "val_images": 9, "classes": 2, "class_names": ["a", "b"]}
    both = {**base, "digest": {"train": "x", "val": "y"}}
    start = dict(both) if before or now else {}
    assert changes({**start, **before}, {**both, **({"class_names": ["a", "b"]} | now)}) == words


# --- resuming --------------------


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Starts a run on colours below a folder, given by a relative path, and stops it in its second step."""

    def start(**more: Any) -> Path:
        colours(tmp_path / "data", {name: name for name in COLOURS})
        original = TrainingModule.training_step

        def step(self: TrainingModule, *batch: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *batch)

        given = options(Path("data"), Path("run"), epochs=1, **more)
        with monkeypatch.context() as patch:
            patch.setattr(TrainingModule, "training_step", step)
            patch.chdir(tmp_path)
            with pytest.raises(KeyboardInterrupt):
                supervised(student="vit_tiny_patch16_224", student_args=NETWORK, **given)
        return tmp_path / "run"

    return start


def test_a_run_resumes_only_on_its_data(stopped: Callable[..., Path], tmp_path: Path) -> None:
    run, data = stopped(), tmp_path / "data"
    recorded = json.loads((run / "run.json").read_text())["data"]
    assert recorded["class_names"] == ["blue", "green", "red"] and recorded["train_images"] == 24
    assert recorded["digest"] == describe_data(image_folder(data))["digest"]

    grown = renamed(data, tmp_path / "grown", {})
    Image.new("RGB", (16, 16)).save(grown / "train" / "red" / "new.png")
    (grown / "val" / "red" / "0.png").unlink()
    exchanged = renamed(data, tmp_path / "exchanged", {})
    (exchanged / "train" / "red" / "0.png").rename(exchanged / "train" / "blue" / "x.png")
    for other, words in (
        (renamed(data, tmp_path / "renamed", {"blue": "zblue"}), "class 'blue' is 'zblue' now"),
        (grown, "25 images to train on, after 24; 11 images to validate on, after 12"),
        (exchanged, "as many images to train on, but others"),
    ):
        with pytest.raises(UserError, match=words):
            resume(str(run), data=str(other))
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"  # nothing was begun

    moved = tmp_path / "moved"
    shutil.move(data, moved)
    with pytest.raises(UserError, match="--data must be an existing folder"):
        resume(str(run))
    assert resume(str(run), data=str(moved))["status"] == "finished"
    assert yaml.safe_load((run / "config.yaml").read_text())["data"] == str(moved)


def test_a_run_that_was_started_from_another_folder_goes_on_anywhere(stopped: Callable[..., Path]) -> None:
    run = stopped()
    assert yaml.safe_load((run / "config.yaml").read_text())["data"] == str(run.parent / "data")
    assert resume(str(run))["status"] == "finished"


def test_runs_of_earlier_versions_are_compared_by_what_they_recorded(
    stopped: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped()
    info = json.loads((run / "run.json").read_text())
    info["data"] = {name: info["data"][name] for name in ("name", "train_images", "val_images", "classes")}
    (run / "run.json").write_text(json.dumps(info))
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "data": "data"}))
    with pytest.raises(UserError, match="class 'red' is 'rouge' now"):
        resume(str(run), data=str(renamed(tmp_path / "data", tmp_path / "other", {"red": "rouge"})))
    monkeypatch.chdir(tmp_path)
    assert resume("run")["status"] == "finished"
