"""Relation maps and reconstructions: what they hold, that they are drawn, and what a page says where they cannot be."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vitdistill.methods.mae import MAE
from vitdistill.methods.tinymim import TinyMIM
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.record import record_of
from vitdistill.reporting import pictures
from vitdistill.reporting.galleries.masks import normalised, unmasked_because
from vitdistill.reporting.galleries.reconstructions import reconstruction_figure, reconstructions, to_pixels
from vitdistill.reporting.galleries.relations import head_average, matrix_figure, names_of, row_figure, token_relations
from vitdistill.reporting.page import write_report
from vitdistill.runs.read import Run, read_run
from vitdistill.training.train import export_weights
from vitdistill.types import QKV, Capture

ARGS: dict[str, Any] = {"embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 0}
DECODER: dict[str, Any] = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
Make = Callable[..., Path]


def write_run(path: Path, verb: str, student: Backbone, config: dict[str, Any]) -> Path:
    """A finished run without labels, as training leaves it."""
    path.mkdir(parents=True)
    record_of(student.net).write(path)
    export_weights(student.net.state_dict(), path / "student.safetensors")
    (path / "config.yaml").write_text(yaml.safe_dump({"data": "digits", **config}))
    teacher = {"name": "net"} if "teacher" in config else None
    info = {"verb": verb, "status": "finished", "teacher": teacher, "accuracy": {"loss": 0.125}}
    (path / "run.json").write_text(json.dumps(info))
    (path / "metrics.csv").write_text("epoch,train/loss,val/loss\n0,2,1\n1,1,0.125\n")
    return path


@pytest.fixture
def make_tinymim(tmp_path: Path) -> Make:
    """Writes a run whose student is untrained, under the bundled MAE teacher."""

    def make(name: str = "mim", **config: Any) -> Path:
        torch.manual_seed(0)
        student = build("digits_vit_small", args=ARGS)
        target = config.get("target", "relations")
        TinyMIM(student, build("digits-mae"), target=target)  # aligns its heads
        return write_run(tmp_path / "runs" / name, "tinymim", student, {"teacher": "digits-mae", **config})

    return make


@pytest.fixture
def make_mae(tmp_path: Path) -> Make:
    def make(name: str = "mae", **config: Any) -> Path:
        torch.manual_seed(0)
        student = build("digits_vit_small", args=ARGS)
        settings = {"mask_ratio": 0.5, "norm_pix": False, **DECODER, **config}
        method = MAE(student, **settings)
        path = write_run(tmp_path / "runs" / name, "mae", student, settings)
        for file, weights in method.artifacts(method.state_dict()).items():
            export_weights(weights, path / file)
        return path

    return make


# --- token relations --------------------


def test_maps_are_multiples_of_an_even_share(make_tinymim: Make) -> None:
    found = token_relations(read_run(make_tinymim()))
    assert [maps.name for maps in found.maps] == ["qk", "vv"] and found.heads == (6, 6) and found.blocks == (4, 2)
    for maps in found.maps:
        for whole in (maps.teacher, maps.student):
            assert whole.shape == (4, 37, 37)
            torch.testing.assert_close(whole.mean(-1), torch.ones(4, 37))


def test_maps_are_those_of_the_networks_that_the_run_had(make_tinymim: Make) -> None:
    run = read_run(make_tinymim(teacher_block=2))
    found = token_relations(run)
    student, teacher = build(str(run.path)), build("digits-mae")
    for backbone, block, maps in ((student, 1, "student"), (teacher, 1, "teacher")):
        images = normalised(found.images, backbone)  # each with its own statistics
        with torch.no_grad():
            output = backbone.eval()(images, capture=Capture.at(block, "qkv", head=False))
            q, k = output.qkv(block).q, output.qkv(block).k
            scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        expected = scores.softmax(-1).mean(1) * 37
        torch.testing.assert_close(getattr(found.maps[0], maps), expected, rtol=1e-4, atol=1e-5)
    assert found.blocks == (2, 2)


def test_an_even_relation_is_one_everywhere() -> None:
    zeros = torch.zeros(2, 3, 5, 4)
    assert torch.equal(head_average(QKV(zeros, zeros, zeros, 1), "qq"), torch.ones(2, 5, 5))


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"relations": "qq+KK + vv"}, ("qq", "kk", "vv")),
        ({"relations": ["kk"]}, ("kk",)),
        ({"relations": "qq", "target": "features"}, ("qk", "vv")),
        ({}, ("qk", "vv")),
    ],
)
def test_the_relations_that_the_run_trained_are_shown(config: dict[str, Any], names: tuple[str, ...]) -> None:
    assert names_of(Run(Path(), "run", config)) == names


def test_figures_have_panels_for_both_networks_and_a_scale_for_both(make_tinymim: Make) -> None:
    found = token_relations(read_run(make_tinymim()), count=2)
    for figure in (matrix_figure(found), row_figure(found), row_figure(found, found.middle)):
        panels = [axes for axes in figure.axes if axes.images]
        assert len(panels) == 2 * 5 and len(figure.axes) == len(panels) + 2
        ranges = [axes.images[0].get_clim() for axes in panels[2:6]]  # Q-K of teacher and student
        assert len(set(ranges)) == 1 and ranges[0][0] == 0
    framed = [axes for axes in row_figure(found, found.middle).axes if axes.images and axes.patches]
    assert len(framed) == 10 and found.middle == 21


def test_the_page_shows_relations_and_says_what_they_are(make_tinymim: Make, tmp_path: Path) -> None:
    html = write_report([make_tinymim()], tmp_path / "r.html").read_text(encoding="utf-8")
    assert (
        "<h2>Token relations</h2>" in html and "<h2>Masks</h2>" not in html and "<h2>Reconstructions</h2>" not in html
    )
    assert html.count("data:image/png;base64,") == 3
    assert "block 4, student&#39;s block 2, averaged over their 6 heads" in html


def test_networks_whose_heads_differ_are_shown_as_averages(make_tinymim: Make, tmp_path: Path) -> None:
    html = write_report([make_tinymim(target="features")], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "6 and 2 heads, so only averages over heads" in html
    assert "trained on the teacher&#39;s features, not on relations" in html


def test_a_teacher_that_is_gone_does_not_cost_the_page(make_tinymim: Make, tmp_path: Path) -> None:
    paths = [make_tinymim("good"), make_tinymim("lost", teacher="/nowhere/teacher"), make_tinymim("none", teacher=None)]
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.json").write_text(json.dumps({"verb": "tinymim", "status": "interrupted"}))
    html = write_report([*paths, tmp_path / "half"], tmp_path / "r.html").read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 3
    assert "lost: no relation maps, since" in html and "/nowhere/teacher" in html
    assert "none: no relation maps, since The run must say which teacher it had" in html
    assert "half: no relation maps, since" in html


def test_seeds_share_pictures_and_many_settings_are_cut(
    make_tinymim: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MOST_RUNS", 1)
    paths = [make_tinymim("a0", seed=0), make_tinymim("a1", seed=1), make_tinymim("b", relations="kk")]
    html = write_report(paths, tmp_path / "r.html").read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 3
    assert "a0 stands for 2 seeds" in html and "Only the first 1 settings are shown, of 2" in html


# --- reconstructions --------------------


@pytest.mark.parametrize("norm_pix", [False, True])
def test_what_the_encoder_saw_is_kept_in_its_reconstruction(make_mae: Make, norm_pix: bool) -> None:
    run = read_run(make_mae(norm_pix=norm_pix))
    found = reconstructions(run, count=3)
    assert (found.visible, found.patches) == (18, 36)
    seen = (found.masked == found.images).all(1, keepdim=True).expand_as(found.images)
    assert seen.float().mean() == 0.5
    assert (found.predicted[seen].int() - found.images[seen].int()).abs().max() <= 1
    assert not torch.equal(found.predicted, found.images)
    again = reconstructions(run, count=3)
    assert torch.equal(again.masked, found.masked) and torch.equal(again.predicted, found.predicted)
    assert len(reconstruction_figure(found).axes) == 9


def test_masks_do_not_depend_on_the_callers_seed(make_mae: Make) -> None:
    run = read_run(make_mae())
    masked = [reconstructions(run, count=2).masked for seed in (1, 2) if torch.manual_seed(seed)]
    assert torch.equal(*masked)


def test_pixels_come_back_from_normalised_images() -> None:
    student = build("digits_vit_small")
    images = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8)
    assert torch.equal(to_pixels(normalised(images, student), student), images)
    assert int(to_pixels(torch.full((1, 3, 12, 12), 99.0), student).min()) == 255


def test_the_page_shows_reconstructions_or_says_why_not(make_mae: Make, tmp_path: Path) -> None:
    good, lost = make_mae("good"), make_mae("lost", mask_ratio=0.75)
    (lost / "mae.safetensors").unlink()
    html = write_report([good, lost], tmp_path / "r.html").read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 1 and "sees 18 of 36 patches" in html
    assert "lost: no reconstructions, since" in html
    assert "<h2>Masks</h2>" not in html and "no masks" not in html


def test_a_folder_of_images_without_labels_will_do(make_mae: Make, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a.png", "b.png"):
        for part in ("train", "val"):
            (tmp_path / "images" / part).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 12), (200, 30, 90)).save(tmp_path / "images" / part / name)
    run = make_mae()
    (run / "config.yaml").write_text(
        yaml.safe_dump({**read_run(run).config, "data": str(tmp_path / "images")}), encoding="utf-8"
    )
    assert len(reconstructions(read_run(run)).images) == 2


# --- the rest of the page --------------------


def test_columns_that_say_nothing_are_left_out(
    make_mae: Make, make_tinymim: Make, make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitdistill.reporting.page._figures", lambda runs: [])  # the tables alone
    mae, mim, labelled = make_mae(), make_tinymim(), make_run("kd")

    def shown(*paths: Path) -> set[str]:
        html = write_report(list(paths), tmp_path / "r.html", masks=False).read_text(encoding="utf-8")
        return set(re.findall(r"<th[^>]*>([^<]*)</th>", html.partition("</thead>")[0]))

    assert shown(mae) == {"run", "status", "verb", "validation loss"}
    assert shown(mim) == {"run", "status", "verb", "teacher", "validation loss"}
    assert "validation loss" not in shown(labelled)
    assert {"validation loss", "top-1 %", "patches kept"} <= shown(labelled, mae)


def test_an_unlabelled_page_speaks_of_losses(make_mae: Make, make_run: Make, tmp_path: Path) -> None:
    path = make_mae()
    (path / "metrics.csv").write_text("epoch,train/loss,train/pixels,train/qk,val/loss\n0,2,1,1,1\n1,1,.5,.5,0.1\n")
    html = write_report([path], tmp_path / "r.html", masks=False).read_text(encoding="utf-8")
    for words in ("Validation loss, by epoch", "Training loss: Q-K relations, by epoch", "Training loss: pixels"):
        assert words in html
    assert "0.125" in html and "multiply-accumulate" not in html
    # Where runs have accuracies, their losses stay in the background.
    html = write_report([make_run("kd")], tmp_path / "r.html", masks=False).read_text(encoding="utf-8")
    assert "Validation loss, by epoch" not in html and "multiply-accumulate" in html


def test_a_loss_of_one_part_is_drawn_once(make_mae: Make, tmp_path: Path) -> None:
    path = make_mae()
    (path / "metrics.csv").write_text("epoch,train/loss,train/pixels,val/loss\n0,2,2,1\n1,1,1,0.1\n")
    html = write_report([path], tmp_path / "r.html", masks=False).read_text(encoding="utf-8")
    assert "Training loss, by epoch" in html and "Training loss: pixels" not in html


def test_a_fine_tuned_run_is_named_by_its_model(make_run: Make, tmp_path: Path) -> None:
    config = {"student": None, "teacher": None, "model": "runs/tinymim"}
    path = make_run("tuned", config=config, info={"verb": "finetune", "teacher": None})
    html = write_report([path], tmp_path / "r.html").read_text(encoding="utf-8")
    assert '<td class="text">runs/tinymim</td>' in html and "<h2>Masks</h2>" not in html


@pytest.mark.parametrize("verb", ["tinymim", "mae", "finetune"])
def test_only_maskedkd_has_masks(make_run: Make, tmp_path: Path, verb: str) -> None:
    path = make_run("run", info={"verb": verb})
    assert verb in (unmasked_because(read_run(path)) or "")
    html = write_report([path], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<h2>Masks</h2>" not in html
