"""Pictures of token relations: how a teacher's and a student's tokens relate to each other in the blocks compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.losses.relations import relation
from vitdistill.reporting.galleries.masks import normalised, some_images
from vitdistill.types import QKV, Capture, TokenGrid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vitdistill.runs.read import Run

IMAGES = 4
SHOWN_BY_DEFAULT = ("qk", "vv")
LABELS = {"qk": "Q-K", "vv": "V-V", "qq": "Q-Q", "kk": "K-K"}
# Sizes in inches: a picture's side, the room between teacher and student, between relations, above and below.
CELL, NEAR, APART, ABOVE, BELOW = 1.45, 0.07, 0.34, 0.43, 0.45
INK, OUTLINE = "#1f2933", "#D55E00"


class Maps(NamedTuple):
    """One relation per image, averaged over heads, in multiples of an even spread over all m tokens."""

    name: str
    teacher: Float[Tensor, "b m m"]
    student: Float[Tensor, "b m m"]


@dataclass(frozen=True)
class TokenRelations:
    """What teacher and student of a run make of some images.

    Attributes:
        images: what both saw.
        maps: one entry per relation.
        grid: the patches, which both share.
        prefix: tokens that stand before the patches.
        blocks: (teacher's, student's) block, counted from 1.
        heads: attention heads of these blocks.
    """

    images: UInt8[Tensor, "b 3 height width"]
    maps: list[Maps]
    grid: TokenGrid
    prefix: int
    blocks: tuple[int, int]
    heads: tuple[int, int]

    @property
    def middle(self) -> int:
        """The patch in the middle of the grid."""
        return self.grid.h // 2 * self.grid.w + self.grid.w // 2


@torch.inference_mode()
def token_relations(run: "Run", count: int = IMAGES) -> TokenRelations:
    """Relations of a run's finished student and of its teacher, at the blocks that the run compared.

    A run that did not train relations has them too; they are Q-K and V-V then.

    Args:
        run: a run of the verb tinymim.
        count: validation images to look at.

    Raises:
        UserError: when student, teacher or data are not where the run had them.
    """
    from vitdistill.methods.tinymim import TinyMIM

    if not run.config.get("teacher"):
        raise UserError("The run must say which teacher it had")
    method = run.method(heads=False)
    assert isinstance(method, TinyMIM)
    student, teacher = method.student, method.teacher
    own_block, other_block = method.blocks
    images = some_images(run.source(labels=False), [], student.input.size, count)
    seen = normalised(images, student)
    theirs = teacher(seen, capture=Capture.at(other_block, "qkv", head=False)).qkv(other_block)
    own = student(seen, capture=Capture.at(own_block, "qkv", head=False)).qkv(own_block)
    return TokenRelations(
        images=images,
        maps=[Maps(name, head_average(theirs, name), head_average(own, name)) for name in names_of(run)],
        grid=student.grid,
        prefix=student.specials,
        blocks=(other_block + 1, own_block + 1),
        heads=(theirs.v.shape[1], own.v.shape[1]),
    )


def names_of(run: "Run") -> tuple[str, ...]:
    """The relations that a run trained; Q-K and V-V for a run with another target."""
    from vitdistill.methods.options import relation_list

    trained = run.config.get("relations") if run.config.get("target", "relations") == "relations" else None
    if isinstance(trained, str):
        trained = relation_list(trained)
    return tuple(trained) if trained else SHOWN_BY_DEFAULT


def head_average(qkv: QKV, name: str) -> Float[Tensor, "b m m"]:
    """The relation of the two roles in `name`, averaged over heads; 1 is a token's even share of attention."""
    pair = relation(getattr(qkv, name[0]).float(), getattr(qkv, name[1]).float())
    return pair.mean(dim=1) * pair.shape[-1]


# --- figures ---------------------------------------------------------------------------------------------


class Panels(NamedTuple):
    """Two columns of a figure, teacher's and student's, with the value at which their common colours end."""

    title: str
    teacher: Float[Tensor, "b rows columns"]
    student: Float[Tensor, "b rows columns"]
    top: float


def matrix_figure(found: TokenRelations) -> "Figure":
    """Whole relations: one row per image; the image, then teacher and student for each relation."""
    diagonal = torch.eye(found.maps[0].teacher.shape[-1], dtype=torch.bool)
    groups = [
        Panels(_title(name), theirs, own, _top(theirs[:, ~diagonal], own[:, ~diagonal]))
        for name, theirs, own in found.maps
    ]
    return _pairs_figure(found.images, groups)


def row_figure(found: TokenRelations, patch: int | None = None) -> "Figure":
    """One token's relation to the patches, laid out as the patches lie in the image.

    Args:
        found: of a run.
        patch: the token; None is the class token.
    """
    token = 0 if patch is None else found.prefix + patch
    groups = []
    for name, theirs, own in found.maps:
        rows = [whole[:, token, found.prefix :] for whole in (theirs, own)]
        others = [row[:, torch.arange(row.shape[1]) != (-1 if patch is None else patch)] for row in rows]
        boards = [row.reshape(-1, found.grid.h, found.grid.w) for row in rows]
        groups.append(Panels(_title(name), boards[0], boards[1], _top(*others)))
    return _pairs_figure(found.images, groups, found.grid, patch)


def _title(name: str) -> str:
    return f"{LABELS.get(name, name)} relation"


def _top(*values: Tensor) -> float:
    """Where colours end: nearly the highest value, so that a few tokens do not leave the rest dark.

    A token's relation to itself is no part of `values`, since it would often be all that is seen.
    """
    flat = torch.cat([value.flatten() for value in values])
    # Quantiles of more than some million numbers are refused.
    return max(1.0, float(flat[:: 1 + len(flat) // 1_000_000].quantile(0.99)))


def _pairs_figure(
    images: UInt8[Tensor, "b 3 height width"],
    groups: Sequence[Panels],
    grid: TokenGrid | None = None,
    patch: int | None = None,
) -> "Figure":
    """Images in the first column, then two columns and a colour bar per group; a patch may be outlined."""
    from matplotlib.figure import Figure

    rows, pair = len(images), 2 * CELL + NEAR
    width = NEAR + CELL + len(groups) * (APART + pair) + NEAR
    height = ABOVE + rows * CELL + (rows - 1) * NEAR + BELOW
    figure = Figure(figsize=(width, height), facecolor="white")

    def cell(left: float, row: int) -> "Axes":
        bottom = height - ABOVE - (row + 1) * CELL - row * NEAR
        axes = figure.add_axes((left / width, bottom / height, CELL / width, CELL / height))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        return axes

    for row, image in enumerate(images):
        axes = cell(NEAR, row)
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        _outline(axes, grid, patch, image.shape[-2:])
        if row == 0:
            axes.set_title("image", fontsize=9, color=INK, pad=4)
    for number, group in enumerate(groups):
        left = NEAR + CELL + APART + number * (pair + APART)
        for column, (who, values) in enumerate((("teacher", group.teacher), ("student", group.student))):
            for row in range(rows):
                axes = cell(left + column * (CELL + NEAR), row)
                drawn = axes.imshow(values[row].numpy(), vmin=0, vmax=group.top, cmap="viridis")
                _outline(axes, grid, patch, values.shape[-2:])
                if row == 0:
                    axes.set_title(who, fontsize=9, color=INK, pad=4)
        figure.text(
            (left + pair / 2) / width, 1 - 0.05 / height, group.title, ha="center", va="top", fontsize=10, weight="bold"
        )
        bar = figure.add_axes(((left + 0.15 * pair) / width, (BELOW - 0.19) / height, 0.7 * pair / width, 0.1 / height))
        figure.colorbar(drawn, cax=bar, orientation="horizontal", extend="max")
        bar.tick_params(labelsize=7.5, length=2, pad=1.5)
        bar.locator_params(nbins=5)
        bar.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    return figure


def _outline(axes: "Axes", grid: TokenGrid | None, patch: int | None, shape: Sequence[int]) -> None:
    """A frame around a patch of the grid, in a picture of any size."""
    from matplotlib.patches import Rectangle

    if grid is None or patch is None:
        return
    height, width = shape[0] / grid.h, shape[1] / grid.w
    corner = (patch % grid.w * width - 0.5, patch // grid.w * height - 0.5)
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=OUTLINE, linewidth=1.6))
