"""The table of foreign layouts. To add one: write a file with a `Layout`, and add it here."""

import re

from vitdistill.models.weights import clip, convmae, dinov2, dinov3, hf_vit, mae, yolos
from vitdistill.models.weights.layout import Layout, Weights

# First match wins: what has a sign of its own comes before what it resembles.
LAYOUTS: tuple[Layout, ...] = (
    clip.LAYOUT,
    convmae.LAYOUT,
    yolos.LAYOUT,
    dinov2.LAYOUT,
    dinov3.LAYOUT,
    mae.LAYOUT,
    hf_vit.LAYOUT,
    dinov2.CHUNKED,
)


def recognised(weights: Weights) -> Layout | None:
    """The foreign layout of weights without prefix; None for timm's names, and for what is unknown."""
    return next((layout for layout in LAYOUTS if layout.matches(weights)), None)


def anchors() -> list[re.Pattern[str]]:
    """A name of each layout, before which a prefix may stand."""
    return list({layout.anchor.pattern: layout.anchor for layout in LAYOUTS}.values())
