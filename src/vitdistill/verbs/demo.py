"""`vitdistill demo`: a complete small study, trained for real each time, offline."""

from importlib import import_module
from pathlib import Path
from typing import Any, Literal


def demo(
    method: Literal["maskedkd", "tinymim", "mvd", "audio"] = "maskedkd",
    *,
    out: str | None = None,
    epochs: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    json: bool = False,
) -> dict[str, Any]:
    """Make small ViTs out of a bigger one on real handwritten digits, or on synthetic sounds, and compare.

    maskedkd trains four students: without a teacher, with the bundled teacher on every patch, and on half and a
    quarter of them. tinymim distils the bundled MAE teacher without labels into three students (class token, features,
    relations) and fine-tunes them and one from scratch. mvd distils a bundled image teacher, a video teacher and both
    into small video ViTs without labels, pre-trains one on pixels, and fine-tunes each on two tasks: which digit moves,
    and how. audio trains a spectrogram transformer on sounds that it synthesises itself, and students without it, with
    all and with half of its patches. Each demo takes a few minutes on two CPU cores. One seed and 360 test images (or
    200 sounds) settle no difference of a point or two: the studies with several seeds are in benchmarks/.

    Args:
        method: which method to show.
        out: folder for the run directories and the report; runs/demo-METHOD by default.
        epochs: passes over the 1437 training images or clips, or 800 sounds, of each student's distillation.
        seed: of all runs.
        overwrite: replace the runs of an earlier demo.
        json: print one JSON object in place of the table.

    Returns:
        The rows of the table, and the path of the report.
    """
    study = import_module(f"vitdistill.studies.{method}")

    def announce(text: str) -> None:
        if not json:
            print(f"\n{text}", flush=True)

    folder = Path(out or f"runs/demo-{method}")
    result = study.run(folder, study.EPOCHS if epochs is None else epochs, seed, overwrite, announce)
    if json:
        print_json(result)
    else:
        study.show(result)
        print(f"report: {result['report']}")
    return result


def print_json(result: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    import json

    print(json.dumps(result))
