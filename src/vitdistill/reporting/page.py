"""The HTML page over one or more runs: self-contained, so that it can be mailed."""

import json
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vitdistill.reporting import figures
from vitdistill.reporting.galleries.robustness import VERB as ROBUSTNESS
from vitdistill.reporting.galleries.robustness import measured
from vitdistill.reporting.pictures import Picture, galleries
from vitdistill.runs.compare import MISSING, differing_settings, group_by_seed, spread
from vitdistill.runs.directory import list_in_run
from vitdistill.runs.read import Run, read_run, read_runs

DASH = "–"


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        heading: what it is called.
        key: of `rows_of`.
        write: how to write a value.
        text: whether it is text.
        void: a value that says no more than a missing one; a column with nothing else is left out.
    """

    heading: str
    key: str
    write: Callable[[Any], str]
    text: bool = False
    void: Any = None


def _fixed(digits: int) -> Callable[[Any], str]:
    return lambda value: f"{value:,.{digits}f}"


def macs(giga: float) -> str:
    """Giga-MACs with the prefix that reads best: 0.0068 is "6.8 M", 1770e6 is "1.77 E"."""
    for prefix, size in (("E", 1e9), ("P", 1e6), ("T", 1e3), ("G", 1.0), ("M", 1e-3)):
        if abs(giga) >= size:
            return f"{giga / size:.3g}\u00a0{prefix}"
    return f"{giga * 1e6:.3g}\u00a0k" if giga else "0"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s" if minutes else f"{seconds:.0f}s"


RUN = Column("run", "name", str, text=True)
# Before and behind the columns of the runs' metrics.
RESULTS = (
    RUN,
    Column("status", "status", str, text=True),
    Column("verb", "verb", str, text=True),
    Column("student", "student", str, text=True),
    Column("teacher", "teacher", str, text=True, void="none"),
    Column("patches kept", "patches", str),
)


def _costs(word: str) -> tuple[Column, ...]:
    return (
        Column("validation loss", "loss", lambda value: f"{value:.4g}"),
        Column(f"teacher MACs / {word}", "teacher_gmacs_per_image", macs, void=0.0),
        Column("saved", "saved_fraction", lambda value: f"{100 * value:.0f}%"),
    )


def _speed(word: str) -> tuple[Column, ...]:
    return (
        RUN,
        Column("teacher MACs in all", "teacher_pmacs", lambda value: macs(value * 1e6)),
        Column(f"{word}s/s", "images_per_s", _fixed(0)),
        Column("ms data / student / teacher", "split", str),
        Column("peak GiB", "peak_memory_gib", _fixed(2)),
        Column("time", "seconds", _duration),
    )


def _word(runs: Sequence[Run]) -> str:
    """What the runs were trained on: image, video, ..., or sample where they differ; earlier runs do not say."""
    words = {run.text("sample_word") or "image" for run in runs}
    return words.pop() if len(words) == 1 else "sample"


def write_report(run_dirs: Sequence[Path], out: Path, *, masks: bool = True) -> Path:
    """Write the page.

    Args:
        run_dirs: what `subjects` reads, in the order of the tables.
        out: HTML file.
        masks: include pictures of masks, token relations, frame similarity and reconstructions; what cannot be drawn
            is said on the page and fails nothing.

    Returns:
        `out`.

    Raises:
        UserError: as `subjects`.
    """
    from jinja2 import Environment

    runs = subjects(run_dirs)
    metrics = [Column(heading, name, _fixed(2)) for name, heading in metrics_of(runs).items()]
    word = _word(runs)
    named = (("Results", (*RESULTS, *metrics, *_costs(word))), ("Cost and speed", _speed(word)))
    tables = [(heading, *_table(columns, runs)) for heading, columns in named]
    template = _file("page.html")
    text = (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            style=style_sheet(),
            title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
            tables=[table for table in tables if len(table[1]) > 1],
            macs=any(run.teacher_gmacs for run in runs),
            groups=_groups(runs),
            settings=[(row.key, [_setting(value) for value in row.values]) for row in differing_settings(runs)],
            names=[run.name for run in runs],
            figures=_figures(runs),
            legend=figures.legend(runs),
            galleries=galleries(runs) if masks else [],
            details=[_details(run) for run in runs if run.text("verb") != ROBUSTNESS],
            problems=[(run.name, problem) for run in runs for problem in (*run.problems, *_notes(run))],
        )
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    list_in_run(out)
    return out


def subjects(paths: Sequence[str | Path]) -> list[Run]:
    """What a page is over: runs, and folders with what `robustness` found of models that are no runs.

    Raises:
        UserError: when a path is neither, or what a folder holds is damaged.
    """
    return read_runs(paths, lambda path: measured(Path(path)) or read_run(path))


def style_sheet() -> str:
    """How all pages look."""
    return _file("style.css")


def _file(name: str) -> str:
    return resources.files("vitdistill.reporting").joinpath(name).read_text(encoding="utf-8")


def metrics_of(runs: Sequence[Run]) -> dict[str, str]:
    """What any of the runs measures, by name: headings."""
    return {name: heading for run in runs for name, heading in run.columns.items()}


def rows_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The table's figures as plain values; None where a run does not say."""
    metrics = metrics_of(runs)
    return [{**_row(run), **{name: run.number(f"accuracy.{name}") for name in metrics}} for run in runs]


def _row(run: Run) -> dict[str, Any]:
    kept, of = run.number("tokens.kept"), run.number("tokens.of")
    parts = [run.number(f"speed.{part}_ms") for part in ("data", "student", "teacher")]
    total = run.number("cost.teacher_gmacs_total")
    return {
        "name": run.name,
        "verb": run.text("verb"),
        "student": _given(run, "student"),
        "teacher": "none" if run.has_no_teacher else _given(run, "teacher"),
        "patches": None if kept is None or of is None else f"{kept:.0f} of {of:.0f}",
        "score": run.result,
        "loss": _loss(run),
        "teacher_gmacs_per_image": run.teacher_gmacs,
        "teacher_pmacs": None if total is None else total / 1e6,
        "saved_fraction": run.number("cost.saved_fraction"),
        "images_per_s": run.number("speed.images_per_s"),
        "split": None if None in parts else " / ".join(f"{part:.1f}" for part in parts),
        "peak_memory_gib": run.number("peak_memory_gib"),
        "seconds": run.number("seconds"),
        "status": run.status,
        "seed": run.number("seed"),
    }


def _loss(run: Run) -> float | None:
    """The validation loss that the run ended with, or its best."""
    last = run.number("accuracy.loss")
    return run.number("accuracy.best_loss") if last is None else last


def _given(run: Run, role: str) -> str | None:
    """A network as the user named it, else by its architecture; `finetune` calls its network the model."""
    given = run.config.get(role) or (run.config.get("model") if role == "student" else None)
    if role == "teacher" and not given:  # `mvd` has two kinds
        given = " + ".join(str(run.config[key]) for key in ("image_teacher", "video_teacher") if run.config.get(key))
    return str(given) if given else run.text(f"{role}.name")


def _table(columns: Sequence[Column], runs: Sequence[Run]) -> tuple[Sequence[Column], list[list[tuple[str, bool]]]]:
    """The columns that say something, and per run the cells with whether each is text."""
    rows = rows_of(runs)
    shown = [column for column in columns if _says_something(column, rows)]
    return shown, [[(_cell(column, row), column.text) for column in shown] for row in rows]


def _says_something(column: Column, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether any run has a value; losses are shown where a run has nothing better."""
    if column.key == "loss":
        return any(row["loss"] is not None and row["score"] is None for row in rows)
    return any(row[column.key] not in (None, column.void) for row in rows)


def _cell(column: Column, row: dict[str, Any]) -> str:
    value = row[column.key]
    return DASH if value is None else column.write(value)


def _groups(runs: Sequence[Run]) -> list[tuple[str, str, str, int]]:
    """Name, what is measured, its mean ± standard deviation, number of seeds; only settings with several finished."""
    found = []
    for group in group_by_seed(runs):
        finished = [runs[index] for index in group.members if runs[index].status == "finished"]
        over = spread([run.result for run in finished])
        if over is not None and (score := finished[0].score) is not None:
            heading = finished[0].columns.get(score, score)
            found.append((group.name, heading, f"{over.mean:.2f} ± {over.std:.2f}", over.n))
    return found


def _setting(value: Any) -> str:
    if value is MISSING:
        return DASH
    if isinstance(value, str):
        return value
    return json.dumps(value) if value is None or isinstance(value, bool | list) else str(value)


def _figures(runs: Sequence[Run]) -> list[Picture]:
    drawn = []
    for score, name in figures.scores_of(runs).items():
        caption = f"{name[0].upper()}{name[1:]} against what the teacher costs per image, 0 without a teacher. "
        caption += "Its axis is cut to the data"
        if any(run.per_sample for run in runs if run.score == score):
            caption += "; thin bars are one standard error for this many validation samples"
        drawn.append((figures.score_against_cost(runs, score, name), f"{caption}."))
    for what in figures.curves_of(runs):
        beside = ", dashed: its moving average (EMA)" if any(what.companion in run.metrics for run in runs) else ""
        drawn.append((figures.curve(runs, what), f"{what.title[0].upper()}{what.title[1:]}, by epoch{beside}."))
    drawn.append((figures.step_times(runs), "Where a training step's time goes."))
    return [Picture(svg, caption) for svg, caption in drawn if svg]


def _notes(run: Run) -> list[str]:
    """What was said of a run when it began, and of its masked teacher."""
    notes, doubt = run.info.get("notes"), run.text("masked_teacher.warning") or run.text("warning")
    return [str(note) for note in (notes if isinstance(notes, list) else [])] + ([doubt] if doubt else [])


def _details(run: Run) -> dict[str, str]:
    facts = {key: run.info.get(key) for key in ("data", "hardware", "versions", "student", "teacher", "speed", "cost")}
    return {
        "name": run.name,
        "command": run.text("command") or DASH,
        "config": yaml.safe_dump(run.config, sort_keys=False),
        "facts": yaml.safe_dump({key: value for key, value in facts.items() if value}, sort_keys=False),
    }
