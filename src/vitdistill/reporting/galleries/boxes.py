"""Pictures with boxes: what is annotated in some validation images, and what a detector finds in them."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image

from vitdistill.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitdistill.runs.read import Run

SHOWN = 5  # images
THRESHOLD = 0.5  # least score of what is drawn
LEAST_SIDE = 320  # pixels to which smaller pictures are enlarged, so that words can be read in them
TALLEST = 800  # pixels of a picture on a page


class Drawn(NamedTuple):
    """A box to draw.

    Attributes:
        corners: x1, y1, x2, y2 in pixels of the image.
        number: of its class, which decides the colour.
        words: beside it.
    """

    corners: Sequence[float]
    number: int
    words: str


def draw_boxes(image: Image.Image, boxes: Sequence[Drawn]) -> Image.Image:
    """The picture with boxes in it; small ones are enlarged.

    Args:
        image: RGB.
        boxes: the later ones lie above.
    """
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image
    from torchvision.utils import draw_bounding_boxes

    times = max(1, math.ceil(LEAST_SIDE / min(image.size)))
    large = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    solid = [box for box in boxes if box.corners[2] > box.corners[0] and box.corners[3] > box.corners[1]]
    if not solid:
        return large
    corners = torch.tensor([list(box.corners) for box in solid], dtype=torch.float32) * times
    drawn = draw_bounding_boxes(
        pil_to_tensor(large),
        corners,
        labels=[_printable(box.words) for box in solid],
        colors=[_colour(box.number) for box in solid],
        width=max(2, round(min(large.size) / 200)),
    )
    return to_pil_image(drawn)


def _colour(number: int) -> tuple[int, int, int]:
    from matplotlib import colormaps

    red, green, blue, _ = colormaps["tab20"](number % 20)
    return round(255 * red), round(255 * green), round(255 * blue)


def _printable(words: str) -> str:
    """Pillow's own font knows Latin letters."""
    return words.encode("latin-1", "replace").decode("latin-1")


def boxes_figure(run: "Run") -> "Figure":
    """Some validation images of a run: annotated boxes above, those that the student finds below.

    Raises:
        UserError: when the data or the student cannot be had.
    """
    from matplotlib.figure import Figure

    from vitdistill.data.boxes.samples import BoxImages
    from vitdistill.evaluation.boxes import detect_samples

    source = run.source()
    samples = source.val
    if not isinstance(samples, BoxImages):
        raise UserError("The data of a run with boxes must have boxes", source.name)
    indices = sorted(np.random.RandomState(0).permutation(len(samples))[:SHOWN].tolist())
    found = detect_samples(run.student(), samples, indices, THRESHOLD)
    figure = Figure(figsize=(2.3 * len(indices), 4.9), layout="constrained", facecolor="white")
    panels = figure.subplots(2, len(indices), squeeze=False)
    for column, (index, ours) in enumerate(zip(indices, found, strict=True)):
        sample = samples.load(index)[0]
        pairs = zip(sample.corners.tolist(), sample.classes.tolist(), strict=True)
        true = [Drawn(corners, number, source.classes[number]) for corners, number in pairs]
        predicted = [Drawn(one.corners, one.number, f"{one.label} {one.score:.2f}") for one in reversed(ours)]
        for row, boxes in enumerate((true, predicted)):
            picture = draw_boxes(sample.image, boxes)
            picture.thumbnail((TALLEST, TALLEST))
            panels[row, column].imshow(np.asarray(picture))
            panels[row, column].set_axis_off()
    panels[0, 0].set_title("annotated", fontsize=8, loc="left")
    panels[1, 0].set_title("predicted", fontsize=8, loc="left")
    return figure
