"""Pictures of which classes are taken for which: a matrix of few classes, the most frequent mistakes of many."""

from typing import TYPE_CHECKING

import numpy as np

from vitdistill.errors import UserError
from vitdistill.reporting.figures import INK, MUTED
from vitdistill.tasks.confusion import FILE, Confusion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitdistill.runs.read import Run

MATRIX, NUMBERED = 30, 12  # classes up to which there is a matrix, and a number in each cell of it
PAIRS = 20  # mistakes that are shown of more classes
LONGEST = 24  # characters of a class name


def confusion_of(run: "Run") -> Confusion:
    """What a run counted in its last validation.

    Raises:
        UserError: when its files are damaged or missing.
    """
    from vitdistill.models.record import ModelRecord

    return Confusion.read(run.path / FILE, ModelRecord.read(run.path).classes)


def confusion_figure(confusion: Confusion) -> "Figure":
    """A matrix of shares of each true class; of more than 30 classes bars of the most frequent mistakes.

    Raises:
        UserError: when nothing was counted.
    """
    if not len(confusion.count):
        raise UserError("There must be at least one prediction to draw")
    return _matrix(confusion) if len(confusion.classes) <= MATRIX else _bars(confusion)


def _matrix(confusion: Confusion) -> "Figure":
    from matplotlib.figure import Figure

    counts, names = confusion.matrix(), [short_name(name) for name in confusion.classes]
    samples = counts.sum(axis=1, keepdims=True)
    # Rows of classes without samples stay empty.
    shares = np.divide(counts, samples, out=np.full(counts.shape, np.nan), where=samples > 0)
    side = max(3.2, 0.32 * len(names) + 1.8)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained", facecolor="white")
    axes = figure.subplots()
    drawn = axes.imshow(100 * shares, vmin=0, vmax=100, cmap="Blues", interpolation="nearest")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.tick_params(length=0, labelcolor=INK)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
    axes.set_xlabel("predicted", fontsize=8, color=MUTED)
    axes.set_ylabel("true", fontsize=8, color=MUTED)
    axes.spines[:].set_visible(False)
    if len(names) <= NUMBERED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else INK
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=6.5, color=colour)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
    bar.set_label("% of the true class", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7)
    return figure


def _bars(confusion: Confusion) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    pairs = confusion.pairs()[:PAIRS]
    figure = Figure(figsize=(6.4, 0.26 * max(len(pairs), 2) + 0.9), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.barh(range(len(pairs)), [count for _, _, count in pairs], color="#0072b2")
    names = [f"{short_name(confusion.classes[a])} taken for {short_name(confusion.classes[b])}" for a, b, _ in pairs]
    axes.set_yticks(range(len(pairs)), names, fontsize=7.5)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("samples" if pairs else "no mistakes", fontsize=8, color=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7.5, colors=MUTED, labelcolor=INK)
    return figure


def summary(confusion: Confusion) -> str:
    """The figures that matter, for those who do not see the colours."""
    rows = [row for row in confusion.per_class() if row["accuracy"] is not None]
    worst = min(rows, key=lambda row: row["accuracy"])
    words = f"Mean accuracy per class {100 * confusion.mean_per_class:.1f}%; lowest: {worst['class']}, "
    words += f"{worst['accuracy']:.1f}% of {worst['samples']}"
    if worst["mistaken_for"] is not None:
        words += f", most often taken for {worst['mistaken_for']}"
    if lacking := len(confusion.classes) - len(rows):
        words += f". {lacking} of {len(confusion.classes)} classes have no sample"
    return f"{words}."


def short_name(name: object) -> str:
    text = str(name).encode(errors="replace").decode()
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
