"""The HTML page over one or more runs: self-contained, so that it can be mailed."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from vitdistill.reporting import figures
from vitdistill.reporting.runs import MISSING, Run, differing_settings, group_by_seed, read_runs, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DASH = "–"


class Picture(NamedTuple):
    """A picture on the page: markup and the words under it."""

    markup: str
    caption: str


class Column(NamedTuple):
    """A column of the table: heading, key of `rows_of`, how to write a value."""

    heading: str
    key: str
    write: Callable[[Any], str]


def _fixed(digits: int) -> Callable[[Any], str]:
    return lambda value: f"{value:,.{digits}f}"


def _adaptive(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1 else f"{value:,.2f}"


COLUMNS = (
    Column("run", "name", str),
    Column("verb", "verb", str),
    Column("student", "student", str),
    Column("teacher", "teacher", str),
    Column("patches", "patches", str),
    Column("top-1 %", "top1", _fixed(2)),
    Column("top-5 %", "top5", _fixed(2)),
    Column("teacher GMACs/image", "teacher_gmacs_per_image", _adaptive),
    Column("teacher PMACs in all", "teacher_pmacs", _adaptive),
    Column("saved", "saved_fraction", lambda value: f"{100 * value:.0f}%"),
    Column("images/s", "images_per_s", _fixed(0)),
    Column("ms data / student / teacher", "split", str),
    Column("peak GiB", "peak_memory_gib", _fixed(2)),
    Column("s", "seconds", _fixed(0)),
    Column("status", "status", str),
)


def write_report(run_dirs: Sequence[Path], out: Path, *, masks: bool = True) -> Path:
    """Write the page.

    Args:
        run_dirs: run directories, in the order of the tables.
        out: HTML file.
        masks: include pictures of masks; what cannot be drawn is said on the page and fails nothing.

    Returns:
        `out`.

    Raises:
        UserError: when a path is no run directory.
    """
    from jinja2 import Environment

    runs = read_runs(run_dirs)
    template = resources.files("vitdistill.reporting").joinpath("page.html").read_text()
    text = (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
            columns=COLUMNS,
            rows=[[_cell(column, row) for column in COLUMNS] for row in rows_of(runs)],
            groups=_groups(runs),
            settings=[(row.key, [_setting(value) for value in row.values]) for row in differing_settings(runs)],
            names=[run.name for run in runs],
            figures=_figures(runs),
            masks=_masks(runs) if masks else [],
            details=[_details(run) for run in runs],
            problems=[(run.name, problem) for run in runs for problem in run.problems],
        )
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    return out


def rows_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The table's figures as plain values; None where a run does not say."""
    return [_row(run) for run in runs]


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
        "top1": run.number("accuracy.top1"),
        "top5": run.number("accuracy.top5"),
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


def _given(run: Run, role: str) -> str | None:
    """A network as the user named it, else by its architecture."""
    given = run.config.get(role)
    return str(given) if given else run.text(f"{role}.name")


def _cell(column: Column, row: dict[str, Any]) -> str:
    value = row[column.key]
    return DASH if value is None else column.write(value)


def _groups(runs: Sequence[Run]) -> list[tuple[str, str, int]]:
    """Name, accuracy as mean ± standard deviation, number of seeds; only settings with several seeds."""
    found = []
    for group in group_by_seed(runs):
        over = spread([runs[index].number("accuracy.top1") for index in group.members])
        if over is not None:
            found.append((group.name, f"{over.mean:.2f} ± {over.std:.2f}", over.n))
    return found


def _setting(value: Any) -> str:
    return DASH if value is MISSING else str(value)


def _figures(runs: Sequence[Run]) -> list[Picture]:
    drawn = [Picture(figures.accuracy_against_cost(runs) or "", "Accuracy against what the teacher costs per image.")]
    drawn += [Picture(figures.curve(runs, what) or "", f"{what.title}, by epoch.") for what in figures.CURVES]
    drawn.append(Picture(figures.step_times(runs) or "", "Where a training step's time goes."))
    return [figure for figure in drawn if figure.markup]


def _masks(runs: Sequence[Run]) -> list[Picture]:
    """Masks of every run that has some, on one set of images; a note in place of what cannot be drawn."""
    try:
        return _mask_pictures(runs)
    except Exception as error:  # a picture must not cost the page
        return [Picture(f"<p>{html.escape(' '.join(str(error).split()))}</p>", "The masks could not be drawn.")]


def _mask_pictures(runs: Sequence[Run]) -> list[Picture]:
    from vitdistill.models.build import build
    from vitdistill.reporting.masks import heatmap_figure, mask_grid_figure, run_columns, some_images

    finished = [run for run in runs if (run.path / "student.safetensors").is_file() and run.config.get("data")]
    masked = [run for run in finished if run.config.get("keep") is not None]
    if not masked:
        return []
    from vitdistill.reporting.masks import data_of

    same = [run for run in masked if run.config["data"] == masked[0].config["data"]][:6]
    size = build(str(same[0].path)).image_size
    images = some_images(data_of(same[0].config), [], size, 128)
    columns = [column for run in same for column in run_columns(run.path, run.config, images)]
    if not columns:
        return []
    shown = [column._replace(kept=column.kept[:6]) for column in columns]
    return [
        Picture(_png(mask_grid_figure(images[:6], shown)), "What the teachers see of six validation images."),
        Picture(_png(heatmap_figure(columns)), f"How often each position is kept, over {len(images)} images."),
    ]


def _png(figure: "Figure") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _details(run: Run) -> dict[str, str]:
    facts = {key: run.info.get(key) for key in ("data", "hardware", "versions", "student", "teacher", "speed", "cost")}
    return {
        "name": run.name,
        "command": run.text("command") or DASH,
        "config": yaml.safe_dump(run.config, sort_keys=False),
        "facts": yaml.safe_dump({key: value for key, value in facts.items() if value}, sort_keys=False),
    }
