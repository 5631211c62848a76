"""`vitdistill report`: one HTML page over one or more runs."""

from pathlib import Path
from typing import Any


def report(runs: list[str], *, out: str | None = None, masks: bool = True, json: bool = False) -> dict[str, Any]:
    """Write one self-contained HTML page over one or more runs: tables, curves, masks, costs.

    Args:
        runs: run directories, also unfinished ones, and folders that `robustness` wrote with --out. Runs that differ
            only by seed are also shown as mean and spread. Pages and pictures among them are left out, so that runs/*
            works where an earlier report lies.
        out: HTML file; by default report.html in the run, or in the folder that holds all of them.
        masks: include pictures: what teachers saw, token relations, frame similarity, reconstructions; needs students
            and data.
        json: print one JSON object in place of text.

    Returns:
        The path of the page, and one row of figures per run.
    """
    from vitdistill.errors import UserError
    from vitdistill.reporting.page import rows_of, subjects, write_report
    from vitdistill.runs.read import common_parent

    paths = [Path(run) for run in runs if not _is_output(Path(run))]
    if not paths:
        raise UserError("report needs at least one run directory", ", ".join(runs) or None)
    read = subjects(paths)
    path = Path(out) if out else (paths[0] if len(paths) == 1 else common_parent(paths)) / "report.html"
    replaced = path.exists()
    try:
        write_report(paths, path, masks=masks)
    except OSError as error:
        raise UserError("The page must be writable", f"{path} ({error.strerror})", "Choose another --out") from error
    result = {"report": str(path), "replaced": replaced, "runs": rows_of(read)}
    if json:
        import json as encoder

        print(encoder.dumps(result))
    else:
        earlier = ", in place of an earlier one" if replaced else ""
        print(f"wrote {path} over {len(read)} run{'s' if len(read) > 1 else ''}{earlier}")
    return result


def _is_output(path: Path) -> bool:
    """Whether a path is something that `report` or `masks` wrote beside the runs."""
    return path.suffix in (".html", ".png") and path.is_file()
