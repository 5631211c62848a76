"""Training and evaluation on image files as people have them: 16 bits, grey networks, unreadable files."""

import builtins
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tiny import SMALL
from vitdistill.cli import main
from vitdistill.data.images.augment import Augment
from vitdistill.errors import UserError
from vitdistill.training.settings import Loader, Optim
from vitdistill.verbs.evaluate import evaluate
from vitdistill.verbs.mae import mae
from vitdistill.verbs.maskedkd import maskedkd
from vitdistill.verbs.supervised import supervised

TINY = {name: value for name, value in SMALL.items() if name != "num_classes"}  # the data says how many
TINY |= {"img_size": 16, "patch_size": 8, "depth": 1}
GREY = {**TINY, "in_chans": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Dark and bright 16-bit pictures: 20 to train on and 10 to validate on, of each."""
    pixels = np.random.RandomState(0)
    for split, count in (("train", 20), ("val", 10)):
        for number, name in enumerate(("dark", "bright")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                values = pixels.randint(120 * number, 120 * number + 100, (20, 24)) * 257
                Image.fromarray(values.astype(np.uint16)).save(tmp_path / "data" / split / name / f"{index}.png")
    return tmp_path / "data"


def options(folder: Path, out: str, **more: Any) -> dict[str, Any]:
    settings = {
        "student": "vit_tiny_patch16_224",
        "student_args": TINY,
        "data": str(folder),
        "out": str(folder.parent / out),
        "epochs": 3,
        "batch_size": 10,
        "optim": Optim(lr=3e-3, lr_batch=0, warmup_epochs=0),
        "loader": Loader(workers=0),
    }
    return settings | more


@pytest.mark.usefixtures("report")
def test_16_bit_pictures_teach_an_rgb_network_and_that_a_grey_one(folder: Path) -> None:
    rgb = supervised(**options(folder, "rgb"))
    taught = options(folder, "grey", student_args=GREY, augment=Augment(recipe="finetune", mixup=0.1))
    grey = maskedkd(**taught, teacher=str(folder.parent / "rgb"), keep=0.5)
    assert rgb["accuracy"]["top1"] > 90 and grey["accuracy"]["best_top1"] > 90
    own = evaluate(str(folder.parent / "grey"))
    assert own["images"] == 20 and own["unreadable"] == 0
    record = json.loads((folder.parent / "grey" / "student.json").read_text())
    assert record["args"]["in_chans"] == 1 and len(record["mean"]) == len(record["std"]) == 1
    assert (folder.parent / "grey" / "report.html").is_file()


@pytest.mark.usefixtures("report")
def test_grey_networks_predict_grey_pixels(folder: Path) -> None:
    shared = options(folder, "mae", student_args=GREY, epochs=1)
    info = mae(**shared, decoder_width=12, decoder_depth=1, decoder_heads=2)
    assert info["status"] == "finished" and (folder.parent / "mae" / "report.html").is_file()


def test_a_few_unreadable_files_are_borne_and_recorded_with_their_reasons(folder: Path) -> None:
    (folder / "train/dark/0.png").write_text("no picture")
    (folder / "val/dark/1.png").write_bytes(b"")
    corrupt = supervised(**options(folder, "run", epochs=1))["data"]["corrupt"]
    assert corrupt["count"] == 2 and set(corrupt["files"]) == set(corrupt["reasons"])
    assert {Path(path).name: reason.partition(":")[0] for path, reason in corrupt["reasons"].items()} == {
        "0.png": "cannot identify image file",
        "1.png": "the file is empty",
    }
    with pytest.raises(UserError, match=r"At most 0%.*got 1 of 60: .*\(.+\).*--loader.bad_share"):
        supervised(**options(folder, "strict", epochs=1, loader=Loader(workers=0, bad_share=0.0)))
    assert evaluate(str(folder.parent / "run"))["unreadable"] == 1
    with pytest.raises(UserError, match="At most 0%"):
        evaluate(str(folder.parent / "run"), bad_share=0.0)
    for index in range(6):
        (folder / f"val/bright/{index}.png").write_bytes(b"")
    with pytest.raises(UserError, match="At most 1% of the images may be unreadable; got 5 of 20"):
        evaluate(str(folder.parent / "run"), batch_size=5)
    assert evaluate(str(folder.parent / "run"), bad_share=0.5)["unreadable"] == 7
    for file in folder.glob("val/*/*"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"At least one image to validate on must be readable; got none \(the file is"):
        supervised(**options(folder, "nothing", epochs=1, loader=Loader(workers=0, bad_share=1.0)))


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_open_files_are_one_line_and_no_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    opened = builtins.open

    def failing(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file).endswith("bright/3.png"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), file)
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", failing)
    words = ["supervised", "--student", "vit_tiny_patch16_224", "--data", str(folder), "--epochs", "1"]
    words += [f"--student_args.{name}={value}" for name, value in TINY.items()]
    status = main([*words, "--out", str(folder.parent / "x"), "--batch_size", "10", "--loader.workers", str(workers)])
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert status == 2 and len(printed) == 1
    assert "bright/3.png" in printed[0] and "Too many open files" in printed[0] and "ulimit -n" in printed[0]
    assert json.loads((folder.parent / "x" / "run.json").read_text())["data"]["corrupt"]["count"] == 0
