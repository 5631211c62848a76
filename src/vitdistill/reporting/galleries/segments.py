"""Pictures of what a network makes of each pixel: images, their masks, and its own."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitdistill.data.segments.masks import IGNORED
from vitdistill.data.segments.palette import overlay, palette
from vitdistill.reporting.galleries.confusion import short_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitdistill.runs.read import Run

IMAGES = 6
CELL, LEFT, NAMES_IN_ROW, MOST_NAMES = 1.5, 0.9, 6, 24  # inches, and classes in the legend


class Labelled(NamedTuple):
    """An image with two masks."""

    image: Image.Image
    true: UInt8[np.ndarray, "height width"]
    predicted: UInt8[np.ndarray, "height width"]


class Maps(NamedTuple):
    """Some images of a run's validation set, and the names of its classes."""

    shown: list[Labelled]
    classes: list[str]


def maps_of(run: "Run", count: int = IMAGES) -> Maps:
    """Images spread over the validation set, the same in every report.

    Args:
        run: a finished run of the task segmentation.
        count: how many.

    Raises:
        UserError: when its data is gone.
    """
    from vitdistill.data.segments.files import SegmentFiles
    from vitdistill.tasks.segmentation import Segmentation

    source, network = run.source(), run.student().eval()
    stride = SegmentFiles.recorded(run.config.get("segments")).stride
    task = Segmentation(network.num_classes, stride=stride).tested()
    shown = []
    for index in np.unique(np.linspace(0, len(source.val) - 1, count).astype(int)).tolist():
        image, true = source.val.load(index)[0]
        shown.append(Labelled(image, true, task.labelled(network, image)))
    return Maps(shown, list(source.classes))


def maps_figure(maps: Maps) -> "Figure":
    """A column for each image: it, its true mask, and the predicted one, with the colours of the classes below."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    present = np.unique(np.concatenate([each.flatten() for one in maps.shown for each in (one.true, one.predicted)]))
    numbers = [int(number) for number in present if number != IGNORED][:MOST_NAMES]
    legend = 0.24 * -(-(len(numbers) + 1) // NAMES_IN_ROW) + 0.1
    width, height = LEFT + CELL * len(maps.shown), 3 * CELL + legend
    figure = Figure(figsize=(width, height), facecolor="white")
    rows = ("image", "true", "predicted")
    for column, one in enumerate(maps.shown):
        pictures = (one.image, overlay(one.image, one.true), overlay(one.image, one.predicted))
        for row, picture in enumerate(pictures):
            bottom = legend + (2 - row) * CELL
            place = ((LEFT + column * CELL + 0.03) / width, (bottom + 0.03) / height)
            axes = figure.add_axes((*place, (CELL - 0.06) / width, (CELL - 0.06) / height))
            axes.imshow(np.asarray(picture), interpolation="nearest")
            axes.set_axis_off()
    for row, name in enumerate(rows):
        middle = legend + (2.5 - row) * CELL
        figure.text((LEFT - 0.1) / width, middle / height, name, ha="right", va="center", fontsize=9)
    colours = palette() / 255
    patches = [Patch(facecolor=colours[n], edgecolor="#888", label=short_name(maps.classes[n])) for n in numbers]
    if IGNORED in present:
        patches.append(Patch(facecolor=colours[IGNORED], edgecolor="#888", label="(ignored)"))
    drawn = figure.legend(handles=patches, loc="lower center", ncols=NAMES_IN_ROW, fontsize=7, frameon=False)
    for text in drawn.get_texts():
        text.set_parse_math(False)
    return figure


def agreement(maps: Maps) -> float:
    """Share of the pixels shown that are right, in percent, of those that have a class."""
    right = sum(int((one.true == one.predicted)[one.true != IGNORED].sum()) for one in maps.shown)
    counted = sum(int((one.true != IGNORED).sum()) for one in maps.shown)
    return 100 * right / max(1, counted)
