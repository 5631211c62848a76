"""Similarity of frames end to end: tiny teachers and a student, the verb, its picture, and the report page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vitdistill.cli import main
from vitdistill.data.images.augment import Augment
from vitdistill.errors import UserError
from vitdistill.methods.options import FeatureDecoder
from vitdistill.reporting.galleries.clip_reconstructions import clip_reconstructions
from vitdistill.reporting.galleries.similarity import lowest_colour, similarities_of
from vitdistill.runs.read import read_run
from vitdistill.training.settings import Optim
from vitdistill.verbs.mae import mae
from vitdistill.verbs.mvd import mvd
from vitdistill.verbs.report import report
from vitdistill.verbs.similarity import similarity
from vitdistill.verbs.videomae import videomae

NET: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
COMMON: dict[str, Any] = {
    "batch_size": 20,
    "epochs": 1,
    "augment": Augment(recipe="none"),
    "optim": Optim(lr=2e-3, lr_batch=0, warmup_epochs=0, min_lr=0.0),
    "trainer": {"limit_train_batches": 2, "limit_val_batches": 1},
}
VIDEO: dict[str, Any] = {"student": "video_vit_small_patch16_224", "student_args": NET, "data": "moving_digits"}
DECODER: dict[str, Any] = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
CLIPS: dict[str, Any] = {"clips": 6, "device": "cpu"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video teacher, an image teacher, and a student of both."""
    folder = tmp_path_factory.mktemp("similarity")
    videomae(out=str(folder / "video"), mask_ratio=0.5, **VIDEO, **DECODER, **COMMON)
    image: dict[str, Any] = {"student": "vit_tiny_patch16_224", "student_args": NET, "image_size": 16, "data": "digits"}
    mae(out=str(folder / "image"), **image, **DECODER, **COMMON)
    teachers: dict[str, Any] = {"image_teacher": str(folder / "image"), "video_teacher": str(folder / "video")}
    decoder = FeatureDecoder(width=16, depth=1, heads=2)
    mvd(out=str(folder / "mvd"), mask_ratio=0.5, decoder=decoder, **teachers, **VIDEO, **COMMON)
    return folder


def test_a_student_is_compared_with_its_teachers(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "new" / "s.svg"
    result = similarity([str(runs / "mvd"), str(runs / "video")], out=str(picture), json=True, **CLIPS)
    assert json.loads(capsys.readouterr().out) == result
    names = [(one["name"], one["role"], one["block"]) for one in result["models"]]
    assert names == [("image", "image teacher", 1), ("video", "video teacher", 1), ("mvd", "model", 1)]
    assert (result["data"], result["clips"], result["frames"], result["half"]) == ("moving_digits", 6, 16, 4)
    assert result["step_frames"] == list(range(0, 16, 2))
    for one in result["models"]:
        matrix = torch.tensor(one["matrix"])
        assert matrix.shape == (8, 8)
        torch.testing.assert_close(matrix, matrix.T)
        torch.testing.assert_close(matrix.diagonal(), torch.ones(8))
        assert one["neighbours"] == pytest.approx(float(matrix.diagonal(1).mean()), abs=1e-5)
        assert one["half_apart"] == pytest.approx(float(matrix.diagonal(4).mean()), abs=1e-5)
        assert one["first_and_last"] == pytest.approx(float(matrix[0, 7]), abs=1e-5)
    drawn = picture.read_text()
    assert drawn.startswith("<?xml") and "(video teacher)" in drawn and "cosine similarity" in drawn


def test_the_command_prints_a_table_and_draws(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(tmp_path / "s.png")
    words = [str(runs / "mvd"), "--teachers", "false", "--centre", "--layer", "first", "--clips", "5", "--out", picture]
    assert main(["similarity", *words]) == 0
    printed = capsys.readouterr().out
    assert "mvd" in printed and "teacher" not in printed and "neighbours" in printed and "4 steps" in printed
    assert f"wrote {picture} (centred cosine similarity of 8 time steps, over 5 clips" in " ".join(printed.split())
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_layers_and_centring_change_what_is_compared(runs: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**CLIPS, "out": str(tmp_path / "s.svg"), "teachers": False}
    found = [
        similarity([str(runs / "mvd")], **options, **more)["models"][0]
        for more in ({}, {"layer": 1}, {"layer": "first"}, {"centre": True})
    ]
    assert found[0] == found[1] and found[2]["block"] == 0
    assert len({one["neighbours"] for one in found}) == 3
    assert found[3]["first_and_last"] < found[0]["first_and_last"]


def test_a_network_over_images_takes_clips_of_named_data(runs: Path, tmp_path: Path) -> None:
    models = [str(runs / "image"), "digits-mae"]
    result = similarity(models, data="moving_digits:motion", out=str(tmp_path / "s.pdf"), **CLIPS)
    assert [one["name"] for one in result["models"]] == ["image", "digits-mae"]
    assert result["data"] == "moving_digits:motion"
    # The first run that was trained on videos says which, wherever it stands.
    assert similarity([models[0], str(runs / "video")], out=str(tmp_path / "s.pdf"), **CLIPS)["frames"] == 16


@pytest.mark.parametrize(
    ("models", "options", "words"),
    [
        ([], {}, "at least one run or model"),
        (["image"], {}, "in videos, and no run was trained on any; got digits, which holds images. Give --data"),
        (["mvd"], {"data": "digits"}, "compared in videos; got digits"),
        (["mvd"], {"clips": 0}, "at least one clip"),
        (["mvd"], {"layer": 9}, "has blocks 0 to 1; got 9"),
        (["mvd"], {"layer": "lst"}, "Did you mean 'last'"),
        (["mvd"], {"out": "s.xyz"}, r"out must end in \.png"),
        (["nowhere"], {"data": "moving_digits"}, "nowhere"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_one_line(
    runs: Path, tmp_path: Path, models: list[str], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        similarity([str(runs / name) for name in models], **{"out": str(tmp_path / "s.svg"), **CLIPS, **options})
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_no_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Videos must be named where no run says .* Give --data"):
        similarity(["digits-mae"], out=str(tmp_path / "s.svg"))


def lost(runs: Path, tmp_path: Path, **changes: Any) -> Path:
    """A copy of the student's run with another configuration."""
    copy = tmp_path / "lost"
    copy.mkdir()
    for file in (runs / "mvd").iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))
    return copy


def test_a_teacher_that_is_gone_is_said_and_can_be_left_out(runs: Path, tmp_path: Path) -> None:
    run, out = str(lost(runs, tmp_path, image_teacher="/gone/teacher")), str(tmp_path / "s.svg")
    with pytest.raises(UserError, match=r"image teacher of a run cannot be had.*/gone/teacher.*--teachers false"):
        similarity([run], out=out, **CLIPS)
    assert len(similarity([run], teachers=False, out=out, **CLIPS)["models"]) == 1


# --- the report page --------------------


def page(*paths: Path, out: Path) -> str:
    report([str(path) for path in paths], out=str(out))
    return out.read_text(encoding="utf-8")


def test_the_page_compares_teachers_and_student_and_shows_clips(runs: Path, tmp_path: Path) -> None:
    html = page(runs / "mvd", runs / "video", runs / "image", out=tmp_path / "r.html")
    section = html.partition("<h2>Frame similarity</h2>")[2].partition("<h2>")[0]
    for words in ("(image teacher)", "(video teacher)", "over 16 validation clips", "neighbours", "mean feature over"):
        assert words in section
    assert section.count("<svg") == 2 and "<li>" not in section
    assert len(re.findall(r"image \d\.\d+, \d\.\d+, \d\.\d+; video .*; mvd ", section)) == 2  # and centred
    clips = html.partition("<h2>Reconstructions</h2>")[2].partition("<h2>")[0]
    assert clips.count("data:image/png") == 3 and "<li>" not in clips  # two clips, and the image teacher's images
    assert "first frame of 8 time steps" in clips and "<h2>Masks</h2>" not in html
    assert f"{runs / 'image'} + {runs / 'video'}" in html  # both teachers in the table


def test_what_cannot_be_compared_does_not_cost_the_page(runs: Path, tmp_path: Path) -> None:
    html = page(lost(runs, tmp_path, video_teacher="/gone/teacher"), out=tmp_path / "r.html")
    assert "lost: its video teacher is not shown, since" in html and "(image teacher)" in html
    (tmp_path / "lost" / "student.safetensors").unlink()
    found = similarities_of([read_run(tmp_path / "lost"), read_run(runs / "video")], clips=2)
    assert [[one.name for one in each.plain] for each in found.comparisons] == [["video"]]
    assert len(found.notes) == 1
    assert "lost: no frame similarity, since A run given as a model must be finished" in found.notes[0]


def test_a_page_without_its_data_says_so(runs: Path, tmp_path: Path) -> None:
    html = page(lost(runs, tmp_path, data="/gone/data"), out=tmp_path / "r.html")
    assert "lost: no frame similarity, since" in html and "/gone/data" in html
    assert "<h2>Settings" in html or "<h2>Configuration</h2>" in html


def test_what_the_encoder_saw_of_a_clip_is_kept_in_its_reconstruction(runs: Path) -> None:
    found = clip_reconstructions(read_run(runs / "video"), count=3)
    assert len(found) == 3 and {(one.visible, one.patches) for one in found} == {(16, 32)}
    for one in found:
        assert one.images.shape == one.predicted.shape == (8, 3, 16, 16)
        seen = (one.masked == one.images).all(1, keepdim=True).expand_as(one.images)
        assert float(seen.float().mean()) == 0.5
        assert int((one.predicted[seen].int() - one.images[seen].int()).abs().max()) <= 1
        assert not torch.equal(one.predicted, one.images)
    again = clip_reconstructions(read_run(runs / "video"), count=3)
    assert all(torch.equal(a.masked, b.masked) for a, b in zip(found, again, strict=True))


def test_a_run_without_its_checkpoint_has_no_reconstructions(runs: Path, tmp_path: Path) -> None:
    copy = lost(runs, tmp_path)
    (copy / "run.json").write_text(json.dumps({"verb": "videomae", "status": "finished"}))
    with pytest.raises(UserError, match="There must be a checkpoint"):
        clip_reconstructions(read_run(copy))


@pytest.mark.parametrize(("lowest", "low"), [(0.999, 0.98), (0.93, 0.9), (0.85, 0.8), (-0.05, -0.2), (-1.0, -1.0)])
def test_colours_begin_at_a_round_number_below_all_values(lowest: float, low: float) -> None:
    from vitdistill.evaluation.similarity import Similarity

    matrix = torch.tensor([[1.0, lowest], [lowest, 1.0]])
    ones = Similarity("other", "model", 0, torch.ones(2, 2))
    assert lowest_colour([ones, Similarity("net", "model", 0, matrix)]) == pytest.approx(low)
