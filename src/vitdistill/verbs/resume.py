"""`vitdistill resume`: continue a run from its own record."""

from typing import Any

from vitdistill.errors import UserError
from vitdistill.runs.read import read_run
from vitdistill.verbs.parser import parse_config
from vitdistill.verbs.table import verb


def resume(run: str, *, data: str | None = None) -> dict[str, Any]:
    """Continue an interrupted run, exactly where it was, on the data that it was started on.

    Reads the run's configuration and calls its verb with `--resume`; a finished run is left as it is.

    Args:
        run: run directory.
        data: where the run's data lies now, if it was moved.

    Returns:
        The content of the run's run.json.

    Raises:
        UserError: when `run` is no run directory, the data is not the same, or the run was started from objects that
            only Python can give.
    """
    found = read_run(run)
    if found.problems and not (found.config and found.info):
        raise UserError("A run to resume holds config.yaml and run.json", f"{found.path}: {'; '.join(found.problems)}")
    if found.status == "finished":
        raise UserError("Only an unfinished run can be resumed", f"{found.path}, which is finished")
    name = found.verb
    function = verb(name)
    if objects := found.objects:
        raise UserError(
            "A run that was given Python objects must be resumed in Python",
            f"{', '.join(objects)} in {found.path / 'config.yaml'}",
            f"Call vitdistill.{name}(..., resume=True) as before",
        )
    moved = {} if data is None else {"data": data}
    return function(**parse_config(name, {**found.config, **moved, "out": str(found.path), "resume": True}))
