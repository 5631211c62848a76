"""The pictures on the page. What cannot be drawn is said in words instead; no picture ever costs the page."""

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vitdistill.errors import UserError, error_words
from vitdistill.runs.compare import group_by_seed
from vitdistill.runs.read import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitdistill.reporting.galleries.relations import TokenRelations

KINDS = (".png", ".jpg", ".pdf", ".svg")  # of pictures that verbs write
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
        ("Frame similarity", _similarity(_of_verb(runs, "mvd", "videomae")), True),
        ("Reconstructions", _of_each(_of_verb(runs, "mae", "videomae"), "reconstructions", _reconstructions), True),
        ("Segments", _of_each(_of_task(runs, "segmentation"), "maps of classes", _segments), True),
        ("Boxes", _of_each(_of_task(runs, "boxes"), "boxes", _boxes), True),
        ("Confusion", _of_each(_confused(runs), "confusion of classes", _confusion), False),
        ("Robustness", _of_each(_tested(runs), "robustness", _robustness), True),
        ("Masks", _masks(runs), False),
        ("Masks over training", _of_each(_with_snapshots(runs), "masks over training", _trajectory), True),
    )
    return [
        Gallery(heading, [p for p in found if p.markup], [p.caption for p in found if not p.markup], wide)
        for heading, found, wide in sections
        if found
    ]


def _of_verb(runs: Sequence[Run], *verbs: str) -> list[Run]:
    return [run for run in runs if run.text("verb") in verbs]


def _of_task(runs: Sequence[Run], task: str) -> list[Run]:
    return [run for run in runs if run.config.get("task") == task]


def _of_each(runs: Sequence[Run], what: str, draw: Callable[[Run], list[Picture]]) -> list[Picture]:
    """Pictures of each setting."""
    shown, notes = _one_of_each_setting(runs)
    pictures = []
    for run in shown:
        try:
            pictures += draw(run)
        except Exception as error:  # a picture must not cost the page
            pictures.append(Picture("", f"{run.name}: no {what}, since {error_words(error)}"))
    return pictures + notes


def _one_of_each_setting(runs: Sequence[Run]) -> tuple[list[Run], list[Picture]]:
    """The first run of each setting, since other seeds look much the same, and words on those left out."""
    groups = group_by_seed(runs)
    shown = [(runs[group.members[0]], len(group.members)) for group in groups[:MOST_RUNS]]
    notes = [Picture("", f"{run.name} stands for {seeds} seeds.") for run, seeds in shown if seeds > 1]
    if len(groups) > MOST_RUNS:
        notes.append(Picture("", f"Only the first {MOST_RUNS} settings are shown, of {len(groups)}."))
    return [run for run, _ in shown], notes


# --- token relations -------------------------------------------------------------------------------------


def _relations(run: Run) -> list[Picture]:
    """Whole matrices, then the rows of the class token and of the middle patch."""
    from vitdistill.reporting.galleries.relations import matrix_figure, row_figure, token_relations

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


# --- frame similarity ------------------------------------------------------------------------------------


def _similarity(runs: Sequence[Run]) -> list[Picture]:
    """One picture per set of clips, with all networks that saw them."""
    from vitdistill.reporting.figures import svg
    from vitdistill.reporting.galleries.similarity import similarities_of, similarity_figure, summary

    shown, notes = _one_of_each_setting(runs)
    found = similarities_of(shown)
    drawn = []
    for each in found.comparisons:
        for similarities, words in ((each.plain, _ALIKE), (each.centred, _CENTRED)):
            caption = f"{words.format(each.clips)} {summary(similarities, each.steps)}"
            drawn.append(Picture(svg(similarity_figure(similarities, each.steps)), caption))
    return drawn + [Picture("", note) for note in found.notes] + notes


_ALIKE = (
    "How alike the frames of a clip are to each network: cosine similarity between the features of its time steps (the "
    "last block's output before the final norm, averaged over positions), mean over {} validation clips. All matrices "
    "share one colour scale; frames are numbered from 0."
)
_CENTRED = (
    "The same, with each network's mean feature over all {} clips subtracted, since features that share a large "
    "constant part are all alike without that."
)


# --- reconstructions -------------------------------------------------------------------------------------


def _reconstructions(run: Run) -> list[Picture]:
    if run.text("verb") == "videomae":
        return _clip_reconstructions(run)
    from vitdistill.reporting.galleries.reconstructions import reconstruction_figure, reconstructions

    found = reconstructions(run)
    words = (
        f"{run.name}: validation images. The encoder sees {found.visible} of {found.patches} patches; hidden ones are "
    )
    words += "blue, and the decoder predicts them."
    if run.config.get("norm_pix", True):
        words += " It predicts each patch's pattern only: brightness and contrast of hidden patches are the true ones."
    return [Picture(_png(reconstruction_figure(found)), words)]


def _clip_reconstructions(run: Run) -> list[Picture]:
    """A picture per clip, with the first frames of its time steps."""
    from vitdistill.reporting.galleries.clip_reconstructions import clip_reconstructions
    from vitdistill.reporting.galleries.reconstructions import reconstruction_figure

    pictures = []
    for found in clip_reconstructions(run):
        words = (
            f"{run.name}: a validation clip, the first frame of {len(found.images)} time steps. The encoder "
            f"sees {found.visible} of {found.patches} tokens; hidden ones are blue, and the decoder predicts them."
        )
        if run.config.get("norm_pix", True):
            words += " It predicts each token's pattern only: colour and contrast of hidden tokens are the true ones."
        pictures.append(Picture(_png(reconstruction_figure(found, "frame")), words))
    return pictures


# --- segments --------------------------------------------------------------------------------------------


def _segments(run: Run) -> list[Picture]:
    from vitdistill.reporting.galleries.segments import agreement, maps_figure, maps_of

    maps = maps_of(run)
    words = f"{run.name}: validation images, the true class of each pixel and the predicted one, in colours over them. "
    words += f"{agreement(maps):.1f}% of these pixels are right."
    return [Picture(_png(maps_figure(maps)), words)]


# --- confusion -------------------------------------------------------------------------------------------


def _confused(runs: Sequence[Run]) -> list[Run]:
    """The runs that have counted which classes are taken for which."""
    from vitdistill.tasks.confusion import FILE

    return [run for run in runs if (run.path / FILE).is_file()]


def _confusion(run: Run) -> list[Picture]:
    from vitdistill.reporting.galleries.confusion import confusion_figure, confusion_of, summary

    confusion = confusion_of(run)
    words = f"{run.name}: which classes the student takes for which, in the last validation. {summary(confusion)}"
    return [Picture(_png(confusion_figure(confusion)), words)]


# --- robustness ------------------------------------------------------------------------------------------


def _tested(runs: Sequence[Run]) -> list[Run]:
    """The runs of which the verb `robustness` has measured something."""
    from vitdistill.reporting.galleries.robustness import FILE

    return [run for run in runs if (run.path / FILE).is_file()]


def _robustness(run: Run) -> list[Picture]:
    from vitdistill.data.robustness.sets import CORRUPTED
    from vitdistill.reporting.figures import svg
    from vitdistill.reporting.galleries.robustness import robustness_of, sets_figure, severity_figure, summary

    sets = robustness_of(run)
    words = f"{run.name}: {summary(sets)}"
    pictures = []
    if (bars := sets_figure(sets)) is not None:
        marks = (
            " Orange: the validation images of the same classes."
            if any("clean_top1" in e for e in sets.values())
            else ""
        )
        pictures.append(Picture(svg(bars), words + marks))
    if CORRUPTED in sets:
        beside = f"{run.name}: errors on ImageNet-C at each severity, dashed: AlexNet's."
        pictures.append(Picture(svg(severity_figure(sets[CORRUPTED])), beside if pictures else words))
    return pictures


# --- boxes -----------------------------------------------------------------------------------------------


def _boxes(run: Run) -> list[Picture]:
    from vitdistill.reporting.galleries.boxes import THRESHOLD, boxes_figure

    words = f"{run.name}: validation images with annotated boxes, and what the student finds with a score of at least "
    return [Picture(_png(boxes_figure(run)), f"{words}{THRESHOLD:g}.")]


# --- masks -----------------------------------------------------------------------------------------------


def _masks(runs: Sequence[Run]) -> list[Picture]:
    """Masks of the runs on each set of data; words in place of what cannot be drawn."""
    from vitdistill.reporting.galleries.masks import unmasked_because

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
        return [Picture("", f"The masks could not be drawn. Data {data}: {error_words(error)}")]


def _mask_pictures(runs: Sequence[Run]) -> list[Picture]:
    """Masks of runs of one set of data, a column each, `ACROSS` of them in a picture."""
    from vitdistill.reporting.galleries.masks import Column as Masks
    from vitdistill.reporting.galleries.masks import (
        heatmap_figure,
        is_sound,
        mask_grid_figure,
        run_columns,
        some_images,
    )

    images = some_images(runs[0].source(), [], _image_size(runs), HEAT_IMAGES)
    notes: list[Picture] = []
    columns: list[Masks] = []
    for run in runs:
        try:
            columns += run_columns(run, images)
        except Exception as error:  # the other runs still have theirs
            notes.append(Picture("", f"{run.name}: no masks, since {error_words(error)}"))
    drawn = []
    for start in range(0, len(columns), ACROSS):
        part = columns[start : start + ACROSS]
        shown = [column._replace(kept=column.kept[:ROWS]) for column in part]
        sound = is_sound(images)
        grid, heat = mask_grid_figure(images[:ROWS], shown), heatmap_figure(part, sound=sound)
        words, word = ("", "images") if not sound else (_SPECTROGRAMS, "sounds")
        drawn.append(Picture(_png(grid), f"Validation {word}; dropped patches are faded to blue.{words}"))
        drawn.append(Picture(_png(heat), f"How often each position is kept, over {len(images)} {word}."))
    return drawn + notes


_SPECTROGRAMS = " Frequency goes upward and time to the right. Patches overlap: each cell is the middle of one."


def _with_snapshots(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.snapshots]


def _trajectory(run: Run) -> list[Picture]:
    from vitdistill.reporting.figures import svg
    from vitdistill.reporting.galleries.trajectory import rates_figure, summary, trajectory_figure, trajectory_of

    found = trajectory_of(run)
    words = f"{run.name}: masks of the student over its training, {found['images']} validation images. {summary(found)}"
    if found["whole_teacher"] is None:
        words += f" What the teacher knows under them: vitdistill trajectory {run.path}."
    pictures = [Picture(svg(trajectory_figure(found)), f"{words} Dotted: chance, or all patches.")]
    if (rates := rates_figure(found)) is not None:
        pictures.append(Picture(_png(rates), f"{run.name}: how often each position is kept, at some epochs."))
    return pictures


def _image_size(runs: Sequence[Run]) -> tuple[int, int]:
    """The largest input among the students: what the pictures are drawn at, and scaled from for the others."""
    sizes = [size for run in runs if isinstance(size := run.get("student.image_size"), list) and len(size) == 2]
    return max(((int(height), int(width)) for height, width in sizes), default=(224, 224))


def _png(figure: "Figure") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


# --- pictures in files -----------------------------------------------------------------------------------


def picture_path(out: str) -> Path:
    """The file to write, checked before any work is done; its folder is made.

    Raises:
        UserError: when it is no kind of picture, or its folder cannot be made.
    """
    path = Path(out)
    if path.suffix.lower() not in KINDS:
        raise UserError(f"out must end in {', '.join(KINDS)}", repr(out))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("The folder of out must be writable", f"{path.parent} ({error.strerror})") from error
    return path
