import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vitdistill.data.bundled import digits as geometry
from vitdistill.data.bundled.digits import digits, render, split
from vitdistill.errors import UserError

PATCH = 2


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(images.load(index)[0]) for index in range(len(images))])


def test_sizes():
    source = digits()
    assert (len(source.train), len(source.val)) == (1437, 360)
    assert source.classes == list("0123456789")
    assert pixels(source.val).shape == (360, source.image_size, source.image_size, 3)


def test_the_split_is_fixed_disjoint_and_stratified():
    labels = load_digits().target
    train, val = split(labels)
    assert sorted([*train, *val]) == list(range(1797))
    shares = np.bincount(labels[val]) / np.bincount(labels)
    assert np.abs(shares - 0.2).max() < 0.01
    assert list(val[:5]) == FIRST_VAL, "the split must never change: the bundled teacher was trained on it"
    assert digits().train.labels == labels[train].tolist() and digits().val.labels == labels[val].tolist()


FIRST_VAL = [9, 12, 15, 27, 34]


def test_at_least_a_third_of_the_patches_of_every_image_are_plain_background():
    for images in (digits().train, digits().val):
        rgb = pixels(images)
        side = geometry.CANVAS // PATCH
        patches = rgb.reshape(len(rgb), side, PATCH, side, PATCH, 3).max(axis=(2, 4, 5))
        assert (patches == 0).mean(axis=(1, 2)).min() >= 1 / 3


def test_images_are_the_real_scans():
    scans, (train, _) = load_digits().images, split(load_digits().target)
    rgb = pixels(digits().train)
    margin = (geometry.CANVAS - geometry.DIGIT) // 2
    ink = rgb[:, margin : margin + geometry.DIGIT, margin : margin + geometry.DIGIT]
    assert rgb.sum(dtype=int) == ink.sum(dtype=int), "nothing outside the digit's frame"
    assert (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 0] == rgb[..., 2]).all()
    # The enlarged ink follows the scan's own ink, image by image and row by row.
    rows = scans[train].sum(axis=2)
    rows_drawn = ink[..., 0].sum(axis=2).astype(float)
    centre = lambda profile: (profile * np.linspace(0, 1, profile.shape[1])).sum(1) / profile.sum(1)  # noqa: E731
    assert np.corrcoef(scans[train].sum(axis=(1, 2)), ink[..., 0].sum(axis=(1, 2)))[0, 1] > 0.999
    assert np.corrcoef(centre(rows), centre(rows_drawn))[0, 1] > 0.99
    assert rgb.max() == 255


def test_rendering_is_centred():
    drawn = render(np.full((8, 8), 16.0))[..., 0]
    assert (drawn == drawn[::-1]).all() and (drawn == drawn[:, ::-1]).all()
    assert (drawn == 255).sum() == geometry.DIGIT**2 and (drawn > 0).sum() == geometry.DIGIT**2


def test_opened_once():
    assert digits() is digits()


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'vitdistill\[demo\]'"):
        digits()
