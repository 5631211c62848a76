"""Pictures of how alike the frames of a clip are to teachers and students: one matrix per network, on one scale."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vitdistill.errors import error_words
from vitdistill.evaluation.similarity import (
    Compared,
    Comparison,
    Similarity,
    Steps,
    Wanted,
    compare,
    distinct,
    teachers_of,
)
from vitdistill.models.backbone import with_tokens
from vitdistill.models.build import build
from vitdistill.models.families.video_vit import VideoViT, check_video
from vitdistill.reporting.figures import INK, MUTED
from vitdistill.reporting.galleries.masks import wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

    from vitdistill.runs.read import Run

CLIPS = 16  # of a page, which is also made where there is no GPU
ACROSS = 4  # matrices in a row
PANEL, BAR = (2.15, 2.45), 0.75  # inches: width and height of a matrix with its title, width of the colour bar
NUMBERED = 8  # steps up to which every cell has room for its number
RANGES = (
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    1.2,
    1.5,
    2.0,
)  # of the colours; no smaller, so that they do not magnify noise
ORDER = {"image teacher": 0, "video teacher": 1, "model": 2}


# --- the figure ------------------------------------------------------------------------------------------


def similarity_figure(similarities: Sequence[Similarity], steps: Steps) -> "Figure":
    """One matrix per network; rows and columns are time steps, named by the frame with which they begin."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    count = len(similarities)
    columns = min(ACROSS, count)
    rows = math.ceil(count / columns)
    size = (columns * PANEL[0] + BAR, rows * PANEL[1])
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasSVG(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    low = lowest_colour(similarities)
    for axes, similarity in zip(panels, similarities, strict=False):
        drawn = _matrix(axes, similarity, steps.first_frames, low)
    for axes in panels[count:]:
        axes.set_visible(False)
    bar = figure.colorbar(drawn, ax=list(panels), shrink=0.8, aspect=24)
    bar.set_label("cosine similarity", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7.5, colors=MUTED, labelcolor=INK)
    bar.outline.set_visible(False)
    return figure


def lowest_colour(similarities: Sequence[Similarity]) -> float:
    """Where the colours of all matrices begin: at a round number that no value lies below."""
    lowest = min(float(similarity.matrix.min()) for similarity in similarities)
    return 1 - next((size for size in RANGES if 1 - lowest <= size), RANGES[-1])


def _matrix(axes: "Axes", similarity: Similarity, frames: Sequence[int], low: float) -> "QuadMesh":
    values = similarity.matrix.numpy()
    steps = len(values)
    few = steps <= NUMBERED
    # Cells as shapes, not as an image, so that browsers do not blur them.
    drawn = axes.pcolormesh(
        values, vmin=low, vmax=1.0, cmap="viridis", edgecolors="white" if few else "face", linewidth=0.4 if few else 0
    )
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    shown = range(0, steps, 1 if few else math.ceil(steps / NUMBERED))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([step + 0.5 for step in shown], [str(frames[step]) for step in shown])
    axes.tick_params(length=0, labelsize=7, labelcolor=INK, pad=2)
    axes.set_xlabel("frame", fontsize=7.5, color=MUTED, labelpad=2)
    axes.set_title(wrapped(title(similarity), 30), fontsize=8.5, color=INK, parse_math=False)
    if few:
        _numbers(axes, similarity, low)
    return drawn


def _numbers(axes: "Axes", similarity: Similarity, low: float) -> None:
    """Every value in its cell, without the zero before the point; as many digits as it takes to tell them apart."""
    digits = 3 if 1 - low <= 0.1 else 2
    for row, values in enumerate(similarity.matrix.tolist()):
        for column, value in enumerate(values):
            bright = (value - low) / (1 - low) > 0.6
            axes.text(
                column + 0.5,
                row + 0.5,
                f"{round(value, digits) + 0.0:.{digits}f}".replace("0.", ".", 1),
                ha="center",
                va="center",
                fontsize=5,
                color=INK if bright else "white",
            )


def title(similarity: Similarity) -> str:
    """The network's name, and what it is if it is no student."""
    return similarity.name if similarity.role == "model" else f"{similarity.name}\n({similarity.role})"


def summary(similarities: Sequence[Similarity], steps: Steps) -> str:
    """The figures that matter, for those who do not see the colours."""
    distances = 1, steps.half, steps.count - 1
    each = [f"{one.name} {', '.join(f'{one.apart(distance):.3f}' for distance in distances)}" for one in similarities]
    return f"Mean similarity of neighbours, of steps half a clip apart, of first and last: {'; '.join(each)}."


# --- from runs -------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """Students of the same clips, and their teachers.

    Attributes:
        run: the first student's, which says where the clips are.
        networks: by identity, each once.
    """

    run: "Run"
    networks: dict[str, Compared]


class Found(NamedTuple):
    """One comparison per set of clips, and words on what could not be compared."""

    comparisons: list[Comparison]
    notes: list[str]


def similarities_of(runs: Sequence["Run"], clips: int = CLIPS) -> Found:
    """Matrices of the students of runs over clips, and of their teachers; runs of the same clips are compared.

    Nothing is raised for networks or data that cannot be had: the others are compared, and a note says why.

    Args:
        runs: of `mvd` or `videomae`.
        clips: validation clips to average.
    """
    notes: list[str] = []
    groups: dict[tuple[object, ...], Group] = {}
    for run in runs:
        try:
            student = check_video(run.student(), "student")
        except Exception as error:  # one run must not cost the others their pictures
            notes.append(f"{run.name}: no frame similarity, since {error_words(error)}")
            continue
        group = groups.setdefault(_clips_of(run, student), Group(run, {}))
        wanted = Wanted(str(run.path))
        for teacher in distinct(teachers_of(run.config)):
            try:
                if teacher.identity not in group.networks:
                    body = with_tokens(build(teacher.spec, args=teacher.args, pretrained=True))
                    group.networks[teacher.identity] = Compared(teacher.name, body, teacher.role)
            except Exception as error:  # the student can be looked at alone
                notes.append(f"{run.name}: its {teacher.role} is not shown, since {error_words(error)}")
        group.networks.setdefault(wanted.identity, Compared(run.name, student))
    comparisons = []
    for group in groups.values():
        try:
            comparisons.append(_compare(group, clips))
        except Exception as error:
            notes.append(f"{group.run.name}: no frame similarity, since {error_words(error)}")
    return Found(comparisons, notes)


def _clips_of(run: "Run", student: VideoViT) -> tuple[object, ...]:
    """Equal for runs whose networks can be compared on the same clips."""
    taken = (run.config.get("data"), run.config.get("stride"), run.config.get("sampling"))
    return *map(str, taken), student.input.frames, student.grid.t


def _compare(group: Group, clips: int) -> Comparison:
    """Image teachers first, then video teachers, then students."""
    return compare(
        sorted(group.networks.values(), key=lambda network: ORDER[network.role]),
        group.run.source(labels=False),
        clips=clips,
        stride=group.run.config.get("stride"),
        sampling=group.run.config.get("sampling") or "dense",
        workers=0,
    )


def save(figure: "Figure", path: Path) -> None:
    """Write a figure to a file; text in SVG stays text, which can be searched and read aloud."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vitdistill"}):
        figure.savefig(path, dpi=150)
