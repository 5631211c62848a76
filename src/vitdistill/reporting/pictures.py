"""The pictures on the page. What cannot be drawn is said in words instead; no picture ever costs the page."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vitdistill.reporting.runs import Run, group_by_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitdistill.reporting.relations import TokenRelations

ACROSS, ROWS, HEAT_IMAGES = 5, 6, 256  # runs and images in a picture of masks; images behind a heat map
MOST_RUNS = 6  # of which a page shows pictures that every run has for itself


class Picture(NamedTuple):
    """A picture on the page: its markup and the words under it. Without markup it is words alone."""

    markup: str
    caption: str


class Gallery(NamedTuple):
    """A section of pictures.

    Attributes:
        heading: of the section.
        pictures: with markup.
        notes: words on what is not shown.
        wide: whether the pictures need the page's whole width.
    """

    heading: str
    pictures: list[Picture]
    notes: list[str]
    wide: bool = False


def galleries(runs: Sequence[Run]) -> list[Gallery]:
    """The sections of pictures that these runs have something to say in."""
    sections = (
        ("Token relations", _of_each(_of_verb(runs, "tinymim"), "relation maps", _relations), True),
        ("Reconstructions", _of_each(_of_verb(runs, "mae"), "reconstructions", _reconstructions), True),
        ("Masks", _masks(runs), False),
    )
    return [
        Gallery(heading, [p for p in found if p.markup], [p.caption for p in found if not p.markup], wide)
        for heading, found, wide in sections
        if found
    ]


def _of_verb(runs: Sequence[Run], verb: str) -> list[Run]:
    return [run for run in runs if run.text("verb") == verb]


def _of_each(runs: Sequence[Run], what: str, draw: Callable[[Run], list[Picture]]) -> list[Picture]:
    """Pictures of the first run of each setting; other seeds look much the same."""
    groups = group_by_seed(runs)
    pictures = []
    for group in groups[:MOST_RUNS]:
        run = runs[group.members[0]]
        try:
            pictures += draw(run)
        except Exception as error:  # a picture must not cost the page
            pictures.append(Picture("", f"{run.name}: no {what}, since {_in_words(error)}"))
        if len(group.members) > 1:
            pictures.append(Picture("", f"{run.name} stands for {len(group.members)} seeds."))
    if len(groups) > MOST_RUNS:
        pictures.append(Picture("", f"Only the first {MOST_RUNS} settings are shown, of {len(groups)}."))
    return pictures


def _in_words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# --- token relations -------------------------------------------------------------------------------------


def _relations(run: Run) -> list[Picture]:
    """Whole matrices, then the rows of the class token and of the middle patch."""
    from vitdistill.reporting.relations import matrix_figure, row_figure, token_relations

    found = token_relations(run)
    order = "the class token first, then the patches row by row" if found.prefix else "the patches row by row"
    whole = (
        f"{run.name}: how strongly each token (row) relates to every other (column), {order}. {_compared(run, found)} "
    )
    whole += "Teacher and student share one colour scale; 1× is what each would get if all tokens got the same."
    pictures = [Picture(_png(matrix_figure(found)), whole)]
    if found.prefix:
        words = f"{run.name}: how strongly the class token relates to each patch, laid out as in the image."
        pictures.append(Picture(_png(row_figure(found)), words))
    words = f"{run.name}: how strongly the patch framed in orange relates to each patch, laid out as in the image."
    pictures.append(Picture(_png(row_figure(found, found.middle)), words))
    return pictures


def _compared(run: Run, found: "TokenRelations") -> str:
    """Which blocks are shown, and whether their heads could be compared one by one."""
    blocks = f"Teacher's block {found.blocks[0]}, student's block {found.blocks[1]}"
    theirs, own = found.heads
    if theirs == own:
        words = f"{blocks}, averaged over their {own} heads." if own > 1 else f"{blocks}."
    else:
        words = f"{blocks}. They have {theirs} and {own} heads, so only averages over heads can be compared."
    target = run.config.get("target", "relations")
    trained = (
        "" if target == "relations" else f" This run was trained on {_TARGETS.get(target, target)}, not on relations."
    )
    return words + trained


_TARGETS = {"features": "the teacher's features", "cls": "the teacher's class token"}


# --- reconstructions -------------------------------------------------------------------------------------


def _reconstructions(run: Run) -> list[Picture]:
    from vitdistill.reporting.reconstructions import reconstruction_figure, reconstructions

    found = reconstructions(run)
    words = (
        f"{run.name}: validation images. The encoder sees {found.visible} of {found.patches} patches; hidden ones are "
    )
    words += "blue, and the decoder predicts them."
    if run.config.get("norm_pix", True):
        words += " It predicts each patch's pattern only: brightness and contrast of hidden patches are the true ones."
    return [Picture(_png(reconstruction_figure(found)), words)]


# --- masks -----------------------------------------------------------------------------------------------


def _masks(runs: Sequence[Run]) -> list[Picture]:
    """Masks of the runs on each set of data; words in place of what cannot be drawn."""
    from vitdistill.reporting.masks import unmasked_because

    # A run of another verb is expected to have none, so the page does not say so.
    runs = [run for run in runs if run.text("verb") in (None, "maskedkd")]
    reasons = {run.name: unmasked_because(run) for run in runs}
    notes = [Picture("", f"{name}: no masks, since {reason}.") for name, reason in reasons.items() if reason]
    masked = [run for run in runs if reasons[run.name] is None]
    pictures = []
    for data in dict.fromkeys(str(run.config.get("data")) for run in masked):
        same = [run for run in masked if str(run.config.get("data")) == data]
        pictures += _pictures_or_reason(data, same)
    return pictures + (notes if masked else [])


def _pictures_or_reason(data: str, runs: Sequence[Run]) -> list[Picture]:
    try:
        return _mask_pictures(runs)
    except Exception as error:  # a picture must not cost the page
        return [Picture("", f"The masks could not be drawn. Data {data}: {_in_words(error)}")]


def _mask_pictures(runs: Sequence[Run]) -> list[Picture]:
    """Masks of runs of one set of data, a column each, `ACROSS` of them in a picture."""
    from vitdistill.reporting.masks import Column as Masks
    from vitdistill.reporting.masks import data_of, heatmap_figure, mask_grid_figure, run_columns, some_images

    images = some_images(data_of(runs[0].config), [], _image_size(runs), HEAT_IMAGES)
    notes: list[Picture] = []
    columns: list[Masks] = []
    for run in runs:
        try:
            columns += run_columns(run, images)
        except Exception as error:  # the other runs still have theirs
            notes.append(Picture("", f"{run.name}: no masks, since {_in_words(error)}"))
    drawn = []
    for start in range(0, len(columns), ACROSS):
        part = columns[start : start + ACROSS]
        shown = [column._replace(kept=column.kept[:ROWS]) for column in part]
        grid, heat = mask_grid_figure(images[:ROWS], shown), heatmap_figure(part)
        drawn.append(Picture(_png(grid), "Validation images; dropped patches are faded to blue."))
        drawn.append(Picture(_png(heat), f"How often each position is kept, over {len(images)} images."))
    return drawn + notes


def _image_size(runs: Sequence[Run]) -> tuple[int, int]:
    """The largest input among the students: what the pictures are drawn at, and scaled from for the others."""
    sizes = [size for run in runs if isinstance(size := run.get("student.image_size"), list) and len(size) == 2]
    return max(((int(height), int(width)) for height, width in sizes), default=(224, 224))


def _png(figure: "Figure") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
