"""Pictures of what masked image modelling has learnt: images, what the encoder saw of them, what was predicted."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitdistill.files import FULL
from vitdistill.reporting.galleries.masks import dim_dropped, normalised, some_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitdistill.models.backbone import Backbone
    from vitdistill.runs.read import Run

IMAGES, SEED = 6, 0
CELL, GAP, LEFT = 1.35, 0.07, 1.2  # inches: a picture's side, the room between pictures, and for the rows' names


class Reconstructions(NamedTuple):
    """Three pictures per image, and how many of the patches the encoder saw."""

    images: UInt8[Tensor, "b 3 height width"]
    masked: UInt8[Tensor, "b 3 height width"]
    predicted: UInt8[Tensor, "b 3 height width"]
    visible: int
    patches: int


@torch.inference_mode()
def reconstructions(run: "Run", count: int = IMAGES) -> Reconstructions:
    """Validation images under a random mask that is the same in every report, and what the run makes of them.

    Args:
        run: a finished run of the verb mae.
        count: how many.

    Raises:
        UserError: when the run holds no decoder or its data is gone.
    """
    from vitdistill.methods.mae import MAE
    from vitdistill.tokens.masking import random_mask

    method = run.method(heads=False)
    assert isinstance(method, MAE)
    method.load_full(run.path / FULL)
    student = method.student
    images = some_images(run.source(labels=False), [], student.input.size, count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        kept, masked = random_mask(len(images), student.grid.count, method.visible)
    predicted = method.reconstruct(normalised(images, student), kept, masked)
    return Reconstructions(
        images,
        dim_dropped(images, kept, student.grid, strength=1.0),
        to_pixels(predicted, student),
        method.visible,
        student.grid.count,
    )


def to_pixels(images: Float[Tensor, "b ch height width"], backbone: "Backbone") -> UInt8[Tensor, "b 3 height width"]:
    """Images normalised with a backbone's statistics as pixels again; what lies beyond black and white is cut."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (backbone.input.mean, backbone.input.std))
    pixels = ((images.float() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.expand(-1, 3, *pixels.shape[2:])  # of grey


def reconstruction_figure(found: Reconstructions, what: str = "image") -> "Figure":
    """One column per image (or frame); below each other it, what the encoder saw, and the reconstruction."""
    from matplotlib.figure import Figure

    rows = ((what, found.images), ("what the\nencoder sees", found.masked), ("reconstruction", found.predicted))
    count = len(found.images)
    width, height = LEFT + count * (CELL + GAP), len(rows) * (CELL + GAP) + GAP
    figure = Figure(figsize=(width, height), facecolor="white")
    for row, (name, batch) in enumerate(rows):
        bottom = height - (row + 1) * (CELL + GAP)
        figure.text((LEFT - 0.1) / width, (bottom + CELL / 2) / height, name, ha="right", va="center", fontsize=9)
        for column, image in enumerate(batch):
            left = LEFT + column * (CELL + GAP)
            axes = figure.add_axes((left / width, bottom / height, CELL / width, CELL / height))
            axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_axis_off()
    return figure
