"""What `evaluate` does where patches are left out: whose student ranks them, and how the rows are shown and kept."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdistill.data.order import seed_everything_at
from vitdistill.evaluation.asked import Masks
from vitdistill.evaluation.masked import MaskedAccuracy
from vitdistill.files import write_atomically
from vitdistill.models.build import build
from vitdistill.models.names import HUBS, absolute_model
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.verbs.arguments import is_fresh

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)


def counted_under(
    masks: Masks, network: Teacher, student: str | None, *, views: int, seed: int, image_size: int | None
) -> MaskedAccuracy:
    """What counts the answers of a network under masks.

    Args:
        masks: as they were asked for.
        network: which is masked.
        student: run or model that ranks patches, where a criterion names one.
        views: of each sample.
        seed: of random masks, and of the weights of a student without any.
        image_size: of the data, in pixels, where it is known: a student without weights has it, as in training.

    Raises:
        UserError: when the student cannot be had, or these masks are impossible.
    """
    ranker = None if student is None else _student(student, seed, image_size)
    return MaskedAccuracy(
        network, keep=[*masks.keeps], criterion=[*masks.criteria], student=ranker, views=views, seed=seed
    )


def _student(spec: str, seed: int, image_size: int | None) -> Network:
    spec = absolute_model(spec) if "~" in spec else spec
    published = spec.startswith(HUBS)
    if published or not is_fresh(spec):
        return build(spec, pretrained=published)
    log.warning("%s has random weights, and ranks patches as a student does at the start of its training", spec)
    seed_everything_at(seed, "initialisation")
    return build(spec, image_size=image_size)


def masked_table(rows: Sequence[Mapping[str, Any]], score: str, heading: str) -> "Table":
    """A line for each row.

    Args:
        rows: of `MaskedAccuracy.compute`.
        score: name of the metric that is shown; the others are in the files.
        heading: of it.
    """
    from rich.table import Column, Table

    scale, unit = _unit(rows)
    table = Table(
        *(Column("ranked by", no_wrap=True), "patches", heading, "agreement", unit, "ranking", "cost"),
        caption=f"{unit} per input of the masked pass and of ranking; cost: of the whole pass",
    )
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(
            row["criterion"] or "-",
            f"{row['kept']} of {row['patches']}",
            f"{row[score]:.2f}",
            f"{row['agreement']:.3f}",
            f"{scale * row['gmacs']:.2f}",
            f"{scale * row['ranking_gmacs']:.2f}" if row["ranking_gmacs"] else "-",
            f"{100 * row['cost']:.0f}%",
            end_section=following is None or following["criterion"] != row["criterion"],
        )
    return table


def masked_words(row: Mapping[str, Any]) -> str:
    """A single row in words."""
    scale, unit = _unit([row])
    ranked = "" if row["criterion"] is None else f", ranked by {row['criterion']}"
    ranking = f" and {scale * row['ranking_gmacs']:.2f} to rank the patches" if row["ranking_gmacs"] else ""
    return (
        f"on {row['kept']} of {row['patches']} patches{ranked}: agreement with the whole model {row['agreement']:.3f}; "
        f"{scale * row['gmacs']:.2f} {unit}{ranking}, {100 * row['cost']:.0f}% of the whole pass"
    )


def _unit(rows: Sequence[Mapping[str, Any]]) -> tuple[float, str]:
    """By what 1e9 multiply-accumulates are multiplied to be readable, and what they are called then."""
    return (1e3, "MMACs") if max(row["gmacs"] for row in rows) < 0.1 else (1.0, "GMACs")


def write_masked(result: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """Write the rows as masked.csv, and a picture of them as masked.png and masked.svg.

    Args:
        result: of `evaluate`, with several rows.
        folder: to write into.

    Returns:
        The names of the files.
    """
    from vitdistill.reporting.galleries.masked import masked_figure
    from vitdistill.tasks.confusion import table

    rows = [{**row, "criterion": row["criterion"] or ""} for row in result["masked"]]
    text = table(rows, list(rows[0]))
    write_atomically(folder / "masked.csv", lambda file: file.write(text.encode()))
    picture = masked_figure(result["masked"], whole_top1=result["top1"])
    for kind in ("png", "svg"):
        write_atomically(folder / f"masked.{kind}", lambda file, kind=kind: picture.savefig(file, format=kind, dpi=150))
    return "masked.csv", "masked.png", "masked.svg"
