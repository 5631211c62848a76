"""The command line: the first word is a verb, all else its options."""

import logging
import os
import sys

from vitdistill.errors import UserError, near
from vitdistill.files import is_first_process
from vitdistill.signals import STATUS, stopping
from vitdistill.verbs.table import GROUPS, MOVED, VERBS, verb


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    # Before torch loads OpenMP. Threads that spin while they wait starve each other as soon as anything else runs:
    # on two shared cores the demo's steps took seven times as long. Has no effect where users set it themselves.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    leave = arguments is None  # the process is this command and nothing else
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # All processes of a run would say the same, except of the files that they read.
    level = logging.WARNING if is_first_process() else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    logging.getLogger("vitdistill.data.loader").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its warnings itself; once is enough
    try:
        with stopping(leave=leave):
            return _main(arguments)
    except UserError as error:
        if is_first_process() or not error.everywhere:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        if is_first_process():
            print(str(stop) or "stopped", file=sys.stderr)
        return STATUS
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"vitdistill {version('vitdistill')}")
        return 0
    if arguments[0] in MOVED:
        verb(arguments[0])
    if arguments[0] not in VERBS:
        raise UserError(
            "The first word must be a verb",
            repr(arguments[0]),
            near(arguments[0], VERBS) or "`vitdistill --help` lists them",
        )
    return run_verb(arguments[0], arguments[1:])


def usage() -> str:
    """The list of verbs."""
    lines: list[str] = []
    for group, names in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:<17}{VERBS[name].summary}" for name in names)]
    return "\n".join(
        [
            "usage: vitdistill VERB [options]",
            "",
            "Makes small Vision Transformers out of big ones.",
            "",
            *lines,
            "",
            "vitdistill VERB --help lists a verb's options and shows an example. Every verb takes --config file.yaml,",
            "--print_config and dotted overrides such as --optim.lr 1e-3.",
        ]
    )


def run_verb(name: str, words: list[str]) -> int:
    """Parse the words behind a verb, refuse what they show to be wrong, and only then import what the verb needs.

    Raises:
        UserError: for unknown options (with near names), values of the wrong type, and unusable YAML files.
    """
    from vitdistill.data.open import check_there
    from vitdistill.files import check_exist
    from vitdistill.models.names import check_model, check_model_there
    from vitdistill.verbs.parser import parse
    from vitdistill.verbs.signatures import options_of

    values = parse(name, words)
    for option in options_of(name).values():
        if check_model in option.checks:
            check_model_there(values[option.name])
    if isinstance(values.get("data"), str):
        check_there(values["data"])
    check_exist(values.get("files") or [])
    result = verb(name)(**values)
    # Only `check` says whether all is well with what it looked at.
    return int(isinstance(result, dict) and result.get("ok") is False)


if __name__ == "__main__":
    sys.exit(main())
