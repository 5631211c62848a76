"""How all figures look: colours of text and lines, and quiet axes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID = "#1f2933", "#5b6673", "#e3e7ec"


def quiet(axes: "Axes", xlabel: str, title: str) -> None:
    """Axes with a pale grid, no frame, a name for x, and a title at the left in place of a name for y."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=8.5)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, color=INK, fontsize=9)
    axes.set_title(title, color=INK, fontsize=9.5, loc="left", fontweight="bold")
