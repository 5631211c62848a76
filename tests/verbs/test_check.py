"""`vitdistill check`: what cannot be read and why, sizes, classes, repeats."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdistill.cli import main
from vitdistill.errors import UserError
from vitdistill.verbs.check import check


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five images of cats and one of a dog to train on, one of each to validate on, none with a fault."""
    root = tmp_path / "photos"
    names = [f"train/cat/{number}.png" for number in range(5)] + ["train/dog/0.png", "val/cat/0.png", "val/dog/0.png"]
    for seed, name in enumerate(names):
        picture(root / name, seed)
    return root


def kinds(result: dict, kind: str) -> dict[str, str]:
    """Per path below the folder: the detail of a finding."""
    return {
        "/".join(Path(finding["path"]).parts[-3:]): finding["detail"]
        for finding in result["findings"]
        if finding["kind"] == kind
    }


def test_a_sound_folder(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(photos)]) == 0
    text = capsys.readouterr().out
    assert "nothing wrong was found" in text and "of width, height: least / median / most" in text
    assert "train: 5 images of 'cat', the most, and 1 of 'dog', the least: 5 to 1" in text


def test_everything_that_is_wrong_is_found_with_any_number_of_workers(photos: Path) -> None:
    (photos / "train/cat/text.jpg").write_text("not a picture")
    whole = picture(photos / "val/dog/cut.png", 20).read_bytes()
    (photos / "val/dog/cut.png").write_bytes(whole[: len(whole) // 2])
    shutil.copy(photos / "train/cat/1.png", photos / "train/dog/copy.png")
    with Image.open(photos / "train/cat/2.png") as image:
        image.save(photos / "val/cat/again.tif")  # other bytes, the same pixels
    picture(photos / "train/dog/tiny.png", 30, size=(7, 9))
    result = check(str(photos), workers=0)
    assert result == check(str(photos), workers=2)
    unreadable = kinds(result, "unreadable")
    assert set(unreadable) == {"train/cat/text.jpg", "val/dog/cut.png"}
    assert "cannot identify image file" in unreadable["train/cat/text.jpg"]
    assert kinds(result, "two labels").keys() == {"train/cat/1.png", "train/dog/copy.png"}
    assert kinds(result, "both splits").keys() == {"train/cat/2.png", "val/cat/again.tif"}
    assert "train/cat/2.png" in kinds(result, "both splits")["val/cat/again.tif"]
    assert kinds(result, "small") == {"train/dog/tiny.png": "7 pixels, 32 in the median"}
    assert result["ok"] is False and result["complete"] is True and result["repeats"] == 2
    train = result["splits"]["train"]
    assert (train["samples"], train["unreadable"], train["width"], train["height"]) == (9, 1, [7, 40, 40], [9, 32, 32])
    assert result["classes"] == {"cat": {"train": 6, "val": 2}, "dog": {"train": 3, "val": 2}}
    assert result["imbalance"]["train"] == {"most": ["cat", 6], "least": ["dog", 3], "ratio": 2.0, "empty": []}


def test_the_command_line_says_so_with_its_status(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "train/cat/text.jpg").write_text("not a picture")
    out = tmp_path / "report.csv"
    assert main(["check", str(photos), "--json", "--out", str(out), "--workers", "0"]) == 1
    assert json.loads(capsys.readouterr().out)["counts"] == {"unreadable": 1}
    with open(out, newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["kind"], row["split"], row["label"]) == ("unreadable", "train", "cat")
    assert row["path"].endswith("text.jpg") and "cannot identify" in row["detail"]
    assert main(["check", str(photos), "--out", "report.txt"]) == 2
    assert "out must end in .csv" in capsys.readouterr().err


def test_unlabelled_and_bundled_data(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"loose/{number}.png", number)
    with pytest.raises(UserError, match="must hold a folder 'train'.*To check it without labels, give --labels false"):
        check(str(tmp_path / "loose"), workers=0)
    for name in ("train/a", "train/b", "val/a", "val/c"):
        picture(tmp_path / f"other/{name}/0.png", 0)
    with pytest.raises(UserError, match="To check it without labels, give --labels false"):
        check(str(tmp_path / "other"), workers=0)  # it looks like class folders, which is what it is
    result = check(str(tmp_path / "loose"), labels=False, workers=0)
    assert result["ok"] and result["classes"] == {} and result["splits"]["train"]["checked"] == 2
    digits = check("digits")
    assert digits["ok"] and digits["splits"]["val"]["height"] == [12, 12, 12] and digits["counts"] == {}


def test_what_is_not_a_files_fault_is_not_blamed_on_it(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from vitdistill.data.images.folder import FolderImages

    def exhausted(self: FolderImages, index: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(FolderImages, "inspect", exhausted)
    with pytest.raises(UserError, match="could not be opened, for no fault of the file; got Too many open files"):
        check(str(photos), workers=0)


def test_ctrl_c_keeps_what_was_found(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitdistill.data.inspect import Survey

    (photos / "train/cat/0.png").write_text("not a picture")
    original = Survey.add

    def add(self: Survey, one: object) -> None:
        if len(self.seen) == 3:
            raise KeyboardInterrupt
        original(self, one)  # type: ignore[arg-type]

    monkeypatch.setattr(Survey, "add", add)
    out = tmp_path / "report.csv"
    assert main(["check", str(photos), "--workers", "0", "--out", str(out)]) == 130
    text = capsys.readouterr().out
    assert "stopped after 3 of 8 images" in text and "cannot identify" in text
    assert len(out.read_text().splitlines()) == 2


def test_videos_are_decoded_to_their_end(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from generated_videos import write_video

    for name, count in (("train/a/1", 30), ("train/b/1", 25), ("val/a/1", 40), ("val/b/1", 5)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / f"{name}.mp4", count)
    shutil.copy(tmp_path / "train/a/1.mp4", tmp_path / "val/b/copy.mp4")
    (tmp_path / "train/a/none.mp4").write_bytes(b"no video")
    result = check(str(tmp_path), workers=0)
    assert result["splits"]["train"]["frames"] == [25, 27.5, 30] and result["splits"]["val"]["fps"] == [25, 25, 25]
    assert result["splits"]["train"]["width"] == [96, 96, 96]
    assert set(kinds(result, "unreadable")) == {"train/a/none.mp4"}
    assert set(kinds(result, "two labels")) == {"train/a/1.mp4", "val/b/copy.mp4"}
    assert kinds(result, "short") == {"val/b/1.mp4": "5 frames, 30 in the median"}
