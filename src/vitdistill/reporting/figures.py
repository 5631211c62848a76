"""Figures over runs, as self-contained SVG text on a white ground.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; beyond six, line styles differ as well.
"""

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vitdistill.reporting.style import INK, MUTED, quiet
from vitdistill.runs.compare import group_by_seed
from vitdistill.runs.read import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
MARKERS = ("o", "s", "D", "^")
PANEL = (4.7, 3.1)  # inches; small, so that the text stays legible on a phone
# The page's fonts stand before matplotlib's; the text keeps its place since it is wider in matplotlib's.
FONTS = "system-ui, 'Segoe UI', Roboto, Helvetica, Arial, 'DejaVu Sans'"

PARTS = {"data": "#E69F00", "student": "#0072B2", "teacher": "#D55E00", "other": "#b4bcc6"}


class Style(NamedTuple):
    """How a run is drawn; runs that differ by seed only look alike."""

    colour: str
    dashes: tuple[float, ...]
    marker: str


class Curve(NamedTuple):
    """One panel over epochs.

    Attributes:
        column: column of `metrics.csv`.
        title: what is drawn, with its unit.
        companion: column drawn dashed beside it, or "".
        label_free: whether it is for runs without labels only; runs with labels have better to show.
    """

    column: str
    title: str
    companion: str = ""
    label_free: bool = False


VALIDATION_LOSS = Curve("val/loss", "validation loss", label_free=True)
TRAINING_LOSS = Curve("train/loss", "training loss")
ENTROPY = Curve("teacher/entropy", "entropy of the teacher's outputs (nats)")
UNIFORM = Curve("teacher/kl_uniform", "distance of their mean from uniform (nats)")
KEEP = Curve("keep", "patches the teacher sees")
AGREEMENT = Curve("teacher/agreement", "masked teacher agrees with the whole (%)")
TERM = "train/"  # before the name of a part of the loss
TERMS = {
    "image": "image teacher",
    "video": "video teacher",
    **{name: f"{name[0].upper()}-{name[1].upper()} relations" for name in ("qk", "vv", "qq", "kk")},
    "pixels": "pixels",
    "cls": "class token",
    "output": "block output",
    "attention": "attention output",
    "ffn": "FFN output",
    "q": "queries",
    "k": "keys",
    "v": "values",
}


class LegendEntry(NamedTuple):
    """What a line of the curves means; `dashes` in SVG's notation, empty for a solid line."""

    name: str
    colour: str
    dashes: str


def legend(runs: Sequence[Run]) -> list[LegendEntry]:
    """One entry per style, in the order of the runs; empty for a single run, which needs none."""
    look = styles(runs)
    groups = group_by_seed(runs)
    if len(groups) < 2:
        return []
    entries = []
    for group in groups:
        style, count = look[group.members[0]], len(group.members)
        name = f"{group.name} ({count} seeds)" if count > 1 else group.name
        entries.append(LegendEntry(name, style.colour, " ".join(str(length) for length in style.dashes)))
    return entries


def styles(runs: Sequence[Run]) -> list[Style]:
    """One style per run."""
    found: list[Style | None] = [None] * len(runs)
    for number, group in enumerate(group_by_seed(runs)):
        turn = number // len(COLOURS)
        style = Style(COLOURS[number % len(COLOURS)], DASHES[turn % len(DASHES)], MARKERS[turn % len(MARKERS)])
        for member in group.members:
            found[member] = style
    return [style for style in found if style is not None]


# --- the figures -----------------------------------------------------------------------------------------


def scores_of(runs: Sequence[Run]) -> dict[str, str]:
    """The scores of the runs, and what they are called, without a unit."""
    known = {run.score: run.columns for run in runs if run.score is not None}
    return {score: columns.get(score, score).removesuffix(" %") for score, columns in known.items()}


def score_against_cost(runs: Sequence[Run], score: str, name: str) -> str | None:
    """A score against the teacher's MACs per image, one labelled point per run; SVG, or None without points.

    The cost axis starts at 0, where runs without a teacher stand. The score's axis is cut to the data but spans at
    least 2 points, so that noise does not fill it. Thin bars are one standard error of a proportion measured on
    that many validation samples. Runs that differ by seed only also get their mean, as a bigger ring.

    Args:
        runs: those with another score are left out.
        score: name of the metric.
        name: what it is called.
    """
    points = [
        (index, run.teacher_gmacs, run.result, _standard_error(run))
        for index, run in enumerate(runs)
        if run.score == score
    ]
    known = [(i, x, y, error) for i, x, y, error in points if x is not None and y is not None]
    if not known:
        return None
    small = max(x for _, x, _, _ in known) < 0.1
    known = [(i, 1e3 * x if small else x, y, error) for i, x, y, error in known]
    unit = "MMACs" if small else "GMACs"
    figure, axes = panel(f"teacher {unit} per image", f"{name} (%)", size=(PANEL[0], 3.5))
    look = styles(runs)
    for i, x, y, error in known:
        axes.errorbar(x, y, yerr=error, color=look[i].colour, elinewidth=1, alpha=0.45, zorder=2)
        axes.plot(x, y, look[i].marker, color=look[i].colour, markersize=6.5, zorder=3)
    labels = []
    for group in group_by_seed(runs):
        members = [(x, y) for i, x, y, _ in known if i in group.members]
        if not members:
            continue
        x, y = sum(x for x, _ in members) / len(members), sum(y for _, y in members) / len(members)
        several = len(members) > 1
        if several:
            colour = look[group.members[0]].colour
            axes.plot(x, y, "o", markersize=13, markerfacecolor="none", markeredgecolor=colour, zorder=2)
        labels.append((x, y, f"{group.name} (mean of {len(members)})" if several else group.name))
    _limit(axes, [x for _, x, _, _ in known], [(y, error) for _, _, y, error in known])
    _label_points(figure, axes, labels)
    return svg(figure)


def curves_of(runs: Sequence[Run]) -> list[Curve]:
    """The panels for these runs: the usual ones, and one per part of a loss without labels that has several."""
    terms: dict[str, None] = {}
    for run in runs:
        own = [name for name in run.metrics if name.startswith(TERM) and name != "train/loss" and _known(run, name)]
        if _label_free(run) and len(own) > 1:
            terms |= dict.fromkeys(own)
    named = [(column, column.removeprefix(TERM)) for column in terms]
    parts = [Curve(column, f"training loss: {TERMS.get(name, name)}", label_free=True) for column, name in named]
    scores = scores_of(runs)
    return [
        *(Curve(f"val/{score}", f"validation {name} (%)", f"ema/{score}") for score, name in scores.items()),
        VALIDATION_LOSS,
        TRAINING_LOSS,
        *parts,
        *(Curve(f"teacher/{score}", f"teacher {name} under the mask (%)") for score, name in scores.items()),
        AGREEMENT,
        ENTROPY,
        UNIFORM,
        KEEP,
    ]


def curve(runs: Sequence[Run], what: Curve) -> str | None:
    """One metric over epochs, a line per run; SVG, or None when no run has it."""
    from matplotlib.ticker import MaxNLocator

    drawn = [
        (run, style)
        for run, style in zip(runs, styles(runs), strict=True)
        if _known(run, what.column) and (_label_free(run) or not what.label_free)
    ]
    if not drawn:
        return None
    figure, axes = panel("epoch", what.title)
    for run, style in drawn:
        epochs = run.metrics.get("epoch", [])
        _line(axes, epochs, run.metrics[what.column], style)
        if _known(run, what.companion):
            _line(axes, epochs, run.metrics[what.companion], style._replace(dashes=(2, 1.5)), width=1)
    if what.column == "keep":
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return svg(figure)


def step_times(runs: Sequence[Run]) -> str | None:
    """Milliseconds of a training step as a stacked bar per run: data, student, teacher, the rest; SVG or None."""
    from matplotlib.patches import Patch

    rows = [(run.name, _parts(run)) for run in runs]
    rows = [(name, parts) for name, parts in rows if parts]
    if not rows:
        return None
    figure, axes = panel("ms per training step", "", size=(PANEL[0], 1.1 + 0.34 * len(rows)))
    axes.grid(axis="y", visible=False)
    for row, (_, parts) in enumerate(rows):
        left = 0.0
        for part, milliseconds in parts.items():
            axes.barh(row, milliseconds, left=left, height=0.62, color=PARTS[part], edgecolor="white", linewidth=0.8)
            left += milliseconds
        axes.annotate(
            f"{left:.3g}", (left, row), (4, 0), textcoords="offset points", va="center", color=MUTED, fontsize=8
        )
    axes.set_yticks(range(len(rows)), [short(name) for name, _ in rows], parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    used = [part for part in PARTS if any(part in parts for _, parts in rows)]
    handles = [Patch(color=PARTS[part]) for part in used]
    figure.legend(handles, used, loc="outside upper center", ncols=len(used), frameon=False, fontsize=8.5)
    return svg(figure)


# --- their parts -----------------------------------------------------------------------------------------


def _standard_error(run: Run) -> float | None:
    """Standard error in points of a percentage of the run's validation samples (binomial); None for other scores."""
    share, samples = run.result, run.number("data.val_images")
    if share is None or not run.per_sample or not samples or samples < 1 or not 0 <= share <= 100:
        return None
    return math.sqrt(share * (100 - share) / samples)


def _parts(run: Run) -> dict[str, float]:
    """Milliseconds per part of a step; "other" is what of the step no part accounts for."""
    parts = {part: run.number(f"speed.{part}_ms") for part in ("data", "student", "teacher")}
    known = {part: value for part, value in parts.items() if value}
    rest = (run.number("speed.step_ms") or 0.0) - sum(known.values())
    if rest > 0 and known and rest > 0.01 * sum(known.values()):
        known["other"] = rest
    return known


def _label_free(run: Run) -> bool:
    return run.score is None


def _known(run: Run, column: str) -> bool:
    return any(value is not None for value in run.metrics.get(column, []))


def _line(
    axes: "Axes", epochs: list[float | None], values: list[float | None], style: Style, width: float = 1.7
) -> None:
    points = [(e if e is not None else i, v) for i, (e, v) in enumerate(_padded(epochs, values)) if v is not None]
    x, y = [e for e, _ in points], [v for _, v in points]
    marker = style.marker if len(points) == 1 and width > 1 else None
    axes.plot(x, y, color=style.colour, linewidth=width, dashes=style.dashes or (None, None), marker=marker)


def _padded(epochs: list[float | None], values: list[float | None]) -> list[tuple[float | None, float | None]]:
    return list(zip([*epochs, *[None] * (len(values) - len(epochs))], values, strict=False))


def panel(xlabel: str, ylabel: str, size: tuple[float, float] = PANEL) -> tuple["Figure", "Axes"]:
    """A figure with one quiet pair of axes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    quiet(axes, xlabel, ylabel)
    return figure, axes


def _limit(axes: "Axes", x: list[float], y: list[tuple[float, float | None]]) -> None:
    """Cost from 0; accuracy around the data, over at least 2 points and never beyond 0 to 100."""
    right = max(x) or 1.0
    axes.set_xlim(-0.05 * right, 1.18 * right)
    low, high = min(v - (e or 0) for v, e in y), max(v + (e or 0) for v, e in y)
    room = max(0.12 * (high - low), (2 - (high - low)) / 2, 0.1)
    axes.set_ylim(max(0.0, low - room), min(100.5, high + room))


def _label_points(figure: "Figure", axes: "Axes", labels: list[tuple[float, float, str]]) -> None:
    """Labels beside their points, left of those in the right half, moved apart where they would overlap."""
    figure.draw_without_rendering()
    line = 11.5  # points from one label to the next
    placed: list[tuple[float, float, float]] = []
    for x, y, text in sorted(labels, key=lambda label: -label[1]):
        px, py = axes.transData.transform((x, y)) / figure.dpi * 72
        leftward = x > axes.get_xlim()[1] * 0.55
        width = 5.2 * len(short(text)) + 10
        left, right = (px - width, px) if leftward else (px, px + width)
        at = py
        for low, high, taken in sorted(placed, key=lambda box: -box[2]):
            if left < high and right > low and abs(at - taken) < line:
                at = taken - line
        placed.append((left, right, at))
        _annotate(axes, short(text), (x, y), (-9 if leftward else 9, at - py))


def _annotate(axes: "Axes", text: str, xy: tuple[float, float], offset: tuple[float, float]) -> "Annotation":
    return axes.annotate(
        text,
        xy,
        offset,
        textcoords="offset points",
        ha="right" if offset[0] < 0 else "left",
        va="center",
        fontsize=8.5,
        color=INK,
        parse_math=False,
        arrowprops={"arrowstyle": "-", "color": "#b4bcc6", "linewidth": 0.7} if abs(offset[1]) > 6 else None,
    )


def short(name: str, most: int = 34) -> str:
    """A long name with its middle left out."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"


def svg(figure: "Figure") -> str:
    """SVG text with real text in it, without addresses of schemas and the date of drawing."""
    import matplotlib

    buffer = io.StringIO()
    unstamped = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vitdistill"}):
        figure.savefig(buffer, format="svg", metadata=unstamped)
    # Within HTML an svg element needs neither prologue nor namespaces.
    element = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", element).replace("'DejaVu Sans'", FONTS)
