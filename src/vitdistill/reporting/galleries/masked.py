"""A picture of what a network still knows under masks: accuracy and agreement against the patches that it sees."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitdistill.reporting.figures import COLOURS, DASHES, MARKERS, PANEL
from vitdistill.reporting.style import quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {"top1": "top-1 accuracy (%)", "agreement": "agreement with all patches"}


def masked_figure(rows: Sequence[Mapping[str, Any]], whole_top1: float) -> "Figure":
    """Two panels with a line for each criterion; all lines end at the whole image.

    Args:
        rows: of `MaskedAccuracy.compute`, at least one of which leaves out patches.
        whole_top1: top-1 accuracy in percent on all patches.
    """
    from matplotlib.figure import Figure

    patches = rows[0]["patches"]
    end = {"kept": patches, "top1": whole_top1, "agreement": 1.0}
    figure = Figure(figsize=(2 * PANEL[0], PANEL[1] + 0.3), layout="constrained", facecolor="white")
    drawn: Sequence[Axes] = figure.subplots(1, 2)
    criteria = list(dict.fromkeys(row["criterion"] for row in rows if row["criterion"] is not None))
    for axes, (name, title) in zip(drawn, PANELS.items(), strict=True):
        quiet(axes, f"patches kept, of {patches}", title)
        for turn, criterion in enumerate(criteria):
            points = sorted((row["kept"], row[name]) for row in rows if row["criterion"] == criterion)
            x, y = zip(*points, (end["kept"], end[name]), strict=True)
            # Lines may lie on each other, so they differ in dashes and markers as well.
            dashes = DASHES[turn % len(DASHES)] or (None, None)
            marker = MARKERS[turn % len(MARKERS)]
            colour = COLOURS[turn % len(COLOURS)]
            axes.plot(x, y, marker, color=colour, linestyle="-", dashes=dashes, markersize=5, label=criterion)
        axes.set_xlim(0, 1.04 * patches)
        axes.set_ylim(0, 104 if name == "top1" else 1.04)
    handles, labels = drawn[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8.5)
    return figure
