"""Batches from files are those that evaluation makes."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import vitdistill
from generated_videos import write_video
from tiny import tiny
from vitdistill.data.loader import CorruptLog
from vitdistill.errors import UserError
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
    with pytest.raises(UserError, match="images or videos, not both"):
        vitdistill.read_batch([*files, Path(__file__)], network)


def test_what_cannot_be_read_is_named(photos: Path) -> None:
    (photos / "text.jpg").write_text("no picture")
    net = tiny("vit")
    with pytest.raises(UserError, match=r"All files of a batch must be readable; got .*text.jpg \("):
        vitdistill.read_batch([photos / "val/a/3.png", photos / "text.jpg"], net)
    with pytest.raises(UserError, match="must exist; got 1 of 1 missing, such as .*nothing.png"):
        vitdistill.read_batch([photos / "nothing.png"], net)
    with pytest.raises(UserError, match="At least one file"):
        vitdistill.read_batch([], net)
