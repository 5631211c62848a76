"""`vitdistill resume`: continue a run from its own record."""

import json
from pathlib import Path
from typing import Any

import yaml

from vitdistill.errors import UserError


def resume(run: str) -> dict[str, Any]:
    """Continue an interrupted run, exactly where it was.

    Reads the run's configuration and calls its verb with `--resume`; a finished run is left as it is.

    Args:
        run: run directory.

    Returns:
        The content of the run's run.json.

    Raises:
        UserError: when `run` is no run directory, or was started from objects that only Python can give.
    """
    folder = Path(run)
    config_file, info_file = folder / "config.yaml", folder / "run.json"
    if not config_file.is_file() or not info_file.is_file():
        raise UserError("A run to resume holds config.yaml and run.json", folder)
    info = json.loads(info_file.read_text())
    if info.get("status") == "finished":
        raise UserError("Only an unfinished run can be resumed", f"{folder}, which is finished")
    from vitdistill.cli import make_parser, verb

    name = info["verb"]
    config = yaml.safe_load(config_file.read_text())
    objects = [key for key, value in config.items() if isinstance(value, str) and value.startswith("<")]
    if objects:
        raise UserError(
            "A run that was given Python objects must be resumed in Python",
            f"{', '.join(objects)} in {config_file}",
            f"Call vitdistill.{name}(..., resume=True) as before",
        )
    function = verb(name)
    parser = make_parser(name, function)
    values = parser.instantiate_classes(parser.parse_object({**config, "out": str(folder), "resume": True}))
    values.pop("config", None)
    return function(**values.as_dict())
