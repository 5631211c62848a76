"""A picture of how masks, and the teacher under them, changed over a training (MaskedKD, Figs. 3 and 5)."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitdistill.reporting.figures import COLOURS, DASHES, MARKERS, PANEL
from vitdistill.reporting.galleries.masks import kept_by, wrapped
from vitdistill.reporting.style import MUTED, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vitdistill.runs.read import Run

FILE = "trajectory.json"  # in the run directory, by the verb `trajectory`
IMAGES = 256  # that a report looks at where the verb has not
HEAT_MAPS = 6

PANELS = {
    "teacher": "teacher's top-1 under the mask (%)",
    "joint": "neighbours kept or dropped together, 1 = chance",
    "centre": "share kept in the centre, dashed: at the edge",
    "overlap": "overlap with the last student's masks (IoU)",
}


def trajectory_of(run: "Run") -> dict[str, Any]:
    """What the verb `trajectory` found in a run; without it, the structure of the masks over some images.

    Raises:
        UserError: when the run left no snapshots, or its data cannot be read.
    """
    from vitdistill.evaluation.trajectory import Trajectory, attention_of, look_at, students_of
    from vitdistill.reporting.galleries.masks import teacher_grid

    file = run.path / FILE
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    students = students_of(run)
    grid = teacher_grid(run) or next(iter(students.values())).grid
    trajectory = Trajectory(
        students,
        None,
        kept_at_last(run, grid.count),
        criteria=("student",),
        grid=grid,
        attention=attention_of(run),
        order=run.setting("order") or "top",
    )
    labelled = run.score is not None
    look_at(trajectory, run.source(labels=False), run.config, labelled=labelled, images=IMAGES, workers=0)
    return {**trajectory.summary(), "rows": trajectory.rows()}


def kept_at_last(run: "Run", patches: int) -> int:
    """How many patches a run's teacher saw at its end; half of them where it saw all, or there was none."""
    from vitdistill.tokens.keep import KeepSchedule, keep_count

    count = KeepSchedule.parse(kept_by(run) or 0.5).count(1.0, patches)
    return keep_count(0.5, patches) if count == patches else count


def trajectory_figure(found: Mapping[str, Any]) -> "Figure":
    """A panel for each measure that was taken, over epochs; what needs no student is a level line.

    Epochs stand at their square roots, since much changes early.

    Args:
        found: `Trajectory.summary` with its rows.
    """
    from matplotlib.figure import Figure

    rows = found["rows"]
    shown = [name for name in PANELS if any(row[name] is not None for row in rows)]
    height = (len(shown) + 1) // 2
    figure = Figure(figsize=(2 * PANEL[0], PANEL[1] * height + 0.3), layout="constrained", facecolor="white")
    drawn: Sequence[Axes] = list(figure.subplots(height, 2, squeeze=False).flat)
    criteria = list(dict.fromkeys(row["criterion"] for row in rows))
    epochs = sorted({row["epoch"] for row in rows if row["epoch"] is not None})
    for axes, name in zip(drawn, shown, strict=False):
        quiet(axes, "epoch", PANELS[name])
        axes.set_xticks([epoch**0.5 for epoch in epochs], [str(epoch) for epoch in epochs])
        for turn, criterion in enumerate(criteria):
            own = [row for row in rows if row["criterion"] == criterion]
            _draw(axes, own, name, turn, criterion)
            if name == "centre" and turn == 0:
                _draw(axes, own, "edge", turn, None)
        if name == "teacher" and found["whole_teacher"] is not None:
            axes.axhline(found["whole_teacher"], color=MUTED, linewidth=1, linestyle=":", label="all patches")
        chance = {"joint": 1.0, "centre": found["kept"] / rows[0]["patches"], "overlap": found["chance_overlap"]}
        if name in chance:
            axes.axhline(chance[name], color=MUTED, linewidth=1, linestyle=":")
    for axes in drawn[len(shown) :]:
        axes.set_axis_off()
    handles, labels = drawn[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False, fontsize=8.5)
    return figure


def _draw(axes: "Axes", rows: Sequence[Mapping[str, Any]], name: str, turn: int, label: str | None) -> None:
    points = [(row["epoch"] ** 0.5, row[name]) for row in rows if row["epoch"] is not None and row[name] is not None]
    colour, dashes = COLOURS[turn % len(COLOURS)], DASHES[turn % len(DASHES)] or (None, None)
    if points:
        marker = MARKERS[turn % len(MARKERS)] if label is not None else "None"
        style = dashes if label is not None else (2, 1.5)
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker, color=colour, linestyle="-", dashes=style, markersize=5, label=label)
        return
    for value in (row[name] for row in rows if row[name] is not None):
        axes.axhline(value, color=colour, linewidth=1.3, dashes=dashes, label=label)


def rates_figure(found: Mapping[str, Any]) -> "Figure | None":
    """How often each patch is kept at some of the snapshots, on one scale from never to always; None for clips."""
    from matplotlib.figure import Figure

    t, h, w = found["grid"]
    own = [row for row in found["rows"] if row["epoch"] is not None]
    own = [row for row in own if row["criterion"] == own[0]["criterion"]]
    if t > 1 or not own:
        return None
    chosen = sorted({round(step * (len(own) - 1) / (HEAT_MAPS - 1)) for step in range(HEAT_MAPS)})
    figure = Figure(figsize=(1.7 * len(chosen) + 0.8, 2.3), layout="constrained")
    panels = figure.subplots(1, len(chosen), squeeze=False)[0]
    for axes, row in zip(panels, (own[place] for place in chosen), strict=True):
        rates: Tensor = torch.tensor(row["rates"]).reshape(h, w)
        drawn = axes.imshow(rates.numpy(), vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        axes.set_title(wrapped(f"epoch {row['epoch']}", 22), fontsize=8, parse_math=False)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.colorbar(drawn, ax=list(panels), label="share kept", shrink=0.8)
    return figure


def summary(found: Mapping[str, Any]) -> str:
    """The first and the last snapshot in words; empty where patches were ranked by no student."""
    own = [row for row in found["rows"] if row["epoch"] is not None]
    if not own:
        return ""
    own = [row for row in own if row["criterion"] == own[0]["criterion"]]
    first, last = own[0], own[-1]
    words = (
        f"At epoch {first['epoch']} the student's masks keep or drop neighbours together {first['joint']:.2f} times as "
        f"often as random masks of as many patches, and {last['joint']:.2f} times at epoch {last['epoch']}. "
    )
    if first["edge"] is not None:
        words += (
            f"They keep {100 * first['centre']:.0f}% of the central patches and {100 * first['edge']:.0f}% of those at "
            f"the edge; at the end {100 * last['centre']:.0f}% and {100 * last['edge']:.0f}%. "
        )
    if first["teacher"] is not None:
        words += f"The teacher is right under them for {first['teacher']:.1f}% at first and {last['teacher']:.1f}% then"
        words += f", and for {found['whole_teacher']:.1f}% on all patches." if found["whole_teacher"] else "."
    return words.rstrip()
