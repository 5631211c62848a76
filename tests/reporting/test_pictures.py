"""Pictures of masks: which pixels change, how often positions are kept, and the verb that draws them."""

from pathlib import Path

import pytest
import torch

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.models.families import as_network
from vitdistill.reporting.galleries.masks import (
    Column,
    dim_dropped,
    heatmap_figure,
    mask_grid_figure,
    masks_of,
    normalised,
)
from vitdistill.reporting.pictures import _image_size
from vitdistill.runs.read import Run
from vitdistill.tokens.select import top_k
from vitdistill.training.summary import describe
from vitdistill.types import TokenGrid
from vitdistill.verbs.masks import masks

GRID = TokenGrid(1, 2, 2)


def pictures(b: int = 2, size: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (b, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_kept_patches_are_untouched_and_dropped_ones_fade() -> None:
    images, kept = pictures(1), torch.tensor([[0, 3]])
    shown = dim_dropped(images, kept, GRID)
    assert torch.equal(shown[..., :2, :2], images[..., :2, :2]) and torch.equal(shown[..., 2:, 2:], images[..., 2:, 2:])
    for corner in (shown[..., :2, 2:], shown[..., 2:, :2]):
        spread = corner.float().amax((-1, -2)) - corner.float().amin((-1, -2))
        assert (spread <= 64).all()  # a quarter of the contrast is left


def test_strength_is_the_share_of_the_fade() -> None:
    images, none = pictures(1), torch.empty(1, 0, dtype=torch.long)
    assert torch.equal(dim_dropped(images, none, GRID, strength=0.0), images)
    faded = dim_dropped(images, none, GRID, strength=1.0)
    assert (faded == faded[..., :1, :1]).all()  # one colour
    half = dim_dropped(images, none, GRID, strength=0.5).float()
    assert ((half - (images.float() + faded.float()) / 2).abs() <= 0.5).all()


def test_the_grid_is_stretched_over_any_size() -> None:
    images = torch.full((1, 3, 7, 5), 255, dtype=torch.uint8)
    shown = dim_dropped(images, torch.tensor([[1]]), GRID)
    assert (shown[..., 0, -1] == 255).all() and (shown[..., 0, 0] < 255).all() and (shown[..., -1, -1] < 255).all()


def test_masks_are_the_top_of_the_students_saliency(images: torch.Tensor) -> None:
    student = build(tiny("deit")).eval()
    kept = masks_of(student, images, 0.25)
    scores = student.saliency(student(images, capture=student.saliency_capture()))
    assert torch.equal(kept, top_k(scores, 4))


def test_masks_on_another_grid(images: torch.Tensor) -> None:
    kept = masks_of(build(tiny("swin")), images, 10, grid=TokenGrid(1, 6, 6))
    assert kept.shape == (3, 10) and int(kept.max()) < 36
    assert (kept.diff(dim=1) > 0).all()


def test_images_are_resized_and_normalised_for_the_student() -> None:
    student = build(tiny("deit"))
    white = normalised(torch.full((1, 3, 64, 64), 255, dtype=torch.uint8), student)
    expected = (1 - torch.tensor(student.input.mean)) / torch.tensor(student.input.std)
    assert white.shape == (1, 3, 32, 32)
    torch.testing.assert_close(white[0, :, 5, 5], expected)


def test_figures_have_a_panel_per_image_and_column() -> None:
    columns = [Column(f"student {i}", torch.tensor([[0, 1], [2, 3]]), GRID) for i in range(3)]
    assert len(mask_grid_figure(pictures(), columns).axes) == 2 * 4
    assert len(heatmap_figure(columns).axes) == 3 + 1  # and the colour bar


def test_a_reports_pictures_have_the_size_of_the_largest_student() -> None:
    """As `describe` writes it into run.json; without a word 224 x 224."""
    student = as_network(tiny("vit"))
    run = Run(Path("run"), "run", info={"student": describe(student)})
    assert _image_size([run]) == student.input.size == (32, 32)
    assert _image_size([Run(Path("old"), "old")]) == (224, 224)


def test_the_verb_repeats_itself(tmp_path: Path) -> None:
    runs = [
        masks(["digits_vit_small"], images="digits", out=str(tmp_path / "m.png"), count=1, heatmap=False, seed=seed)
        for seed in (3, 3, 4)
    ]
    shares = [run["models"][0]["share_kept"] for run in runs]
    assert shares[0] == shares[1] != shares[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": []}, "at least one"),
        ({"count": 0}, "count"),
        ({"out": "m.xyz"}, r"out must end in \.png"),
        ({"keep": 0}, "keep"),
        ({"keep": 37}, "37"),
        ({"layer": "lst"}, "last"),
        ({"layer": 9}, "blocks 0 to"),
        ({"images": "nowhere"}, "nowhere"),
        ({"models": ["resnet10t"], "images": "digits"}, "resnet10t hands out logits only"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(options: dict[str, object], message: str, tmp_path: Path) -> None:
    arguments = {"models": ["digits_vit_small"], "out": str(tmp_path / "m.png"), "heatmap": False, **options}
    with pytest.raises(UserError, match=message):
        masks(**arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "m.png").exists()
