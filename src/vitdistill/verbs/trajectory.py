"""`vitdistill trajectory`: how a run's masks, and its teacher under them, changed over the training."""

from typing import Any

from vitdistill.errors import UserError
from vitdistill.evaluation.asked import Criteria, criteria_of
from vitdistill.runs.read import Run, check_snapshots, read_run
from vitdistill.verbs.arguments import Data, is_fresh
from vitdistill.verbs.rows import Format, RowWriter

TABLE = ("criterion", "epoch", "kept", "student", "teacher", "agreement", "joint", "centre", "edge", "overlap")


def trajectory(
    run: str,
    *,
    criterion: Criteria = "student,teacher,random",
    keep: int | float | None = None,
    data: Data | None = None,
    images: int | None = 2048,
    format: Format | None = None,
    out: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "auto",
    workers: int | None = None,
) -> list[dict[str, Any]]:
    """How a student's masks changed while it learned, and how much its teacher knew under them (MaskedKD, Figs. 3, 5).

    Takes a run that was trained with --snapshots. Every snapshot ranks the patches of the same validation images; the
    run's teacher answers from the kept ones. A student that did not begin with random weights is also compared with one
    that has them.

    Args:
        run: run directory.
        criterion: who ranks the patches: student (each snapshot), teacher, random, student+random, teacher+random; or
            several of them.
        keep: patches to keep, a count or a fraction; by default what the run ended with, or half.
        data: validation images; by default the run's.
        images: how many of them, evenly spread; null takes all.
        format: table, csv or json; by default what the ending of --out says, else a table. A table leaves out the
            columns correlation and rates.
        out: file to write in place of printing.
        seed: of random masks, and of a student with random weights.
        batch_size: images per step.
        device: auto, cpu, cuda, ...
        workers: loader processes; by default one per core up to 8, and none for bundled data.

    Returns:
        A row for each criterion and snapshot: student and teacher (top-1 in percent, the latter under the mask),
        agreement of the masked teacher with the whole one, joint (how often neighbouring patches are kept or dropped
        together, 1 for random masks), centre and edge (shares kept there), overlap with the last student's masks (IoU),
        correlation by distance, and rates (how often each patch is kept). The run directory gets trajectory.json and
        trajectory.svg, which `vitdistill report` shows.
    """
    names = criteria_of(criterion)
    writer = RowWriter(out, format)
    read = read_run(run)
    check_snapshots(read)
    for name, value in (("images", images), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1", value)

    import json

    from vitdistill.evaluation.trajectory import Trajectory, attention_of, look_at, students_of
    from vitdistill.files import write_atomically
    from vitdistill.reporting.galleries.trajectory import FILE, kept_at_last, summary, trajectory_figure
    from vitdistill.runs.directory import list_in_run
    from vitdistill.tokens.keep import keep_count

    students = students_of(read)
    if not _fresh(read):
        students = {"untrained": _untrained(read, seed), **students}
    source = read.source() if data is None else _opened(data)
    teacher = _teacher(read, source)
    if teacher is None and any("teacher" in name for name in names):
        asked = [name for name in names if "teacher" not in name]
        if criterion != "student,teacher,random":
            raise UserError(f"{run} has no teacher to rank patches", ", ".join(names), "Use --criterion student,random")
        names = tuple(asked)
    grid = next(iter(students.values())).grid if teacher is None else teacher.grid
    kept = kept_at_last(read, grid.count) if keep is None else keep_count(keep, grid.count)
    if kept == grid.count:
        raise UserError("keep must leave out patches", f"{kept} of {grid.count}", "Use --keep 0.5")
    found = Trajectory(
        students,
        teacher,
        kept,
        criteria=names,
        attention=attention_of(read),
        order=read.setting("order") or "top",
        seed=seed,
    )
    look_at(found, source, read.config, images=images, batch_size=batch_size, device=device, workers=workers)
    rows = found.rows()
    content = {**found.summary(), "data": source.name, "seed": seed, "rows": rows}
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(read.path / FILE, lambda file: file.write(text.encode()))
    picture = trajectory_figure(content)
    write_atomically(read.path / "trajectory.svg", lambda file: picture.savefig(file, format="svg"))
    list_in_run(read.path / FILE, read.path / "trajectory.svg")
    with writer:
        writer.write([_shown(row, writer.format) for row in rows])
    if writer.format == "table" or out is not None:
        _say(read, content, summary(content), out, len(rows))
    return rows


def _teacher(run: Run, source: Any) -> Any:
    """The teacher of a run, its scores in the order of the data's classes; None where it had none."""
    if run.has_no_teacher:
        return None
    teachers = run.method(heads=False).teachers
    if not teachers:
        return None
    teacher = teachers[0]
    if teacher.num_classes:
        teacher.match_classes(source.classes, source.name)
    return teacher


def _fresh(run: Run) -> bool:
    """Whether the run's student began with random weights, so that its first snapshot is an untrained student."""
    name = run.config.get("student") or run.config.get("model")
    return isinstance(name, str) and is_fresh(name, bool(run.config.get("pretrained")))


def _untrained(run: Run, seed: int) -> Any:
    from vitdistill.data.order import seed_everything_at
    from vitdistill.models.backbone import with_tokens
    from vitdistill.models.build import rebuild
    from vitdistill.models.record import ModelRecord

    seed_everything_at(seed, "initialisation")
    return with_tokens(rebuild(ModelRecord.read(run.path)))


def _opened(data: Data) -> Any:
    from vitdistill.data.open import open_source

    return open_source(data)


def _shown(row: dict[str, Any], format: Format) -> dict[str, Any]:
    """A row as a format can hold it: nested in json, flat in csv, and without its long parts in a table."""
    if format == "json":
        return row
    if format == "table":
        return {name: "-" if row[name] is None else _rounded(row[name]) for name in TABLE}
    flat = {name: value for name, value in row.items() if name not in ("correlation", "rates")}
    flat |= {f"correlation_{step}": value for step, value in row["correlation"].items()}
    return flat | {f"rate_{place}": rate for place, rate in enumerate(row["rates"])}


def _rounded(value: Any) -> Any:
    return f"{value:.3f}" if isinstance(value, float) else value


def _say(run: Run, content: dict[str, Any], words: str, out: str | None, rows: int) -> None:
    if out is not None:
        print(f"wrote {rows} rows to {out}")
    whole, overlap = content["whole_teacher"], content["chance_overlap"]
    beside = "" if whole is None else f"; the whole teacher is right for {whole:.2f}%"
    print(f"over {content['images']} images{beside}; random masks have joint 1 and overlap {overlap:.3f}")
    if words:
        print(words)
    print(f"wrote {run.path / 'trajectory.json'} and trajectory.svg; `vitdistill report {run.path}` shows them")
