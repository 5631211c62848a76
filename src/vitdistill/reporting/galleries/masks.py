"""Pictures of what a teacher saw: images with the dropped patches dimmed, and how often each position is kept."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone, SaliencyKind, with_tokens
from vitdistill.tokens.grids import transfer
from vitdistill.tokens.keep import keep_count
from vitdistill.tokens.select import bottom_k, top_k
from vitdistill.types import TokenGrid

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from vitdistill.runs.read import Run

DIM = 0.75
# Dropped patches fade to this slate blue: grey would look like the grey strokes of a scan, black like its ground.
FADED = (64, 84, 128)
BATCH = 64


class Column(NamedTuple):
    """One column of the picture: whose masks, on which grid."""

    title: str
    kept: Int[Tensor, "b k"]
    grid: TokenGrid


def keep_map(kept: Int[Tensor, "b k"], grid: TokenGrid) -> Float[Tensor, "bt h w"]:
    """1 where a patch is kept, 0 where it is dropped; the time steps of a clip one behind the other."""
    flat = torch.zeros(len(kept), grid.count).scatter(1, kept.cpu(), 1.0)
    return flat.reshape(-1, grid.h, grid.w)


def dim_dropped(
    images: UInt8[Tensor, "bt 3 height width"], kept: Int[Tensor, "b k"], grid: TokenGrid, strength: float = DIM
) -> UInt8[Tensor, "bt 3 height width"]:
    """The images with dropped patches faded to slate blue; kept patches are untouched.

    Args:
        images: any size; the grid is stretched over them. Of clips, one frame per time step, clip by clip.
        kept: patch coordinates in `grid`.
        grid: the grid of the mask.
        strength: 1 replaces dropped patches by the colour, 0 leaves them.
    """
    shown = torch.nn.functional.interpolate(keep_map(kept, grid)[:, None], images.shape[-2:], mode="nearest")
    faded = images.float() * (1 - strength) + torch.tensor(FADED).view(3, 1, 1) * strength
    return torch.where(shown > 0, images.float(), faded).round().to(torch.uint8)


def keep_heatmap(kept: Int[Tensor, "b k"], grid: TokenGrid) -> Float[Tensor, "h w"]:
    """How often each position is kept, as a share of the images (MaskedKD, Fig. 5)."""
    return keep_map(kept, grid).mean(dim=0)


@torch.inference_mode()
def masks_of(
    backbone: Backbone,
    images: Float[Tensor, "b ch height width"],
    keep: int | float | str,
    *,
    layer: int | str = "last",
    kind: SaliencyKind | None = None,
    grid: TokenGrid | None = None,
    order: Literal["top", "bottom"] = "top",
) -> Int[Tensor, "b k"]:
    """The patches that a student's attention keeps. Runs 64 images at a time.

    Args:
        backbone: the student.
        images: normalised with its statistics.
        keep: count or fraction of the patches of `grid`.
        layer: block whose attention ranks them: first, middle, last, or its number.
        kind: attention of the class token, or received from all patches; None is what the network says.
        grid: the grid to select in; by default the student's own.
        order: keep the highest ranked patches, or the lowest.
    """
    backbone.eval()
    layer = backbone.block_index(layer)
    kind = kind or backbone.saliency_by_default
    capture = replace(backbone.saliency_capture(layer, kind), head=False)
    grid = grid or backbone.grid
    scores = torch.cat(
        [backbone.saliency(backbone(part, capture=capture), layer, kind) for part in images.split(BATCH)]
    )
    select = top_k if order == "top" else bottom_k
    return select(transfer(scores, backbone.grid, grid), keep_count(keep, grid.count))


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
        panels[0, position].set_title(wrapped(title, 22), fontsize=7.5, parse_math=False)
    return figure


def heatmap_figure(columns: Sequence[Column]) -> "Figure":
    """How often each position is kept, one panel per column, on one scale from never to always."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(columns) + 0.6, 2.9), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        share = keep_heatmap(column.kept, column.grid)
        drawn = axes.imshow(share.numpy(), vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        axes.set_title(wrapped(f"{column.title}\n{len(column.kept)} images", 36), fontsize=8, parse_math=False)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.colorbar(drawn, ax=list(panels), label="share of images that keep it", shrink=0.8)
    return figure


def wrapped(title: str, width: int) -> str:
    """The title in lines of at most `width` characters, so that it stays over its own column."""
    return "\n".join("\n".join(textwrap.wrap(line, width)) for line in title.splitlines())


# --- images to look at -----------------------------------------------------------------------------------


def some_images(
    source: DataSource | None, paths: Sequence[Path], image_size: tuple[int, int], count: int, seed: int = 0
) -> UInt8[Tensor, "b 3 height width"]:
    """Up to `count` images, from files or drawn from a source's validation images, as a model would see them.

    Of videos, each shows its middle frame.

    Raises:
        UserError: when there is none, or a file cannot be read.
    """
    from vitdistill.data.images.augment import Augment
    from vitdistill.data.images.recipes import eval_transform
    from vitdistill.data.samples import ViewOptions
    from vitdistill.types import InputSpec

    plain = Augment(recipe="none")
    if source is None:
        of_files = eval_transform(plain, image_size)
        chosen = [of_files(_image(path)) for path in paths[:count]]
    else:
        spec = InputSpec((3, *image_size), (0.0,) * 3, (1.0,) * 3)  # single frames of videos; nothing is normalised
        transform = source.val.transform(spec, ViewOptions(augment=plain), train=False)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(source.val), generator=generator)[:count]
        made = (transform(source.val.load(int(index))[0]) for index in order)
        alone = (one[0] if isinstance(one, tuple) else one for one in made)  # without boxes
        chosen = [image for image in alone if isinstance(image, Tensor)]
    if not chosen:
        raise UserError("There must be at least one image to mask")
    return torch.stack(chosen)


def _image(path: Path) -> "Image":
    from vitdistill.data.images.decode import read_image
    from vitdistill.data.samples import UNREADABLE, reason_of

    try:
        return read_image(path)
    except UNREADABLE as error:
        reason = reason_of(error, str(path))
        raise UserError("Every image must be readable", f"{path} ({reason})", "Remove it") from error


def normalised(images: UInt8[Tensor, "b 3 height width"], backbone: Backbone) -> Float[Tensor, "b ch height2 width2"]:
    """The images at a backbone's size, with its statistics; grey where it takes one channel."""
    from torchvision.transforms.functional import rgb_to_grayscale

    floats = images.float() / 255
    if backbone.input.shape[0] == 1:
        floats = rgb_to_grayscale(floats)
    if tuple(images.shape[-2:]) != backbone.input.size:
        floats = torch.nn.functional.interpolate(floats, backbone.input.size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (backbone.input.mean, backbone.input.std))
    return (floats - mean) / std


def unmasked_because(run: "Run") -> str | None:
    """Why there are no masks of a run to show, in words; None when there are some.

    Only the student's own attention can be recomputed from a run directory: other networks are not in it, and random
    patches were drawn anew in every step.
    """
    verb = run.text("verb")
    if verb not in (None, "maskedkd"):  # a damaged run that does not say its verb may have masks still
        return f"it is a run of {verb}, which drops no patches by attention"
    scores_alone = run.setting("distill") in (None, "logits")
    if run.has_no_teacher or (scores_alone and run.setting("alpha") == 0):
        return "it has no teacher"
    criterion = run.text("masked_teacher.criterion") or run.setting("criterion")  # what `auto` ended with
    if criterion is None or run.setting("keep") is None:
        return "its configuration does not say which patches were kept"
    if criterion != "student":
        return f"its patches were ranked by {criterion}, which the run directory does not hold"
    kept, of = run.number("tokens.kept"), run.number("tokens.of")
    return "every patch was seen" if kept is not None and kept == of else None


def run_columns(run: "Run", images: UInt8[Tensor, "b 3 height width"]) -> list[Column]:
    """The masks that a run ends with, on the grid of the network that it masks; nothing when it masks nothing."""
    from vitdistill.tokens.keep import KeepSchedule

    if unmasked_because(run) is not None:
        return []
    student = with_tokens(run.student())
    if student.grid.t > 1:
        raise UserError("Masks are drawn over images", f"{student.name}, which sees clips")
    grid = student.grid if run.setting("mask") == "student" else teacher_grid(run) or student.grid
    count = KeepSchedule.parse(kept_by(run) or 1.0).count(1.0, grid.count)
    kept = masks_of(
        student,
        normalised(images, student),
        count,
        layer=run.setting("saliency_layer") or "last",
        kind=run.setting("saliency"),
        grid=grid,
        order=run.setting("order") or "top",
    )
    who = "student sees" if run.setting("mask") == "student" else "teacher sees"
    return [] if count == grid.count else [Column(f"{run.name}\n{who} {count} of {grid.count}", kept, grid)]


def kept_by(run: "Run") -> Any:
    """How many patches a run ends with; where a rule such as agree:0.9 decides, what the run says of it."""
    from vitdistill.methods.selection.amounts import Scheduled, amount_of

    keep = run.setting("keep")
    if keep is None or isinstance(amount_of(keep), Scheduled):
        return keep
    kept = run.number("tokens.kept")
    return None if kept is None else int(kept)


def teacher_grid(run: "Run") -> TokenGrid | None:
    """The teacher's patch grid as the run wrote it ("14x14"), or None."""
    sides = (run.text("teacher.grid") or "").split("x")
    return TokenGrid(1, int(sides[0]), int(sides[1])) if len(sides) == 2 else None
