"""Pictures of robustness: accuracy on each test set, and errors on ImageNet-C at each severity beside AlexNet's."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdistill.data.robustness.published import ALEXNET, CORRUPTIONS, SEVERITIES
from vitdistill.data.robustness.sets import CLEAN, CORRUPTED, SETS, SUBSETS
from vitdistill.evaluation.corruption import per_severity
from vitdistill.reporting.figures import COLOURS, PANEL, panel
from vitdistill.reporting.style import MUTED, quiet
from vitdistill.runs.read import Run, is_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VERB = "robustness"
FILE = "robustness.json"  # in the run directory or another folder, by this verb
ACROSS = 4  # panels in a row
SMALL = (2.35, 1.75)  # inches of one


def measured(path: Path) -> Run | None:
    """A folder with what the verb `robustness` found of a model that is no run; None for any other.

    Raises:
        UserError: when the file is damaged.
    """
    from vitdistill.evaluation.robustness import read

    if is_run(path) or not (path / FILE).is_file():
        return None
    model = {"name": read(path / FILE)["model"]}
    return Run(path, path.resolve().name, info={"verb": VERB, "status": "measured", "student": model})


def robustness_of(run: Run) -> dict[str, Any]:
    """What the verb `robustness` found of a run.

    Raises:
        UserError: when the file is damaged.
    """
    from vitdistill.evaluation.robustness import read

    return read(run.path / FILE)["sets"]


def severity_figure(result: Mapping[str, Any]) -> "Figure":
    """Error over severities: a panel for the mean of the fifteen corruptions, and one for each corruption.

    Args:
        result: of ImageNet-C, as `evaluation.robustness.described` has it.
    """
    from matplotlib.figure import Figure

    from vitdistill.evaluation.robustness import errors_of

    errors = errors_of(result["cells"])
    own, alexnet = per_severity(errors)
    count = len([name for name in CORRUPTIONS if name in errors])
    panels = [(f"mean of {count} corruptions", own, alexnet)] if own else []
    for name, found in errors.items():
        panels.append((name.replace("_", " "), found, dict(zip(SEVERITIES, ALEXNET.get(name, ()), strict=False))))
    rows = -(-len(panels) // ACROSS)
    size = (SMALL[0] * ACROSS, SMALL[1] * rows + 0.7)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    drawn: list[Axes] = list(figure.subplots(rows, ACROSS, squeeze=False).flat)
    for axes, (title, ours, theirs) in zip(drawn, panels, strict=False):
        quiet(axes, "severity", title)
        axes.plot(list(theirs), list(theirs.values()), color=MUTED, linewidth=1.2, linestyle="--", label="AlexNet")
        axes.plot(list(ours), list(ours.values()), "o-", color=COLOURS[0], markersize=4, label="this model")
        axes.set_xticks(SEVERITIES)
        axes.set_ylim(0, 100)
    for axes in drawn[len(panels) :]:
        axes.set_axis_off()
    title = "ImageNet-C: top-1 error (%)" + (" (partial)" if result["partial"] else "")
    figure.suptitle(title, fontsize=10)
    handles, labels = drawn[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return figure


def sets_figure(sets: Mapping[str, Any]) -> "Figure | None":
    """Top-1 accuracy on each set but ImageNet-C as a bar; a mark at that on the validation images of the same classes.

    Args:
        sets: results by the names of the sets.
    """
    shown = {name: found for name, found in sets.items() if name != CORRUPTED and found["top1"] is not None}
    if not shown:
        return None
    figure, axes = panel("top-1 accuracy (%)", "", size=(PANEL[0], 0.9 + 0.36 * len(shown)))
    axes.grid(axis="y", visible=False)
    for row, found in enumerate(shown.values()):
        axes.barh(row, found["top1"], height=0.6, color=COLOURS[0])
        if found.get("clean_top1") is not None:
            axes.plot([found["clean_top1"]] * 2, [row - 0.36, row + 0.36], color=COLOURS[1], linewidth=2)
        axes.annotate(
            f"{found['top1']:.1f}",
            (found["top1"], row),
            (4, 0),
            textcoords="offset points",
            va="center",
            color=MUTED,
            fontsize=8,
        )
    names = [SETS[name].title + (" (partial)" if found["partial"] else "") for name, found in shown.items()]
    axes.set_yticks(range(len(shown)), names)
    axes.set_xlim(0, 105)
    axes.invert_yaxis()
    return figure


def summary(sets: Mapping[str, Any]) -> str:
    """The figures in words, for those who do not see the pictures."""
    words = []
    for name, found in sets.items():
        partial = " (partial)" if found["partial"] else ""
        if name == CORRUPTED:
            words.append(corruption_words(found))
        elif found["top1"] is not None:
            own = f"{SETS[name].title}{partial} {found['top1']:.1f}%"
            if found.get("gap") is not None:
                own += f", {found['gap']:.1f} points below the validation images of the same classes"
            if name in SUBSETS:
                own += " (among its 200 classes)" if found.get("gap") is None else ""
            words.append(own)
    return "; ".join(words) + "."


def corruption_words(found: Mapping[str, Any]) -> str:
    """ImageNet-C's numbers in words.

    Args:
        found: its result.
    """
    partial = " (partial)" if found["partial"] else ""
    if partial and found["mce"] is None:
        partial = " (partial, so there is no mCE)"
    parts = []
    if found["mean_error"] is not None:
        parts.append(f"mean error {found['mean_error']:.2f}%")
    if found["mce"] is not None:
        parts.append(f"mCE {found['mce']:.2f} (AlexNet 100)")
    if found["relative_mce"] is not None:
        parts.append(f"relative mCE {found['relative_mce']:.2f}")
    elif found["mce"] is not None:
        parts.append(f"no relative mCE without {CLEAN}:FOLDER")
    return f"{SETS[CORRUPTED].title}{partial}: {', '.join(parts) or 'extra corruptions alone'}"
