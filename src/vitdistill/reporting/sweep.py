"""The pages of a sweep: a summary in markdown, a figure, and one self-contained HTML page."""

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from statistics import mean
from typing import Any

from vitdistill.reporting import figures
from vitdistill.reporting.page import macs, style_sheet
from vitdistill.reporting.pictures import Picture
from vitdistill.runs.claims import LEVEL, VERDICTS
from vitdistill.runs.read import Run

DRAWN = 12  # settings whose curves are drawn
PERCENT = ("agreement",)  # and whatever is called so in its heading
DASH = "-"
PLURAL = ("hold", "do not hold", "not resolved")


def cells(content: Mapping[str, Any], setting: Mapping[str, Any]) -> list[str]:
    """A setting's line of the table, without its name: mean ± standard deviation of the columns that are shown."""
    headings = content["headings"]
    return [_cell(column, setting["columns"].get(column), headings) for column in content["shown"]]


def _in_percent(column: str, headings: Mapping[str, str]) -> bool:
    return headings.get(column, "").endswith("%") or column.rpartition("/")[2] in PERCENT


def _cell(column: str, found: Mapping[str, Any] | None, headings: Mapping[str, str]) -> str:
    if found is None:
        return DASH
    last = column.rpartition("/")[2]
    if "gmacs" in last:
        return macs(found["mean"]) if found["mean"] else DASH
    whole = ".0f" if last in ("seconds", "epochs") else ",.0f" if "params" in last else ".4g"
    form = ".2f" if _in_percent(column, headings) else whole
    text = format(found["mean"], form)
    constant = not found["sd"] or last in ("seconds", "epochs", "student_params")
    return text if constant else f"{text} ± {format(found['sd'], form)}"


def difference(finding: Mapping[str, Any], headings: Mapping[str, str]) -> str:
    """The mean difference of a claim with its interval.

    Args:
        finding: the claim.
        headings: of the columns, by name.
    """
    if finding["gain"] is None:
        return DASH
    half = "?" if finding["half_width"] is None else f"{finding['half_width']:.3g}"
    percent = _in_percent(finding["column"], headings)
    if percent and finding["half_width"] is not None:
        half = f"{finding['half_width']:.2f}"
    return f"{finding['gain']:+.2f} ± {half}" if percent else f"{finding['gain']:+.3g} ± {half}"


def how(content: Mapping[str, Any]) -> str:
    """How the figures were made, in a sentence or two."""
    hardware, versions = content["hardware"], content["versions"]
    place = (
        hardware.get("gpu") or f"{hardware.get('cpu', 'an unknown processor')} ({hardware.get('cpu_cores', '?')} cores)"
    )
    counts = sorted({setting["seeds"] for setting in content["settings"].values()})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    words = (
        f"on {place}, torch {versions.get('torch', '?')}, one thread a run; {content['seconds'] / 60:.0f} minutes of "
    )
    words += f"training in all. {seeds} seed{'s' if seeds != '1' else ''}"
    if content["data"]:
        train, val = content["samples"] or (None, None)
        words += f"; data: {content['data']}" + (
            f", {train:,} samples to train on and {val:,} to validate" if val else ""
        )
    return f"{words}."


def meaning(content: Mapping[str, Any]) -> list[str]:
    """What the verdicts mean, and what they do not."""
    findings = content["findings"]
    if not findings:
        return []
    numbers = [sum(each["verdict"] == kind for each in findings) for kind in VERDICTS]
    words = [one if number == 1 else several for number, one, several in zip(numbers, VERDICTS, PLURAL, strict=True)]
    counts = ", ".join(f"{number} {word}" for number, word in zip(numbers, words, strict=True))
    total = f"{len(findings)} claim{'s' if len(findings) > 1 else ''}"
    lines = [
        f"Of {total}: {counts}. Differences are between runs of one seed; ± is half of the {LEVEL:.0%} confidence "
        "interval of their mean (Student's t). A claim of a gain holds if the interval lies above zero (or the "
        "claim's own margin) and does not if it lies below; a claim of no loss holds if it lies above minus the "
        "margin, one point unless said otherwise, and does not if it lies below zero.",
    ]
    if len(findings) > 1:
        settled = [each for each in findings if each["verdict"] != "not resolved"]
        kept = [each["claim"] for each in settled if each["corrected"] == each["verdict"]]
        stay = "; ".join(kept) or "none"
        lines.append(
            "The verdicts are not corrected for their number: of twenty differences that are truly zero, one would "
            f"seem resolved. With intervals widened for {len(findings)} claims (Bonferroni) there stay: {stay}. What "
            "is not resolved may still differ by as much as its interval allows."
        )
    else:
        lines.append("What is not resolved may still differ by as much as the interval allows.")
    return lines


def markdown(content: Mapping[str, Any], figure: str | None = None) -> str:
    """The summary for people.

    Args:
        content: of summary.json.
        figure: file of the figure, where there is one.
    """
    heads = [content["headings"][column] for column in content["shown"]]
    lines = [f"# {content['title']}", ""]
    if content["about"]:
        lines += [content["about"], ""]
    lines += [f"`{content['command']}` {how(content)}", ""]
    lines += [f"| setting | seeds | {' | '.join(heads)} |", f"|---|---:|{'---:|' * len(heads)}"]
    for name, setting in content["settings"].items():
        lines.append(f"| {_in_table(name)} | {setting['seeds']} | {' | '.join(cells(content, setting))} |")
    lines += ["", "Mean ± standard deviation over the seeds, of the last epoch."]
    if content["missing"]:
        lines += ["", f"Not run: {', '.join(content['missing'])}."]
    if content["failed"]:
        lines += ["", f"Failed: {'; '.join(f'{label} ({words})' for label, words in content['failed'].items())}."]
    if figure:
        lines += ["", f"![{content['title']}]({figure})"]
    if content["findings"]:
        lines += ["", "## Claims", "", "| claim | difference | seeds | verdict |", "|---|---:|---:|---|"]
        for each in content["findings"]:
            column = "" if each["column"] == content["score"] else f", {each['column']}"
            pair = f"{_in_table(each['better'])} - {_in_table(each['worse'])}{column}"
            gain = f"{difference(each, content['headings'])} ({pair})"
            lines.append(f"| {_in_table(each['claim'])} | {gain} | {each['seeds']} | {each['verdict']} |")
        lines += ["", *(line for part in meaning(content) for line in (part, ""))][:-1]
    return "\n".join(lines) + "\n"


def _in_table(text: str) -> str:
    return text.replace("|", "\\|")


# --- pictures ----------------------------------------------------------------------------------------------------


def figure(content: Mapping[str, Any], *, for_page: bool = False) -> str:
    """What the study asks to be plotted, else the settings' scores, as SVG.

    Args:
        content: of summary.json.
        for_page: as an element of an HTML page; else as a file of its own.
    """
    drawn = scatter(content) if content["plot"] is not None else ""
    drawn = drawn or scores(content)
    if for_page:
        return drawn
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return drawn.replace("<svg ", f"<svg {spaces} ", 1)


def scores(content: Mapping[str, Any]) -> str:
    """The score of every setting: a dot a seed, and mean with standard deviation."""
    score, names = content["score"], list(content["settings"])
    names = [name for name in names if content["settings"][name]["columns"].get(score)]
    picture, axes = figures.panel(content["headings"][score], "", size=(6.4, 0.9 + 0.3 * len(names)))
    for place, name in enumerate(names):
        values = [row[score] for row in content["runs"] if row["setting"] == name and score in row]
        found = content["settings"][name]["columns"][score]
        colour = figures.COLOURS[0]
        axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.35, markersize=4.5, markeredgewidth=0)
        axes.errorbar(found["mean"], place, xerr=found["sd"] or 0, fmt="D", color=colour, markersize=5, capsize=3)
    axes.set_yticks(range(len(names)), [figures.short(name, 44) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    return figures.svg(picture)


def scatter(content: Mapping[str, Any]) -> str:
    """One column against another, a point a setting with standard deviations; SVG, or nothing without points."""
    plot, settings = content["plot"], content["settings"]
    x, y = plot["x"], plot["y"]
    known = {
        name: (own["columns"][x], own["columns"][y])
        for name, own in settings.items()
        if own["columns"].get(x) and own["columns"].get(y)
    }
    if not known:
        return ""
    factor, unit = 1.0, ""
    if "gmacs" in x and max(one["mean"] for one, _ in known.values()) < 0.1:
        factor, unit = 1e3, ", millions"
    elif "gmacs" in x:
        unit = ", billions"
    picture, axes = figures.panel(content["headings"][x] + unit, content["headings"][y], size=(6.4, 4.2))
    lines = {name: [one for one in members if one in known] for name, members in plot["lines"].items()}
    joined = {one for members in lines.values() for one in members}
    for number, (name, members) in enumerate(lines.items()):
        colour = figures.COLOURS[number % len(figures.COLOURS)]
        _points(axes, [known[one] for one in members], factor, colour, "o", line="-", label=name)
    alone = [name for name in known if name not in joined]
    for number, name in enumerate(alone, len(lines)):
        marker = figures.MARKERS[number // len(figures.COLOURS) % len(figures.MARKERS)]
        colour = figures.COLOURS[number % len(figures.COLOURS)]
        _points(axes, [known[name]], factor, colour, marker, line="", label=figures.short(name))
    axes.legend(fontsize=7.5, frameon=False)
    if "gmacs" in x:
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    return figures.svg(picture)


def _points(axes: Any, pairs: Sequence[Any], factor: float, colour: str, marker: str, line: str, label: str) -> None:
    axes.errorbar(
        [factor * one["mean"] for one, _ in pairs],
        [other["mean"] for _, other in pairs],
        xerr=[factor * (one["sd"] or 0) for one, _ in pairs],
        yerr=[other["sd"] or 0 for _, other in pairs],
        fmt=f"{marker}{line}",
        color=colour,
        markersize=5.5,
        capsize=2.5,
        elinewidth=1,
        label=label,
    )


# --- the page ----------------------------------------------------------------------------------------------------


def page(content: Mapping[str, Any], runs: Mapping[str, Sequence[Run]]) -> str:
    """One self-contained HTML page.

    Args:
        content: of summary.json.
        runs: the finished runs of each setting.
    """
    from jinja2 import Environment

    template = resources.files("vitdistill.reporting").joinpath("sweep.html").read_text(encoding="utf-8")
    drawn = [Picture(figure(content, for_page=True), _caption(content))]
    if content["plot"] is not None:
        drawn.append(Picture(scores(content), "Every setting: dots are seeds, bars one standard deviation."))
    averaged = [_averaged(name, members) for name, members in list(runs.items())[:DRAWN]]
    curves = [(figures.curve(averaged, what), what.title) for what in figures.curves_of(averaged)]
    names = [content["headings"][column] for column in content["shown"]]
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            style=style_sheet(),
            content=content,
            how=how(content),
            headings=names,
            rows=[(name, own["seeds"], cells(content, own)) for name, own in content["settings"].items()],
            findings=[(each, difference(each, content["headings"])) for each in content["findings"]],
            meaning=meaning(content),
            figures=drawn,
            curves=[Picture(svg, f"{title[0].upper()}{title[1:]}, mean over seeds.") for svg, title in curves if svg],
            legend=figures.legend(averaged),
            left_out=max(0, len(runs) - DRAWN),
            score=content["headings"].get(content["score"], content["score"]),
        )
    )


def _caption(content: Mapping[str, Any]) -> str:
    if content["plot"] is None:
        return "Every setting: dots are seeds, bars one standard deviation."
    return "Means over the seeds, with standard deviations."


def _averaged(name: str, runs: Sequence[Run]) -> Run:
    """A run whose curves are the means of several: what is drawn of a setting."""
    columns = dict.fromkeys(column for run in runs for column in run.metrics)
    metrics = {column: _mean_curve([run.metrics.get(column, []) for run in runs]) for column in columns}
    return Run(runs[0].path, name, {"setting": name}, runs[0].info, metrics)


def _mean_curve(curves: Sequence[Sequence[float | None]]) -> list[float | None]:
    found = []
    for epoch in range(max(map(len, curves))):
        values = [curve[epoch] for curve in curves if epoch < len(curve)]
        known = [value for value in values if value is not None and math.isfinite(value)]
        found.append(mean(known) if known else None)
    return found
