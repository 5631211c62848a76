"""Structure of masks against values known by hand: checkerboards, halves, centres, chance."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from vitdistill.tokens.select import random_scores, top_k
from vitdistill.tokens.structure import (
    MaskStructure,
    central,
    chance_alike,
    chance_overlap,
    distances,
    neighbouring,
    overlap,
)
from vitdistill.types import TokenGrid

GRID = TokenGrid(1, 4, 4)


def of(*masks: str, grid: TokenGrid = GRID) -> MaskStructure:
    """The structure of masks drawn with # for kept patches."""
    kept = [[place for place, mark in enumerate(mask.replace(" ", "")) if mark == "#"] for mask in masks]
    structure = MaskStructure(grid, len(kept[0]))
    for keep in kept:  # one at a time, so that counts add up
        structure.add(torch.tensor([keep]))
    return structure


def test_a_checkerboard_keeps_no_neighbours_together() -> None:
    board = of("#.#. .#.# #.#. .#.#")
    assert board.neighbours == board.joint == 0
    assert board.correlation()[1] == pytest.approx((24 * -1 + 18 * 1) / 42)  # 24 side by side, 18 across a corner
    assert board.centre == board.edge == 0.5


def test_halves_keep_nearly_all_together() -> None:
    halves = of("##.. ##.. ##.. ##..", "..## ..## ..## ..##")
    assert halves.neighbours == pytest.approx(20 / 24)  # 4 pairs of 24 stand astride
    assert halves.joint == pytest.approx(20 / 24 / (7 / 15))
    assert halves.correlation()[3] < 0 < halves.correlation()[1]
    assert torch.equal(halves.rates, torch.full((16,), 0.5)) and halves.masks == 2


def test_centre_and_edge() -> None:
    assert central(GRID).view(4, 4).tolist() == [[1 <= y <= 2 and 1 <= x <= 2 for x in range(4)] for y in range(4)]
    ring = of("#### #..# #..# ####")
    assert (ring.centre, ring.edge) == (0, 1)
    assert of("##..", grid=TokenGrid(1, 2, 2)).edge is None
    assert int(central(TokenGrid(1, 14, 14)).sum()) == 8 * 8


def test_all_masks_together_are_chance() -> None:
    grid = TokenGrid(1, 3, 3)
    structure = MaskStructure(grid, 4)
    structure.add(torch.tensor(list(itertools.combinations(range(9), 4))))
    assert structure.joint == pytest.approx(1)
    assert structure.correlation() == {step: pytest.approx(-1 / 8) for step in (1, 2, 3)}
    assert chance_alike(4, 9) == pytest.approx((4 * 3 + 5 * 4) / 72)


def test_random_masks_come_near_chance() -> None:
    grid, generator = TokenGrid(1, 14, 14), torch.Generator().manual_seed(0)
    structure = MaskStructure(grid, 98)
    structure.add(top_k(random_scores(2000, 196, generator=generator), 98))
    assert structure.joint == pytest.approx(1, abs=0.01)
    assert structure.centre == pytest.approx(0.5, abs=0.01)


def test_keeping_all_says_nothing() -> None:
    whole = of("#### #### #### ####")
    assert whole.joint == whole.centre == whole.edge == 1 and whole.correlation() == {}


def test_frames_of_a_clip_are_looked_at_one_by_one() -> None:
    grid = TokenGrid(2, 1, 2)
    assert neighbouring(grid).nonzero().tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]
    assert distances(grid)[0].tolist() == [0, 1, -1, -1]


def test_overlap() -> None:
    one, other = torch.tensor([[0, 1], [0, 1], [0, 1]]), torch.tensor([[0, 1], [1, 2], [2, 3]])
    torch.testing.assert_close(overlap(one, other, 4), torch.tensor([1, 1 / 3, 0]))
    everything: Tensor = torch.tensor(list(itertools.combinations(range(5), 3)))
    fixed = everything[:1].expand(len(everything), -1)
    assert chance_overlap(3, 5) == pytest.approx(float(overlap(fixed, everything, 5).mean()))
    assert chance_overlap(5, 5) == 1 and math.isclose(chance_overlap(98, 196), 0.3341, abs_tol=1e-4)
