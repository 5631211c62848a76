"""Scenes: what is said to be in a picture is there."""

import numpy as np
import pytest

from vitdistill.data.bundled.scenes import BACKGROUND, CANVAS, INK, draw


@pytest.mark.parametrize("number", range(5))
def test_boxes_lie_around_the_ink_of_their_masks(number: int) -> None:
    scene = draw("train", number)
    assert scene.image.shape == (CANVAS, CANVAS, 3) and len(scene.classes) >= 1
    covered = np.zeros((CANVAS, CANVAS), dtype=bool)
    for (x1, y1, x2, y2), digit in zip(scene.boxes.astype(int), scene.classes, strict=True):
        inside = scene.mask[y1:y2, x1:x2] == digit
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
        covered[y1:y2, x1:x2] |= inside
    assert np.array_equal(covered, scene.mask != BACKGROUND)
    assert scene.image[..., 0][covered].min() >= INK


def test_scenes_are_the_same_wherever_they_are_drawn_and_differ() -> None:
    first, again, other = draw("train", 7), draw("train", 7), draw("val", 7)
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.image, draw("train", 8).image)
