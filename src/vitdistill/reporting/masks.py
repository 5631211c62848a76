"""Pictures of what a teacher saw: images with the dropped patches dimmed, and how often each position is kept."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vitdistill.data.source import DataSource, open_source
from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone, SaliencyKind
from vitdistill.tokens.grids import transfer
from vitdistill.tokens.keep import keep_count
from vitdistill.tokens.select import top_k
from vitdistill.types import TokenGrid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIM = 0.75


class Column(NamedTuple):
    """One column of the picture: whose masks, on which grid."""

    title: str
    kept: Int[Tensor, "b k"]
    grid: TokenGrid


def keep_map(kept: Int[Tensor, "b k"], grid: TokenGrid) -> Float[Tensor, "b h w"]:
    """1 where a patch is kept, 0 where it is dropped."""
    flat = torch.zeros(len(kept), grid.count).scatter(1, kept.cpu(), 1.0)
    return flat.reshape(-1, grid.h, grid.w)


def dim_dropped(
    images: UInt8[Tensor, "b 3 height width"], kept: Int[Tensor, "b k"], grid: TokenGrid, strength: float = DIM
) -> UInt8[Tensor, "b 3 height width"]:
    """The images with dropped patches faded to grey; kept patches are untouched.

    Args:
        images: any size; the grid is stretched over them.
        kept: patch coordinates in `grid`.
        grid: the grid of the mask.
        strength: 1 replaces dropped patches by grey, 0 leaves them.
    """
    shown = torch.nn.functional.interpolate(keep_map(kept, grid)[:, None], images.shape[-2:], mode="nearest")
    faded = images.float() * (1 - strength) + 128 * strength
    return torch.where(shown > 0, images.float(), faded).round().to(torch.uint8)


def keep_heatmap(kept: Int[Tensor, "b k"], grid: TokenGrid) -> Float[Tensor, "h w"]:
    """How often each position is kept, as a share of the images (MaskedKD, Fig. 5)."""
    return keep_map(kept, grid).mean(dim=0)


@torch.inference_mode()
def masks_of(
    backbone: Backbone,
    images: Float[Tensor, "b 3 height width"],
    keep: int | float | str,
    *,
    layer: int = -1,
    kind: SaliencyKind = "cls",
    grid: TokenGrid | None = None,
) -> Int[Tensor, "b k"]:
    """The patches that a student's attention keeps.

    Args:
        backbone: the student.
        images: normalised with its statistics.
        keep: count or fraction of the patches of `grid`.
        layer: block whose attention ranks them.
        kind: attention of the class token, or received from all patches.
        grid: the grid to select in; by default the student's own.
    """
    backbone.eval()
    output = backbone(images, capture=replace(backbone.saliency_capture(layer, kind), logits=False))
    grid = grid or backbone.grid
    scores = transfer(backbone.saliency(output, layer, kind), backbone.grid, grid)
    return top_k(scores, keep_count(keep, grid.count))


def mask_grid_figure(images: UInt8[Tensor, "b 3 height width"], columns: Sequence[Column]) -> "Figure":
    """One row per image: the image, then what each column keeps of it."""
    from matplotlib.figure import Figure

    rows, width = len(images), 1 + len(columns)
    figure = Figure(figsize=(1.35 * width + 0.3, 1.35 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, width, squeeze=False)
    pictures = [("image", images), *((c.title, dim_dropped(images, c.kept, c.grid)) for c in columns)]
    for position, (title, batch) in enumerate(pictures):
        for row in range(rows):
            axes = panels[row, position]
            axes.imshow(batch[row].permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_axis_off()
        panels[0, position].set_title(title, fontsize=8)
    return figure


def heatmap_figure(columns: Sequence[Column]) -> "Figure":
    """How often each position is kept, one panel per column, on one scale from never to always."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(columns) + 0.6, 2.9), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        share = keep_heatmap(column.kept, column.grid)
        drawn = axes.imshow(share.numpy(), vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        axes.set_title(f"{column.title}\n{len(column.kept)} images", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.colorbar(drawn, ax=list(panels), label="share of images that keep it", shrink=0.8)
    return figure


# --- images to look at --------------------


def some_images(
    source: DataSource | None, paths: Sequence[Path], image_size: tuple[int, int], count: int, seed: int = 0
) -> UInt8[Tensor, "b 3 height width"]:
    """Up to `count` images, from files or drawn from a source's validation images, as a model would see them.

    Raises:
        UserError: when there is none.
    """
    from vitdistill.data.recipes import Augment, eval_transform

    transform = eval_transform(Augment(recipe="none"), image_size)
    if source is None:
        from torchvision.datasets.folder import pil_loader

        chosen = [transform(pil_loader(str(path))) for path in paths[:count]]
    else:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(source.val), generator=generator)[:count]
        chosen = [transform(source.val.load(int(index))[0]) for index in order]
    if not chosen:
        raise UserError("There must be at least one image to mask")
    return torch.stack(chosen)


def normalised(images: UInt8[Tensor, "b 3 height width"], backbone: Backbone) -> Float[Tensor, "b 3 height2 width2"]:
    """The images at a backbone's size, with its statistics."""
    floats = images.float() / 255
    if tuple(images.shape[-2:]) != backbone.image_size:
        floats = torch.nn.functional.interpolate(floats, backbone.image_size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (backbone.mean, backbone.std))
    return (floats - mean) / std


def run_columns(path: Path, config: dict[str, Any], images: Tensor) -> list[Column]:
    """The masks of a run's student at the run's own settings; nothing for a run that masks nothing."""
    from vitdistill.models.build import build
    from vitdistill.tokens.keep import KeepSchedule
    from vitdistill.verbs.maskedkd import layer_number

    if config.get("keep") is None or not config.get("alpha", 1) or "student" not in str(config.get("criterion")):
        return []
    student = build(str(path))
    schedule = KeepSchedule.parse(config["keep"])
    count = schedule.count(1.0, student.grid.count)
    if count == student.grid.count:
        return []
    layer = layer_number(config.get("saliency_layer", "last"), student.depth)
    kept = masks_of(student, normalised(images, student), count, layer=layer, kind=config.get("saliency", "cls"))
    return [Column(f"{path.name}\n{count} of {student.grid.count}", kept, student.grid)]


def data_of(config: dict[str, Any]) -> DataSource:
    """The data of a run.

    Raises:
        UserError: when the run does not say, or the data is not there.
    """
    if not config.get("data"):
        raise UserError("The run must say which data it used", remedy="Give --images")
    return open_source(str(config["data"]))
