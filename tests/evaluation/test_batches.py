"""Batches from files are those that evaluation makes."""

import errno
from pathlib import Path

import pytest
import torch
from PIL import Image

import vitdistill
from generated_videos import write_video
from tiny import tiny
from vitdistill.data.loader import CorruptLog
from vitdistill.errors import MachineError, UserError
from vitdistill.evaluation.loading import Reader, open_subject


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, name in enumerate(("train/a/1", "train/b/2", "val/a/3", "val/b/4")):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.linear_gradient("L").resize((40 + 9 * number, 60)).rotate(90 * number).convert("RGB").save(path)
    return tmp_path / "photos"


def test_a_batch_is_what_evaluation_sees(photos: Path, teacher_run: Path) -> None:
    subject = open_subject(
        str(teacher_run), data=str(photos), checkpoint="exported", image_size=None, crop_pct=None, model_args=None
    )
    files = [subject.source.val.path(index) for index in range(2)]
    reader = Reader(subject, batch_size=2, device="cpu", workers=0)
    ((expected, _),) = reader.batches(subject.source.val, CorruptLog(), "")
    assert torch.equal(vitdistill.read_batch(files, str(teacher_run)), expected)


def test_a_batch_for_a_network_object(photos: Path) -> None:
    net = tiny("vit")
    batch = vitdistill.read_batch(sorted(photos.rglob("*.png")), net)
    assert batch.shape == (4, 3, 32, 32) and batch.dtype == torch.float32 and batch.device.type == "cpu"
    assert torch.equal(vitdistill.read_batch(photos / "train/a/1.png", net)[0], batch[0])
    assert net(batch).shape == (4, 10)


def test_a_batch_of_videos(tmp_path: Path) -> None:
    pytest.importorskip("av")
    files = [tmp_path / f"{name}.mp4" for name in "ab"]
    for file in files:
        write_video(file, 20)
    shape = {"img_size": 16, "patch_size": 8, "frames": 4, "depth": 1, "num_heads": 2, "embed_dim": 32}
    network = vitdistill.build("video_vit_small_patch16_224", args={**shape, "num_classes": 3})
    assert vitdistill.read_batch(files, network, stride=2).shape == (2, 3, 4, 16, 16)
    with pytest.raises(UserError, match="needs videos; got 1 other files, such as .*test_batches.py"):
        vitdistill.read_batch([*files, Path(__file__)], network)


def test_what_cannot_be_read_is_named(photos: Path) -> None:
    (photos / "text.jpg").write_text("no picture")
    net = tiny("vit")
    with pytest.raises(UserError, match=r"All files of a batch must be readable; got .*text.jpg \("):
        vitdistill.read_batch([photos / "val/a/3.png", photos / "text.jpg"], net)
    with pytest.raises(UserError, match="must exist; got .*nothing.png', which do not"):
        vitdistill.read_batch([photos / "nothing.png"], net)
    with pytest.raises(UserError, match="At least one file"):
        vitdistill.read_batch([], net)


def test_what_is_no_fault_of_the_file_is_not_blamed_on_it(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("vitdistill.data.images.folder.read_image", exhausted)
    with pytest.raises(MachineError, match=r"for no fault of the file; got Too many open files. Allow more with"):
        vitdistill.read_batch([photos / "val/a/3.png"], tiny("vit"))


def test_networks_over_images_see_the_middle_frame_of_a_video_beside_pictures(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    write_video(tmp_path / "a.mp4", 5)
    assert vitdistill.read_batch([photos / "val/a/3.png", tmp_path / "a.mp4"], tiny("vit")).shape == (2, 3, 32, 32)
