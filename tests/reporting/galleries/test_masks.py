"""Mask pictures: what is dimmed, and how often a position is kept."""

import json
from pathlib import Path

import pytest
import timm
import torch

from vitdistill.errors import UserError
from vitdistill.models.backbone import with_tokens
from vitdistill.models.build import build
from vitdistill.models.families import as_network
from vitdistill.reporting.galleries.masks import (
    Column,
    as_pictures,
    dim_dropped,
    heatmap_figure,
    keep_heatmap,
    mask_grid_figure,
    masks_of,
    normalised,
)
from vitdistill.types import TokenGrid
from vitdistill.verbs.masks import masks

GRID = TokenGrid(1, 2, 2)


def test_kept_patches_are_untouched_and_dropped_ones_fade() -> None:
    images = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    shown = dim_dropped(images, torch.tensor([[0, 3]]), GRID, strength=1.0)
    expected = torch.full((4, 4), 84)  # the green of slate blue
    expected[:2, :2] = expected[2:, 2:] = 255
    assert torch.equal(shown[0, 1].int(), expected.int())
    assert torch.equal(dim_dropped(images, torch.tensor([[0, 3]]), GRID, strength=0.0), images)


def test_the_heat_map_counts_how_often_a_position_is_kept() -> None:
    kept = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 1]])
    assert keep_heatmap(kept, GRID).tolist() == [[1.0, 0.5], [0.25, 0.25]]


def test_masks_follow_the_students_attention_on_any_grid() -> None:
    student = build("digits_vit_small")
    images = normalised(torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8), student)
    assert images.shape[-2:] == (12, 12)
    assert masks_of(student, images, 0.5).shape == (2, 18)
    kept = masks_of(student, images, 10, grid=TokenGrid(1, 8, 8))
    assert kept.shape == (2, 10) and int(kept.max()) < 64


def test_the_verb_draws_untrained_students_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pictures" / "masks.png"
    result = masks(["digits_vit_small", "digits-teacher"], out=str(out), keep=9, count=3, json=True)
    printed = json.loads(capsys.readouterr().out)
    for model in printed["models"]:  # json has no whole numbers as keys
        model["correlation"] = {int(step): value for step, value in model["correlation"].items()}
    assert printed == result
    assert out.stat().st_size > 1000 and Path(result["heatmap"]).stat().st_size > 1000
    assert [model["kept"] for model in result["models"]] == [9, 9]
    for model in result["models"]:
        assert sum(map(sum, model["share_kept"])) == pytest.approx(9, abs=1e-4)
        rates = torch.tensor(model["share_kept"])
        assert model["centre"] == pytest.approx(float(rates[1:5, 1:5].mean()), abs=1e-5)
        assert model["joint"] > 0 and len(model["correlation"]) == 7


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one run"):
        masks([])
    with pytest.raises(UserError, match="Images must be named"):
        masks(["vit_tiny_patch16_224"], out=str(tmp_path / "m.png"))
    with pytest.raises(UserError, match="count"):
        masks(["digits_vit_small"], count=0, out=str(tmp_path / "m.png"))


def test_sounds_are_drawn_as_spectrograms_and_enter_the_network_as_energies() -> None:
    energies = torch.randn(2, 1, 16, 28) * 3 - 5
    pictures = as_pictures(energies)
    assert pictures.shape == (2, 3, 16, 28) and pictures.dtype == torch.uint8
    low, high = energies[0, 0].argmin(), energies[0, 0].argmax()
    brightness = pictures[0].float().sum(dim=0).flatten()
    assert brightness[low] == brightness.min() and brightness[high] > brightness[low]
    args = {"img_size": (16, 28), "patch_size": 8, "stride": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    net = timm.create_model("ast_tiny", **args, num_classes=2, statistics=(-5.0, 3.0))
    student = with_tokens(as_network(net))
    torch.testing.assert_close(normalised(energies, student), (energies + 5) / 6)
    for images in (energies[..., :20], pictures):
        with pytest.raises(UserError, match="needs inputs of its own kind and size"):
            normalised(images, student)
    kept = torch.arange(9).expand(2, 9)
    figure = mask_grid_figure(energies, [Column("half", kept, student.grid)])
    first = figure.axes[0]
    assert (first.get_title(), first.get_ylabel(), figure.axes[2].get_xlabel()) == ("sound", "frequency", "time")
    assert all(axes.images[0].origin == "lower" for axes in figure.axes), "the lowest frequency is at the bottom"
    heat = heatmap_figure([Column("half", kept, student.grid)], sound=True)
    assert heat.axes[0].images[0].origin == "lower" and "share of sounds" in heat.axes[-1].get_ylabel()
