"""Carrying scores between patch grids."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdistill.errors import UserError
from vitdistill.tokens.grids import transfer
from vitdistill.types import TokenGrid


def grid(h: int, w: int | None = None, t: int = 1) -> TokenGrid:
    return TokenGrid(t, h, w or h)


@pytest.mark.parametrize(("source", "target"), [(7, 14), (14, 16), (14, 24), (16, 14)])
def test_transfer_is_bilinear_interpolation(source, target):
    scores = torch.rand(2, source**2)
    expected = F.interpolate(scores.view(2, 1, source, source), size=(target, target), mode="bilinear").flatten(1)
    assert torch.equal(transfer(scores, grid(source), grid(target)), expected)


def test_weights_written_out_for_a_doubled_row():
    """Half-pixel centres: each new patch lies a quarter of the way to its neighbour."""
    moved = transfer(torch.tensor([[0.0, 1.0]]), grid(1, 2), grid(1, 4))
    assert moved.tolist() == [[0.0, 0.25, 0.75, 1.0]]


def test_equal_grids_pass_untouched():
    scores = torch.rand(2, 16)
    assert transfer(scores, grid(4), grid(4)) is scores


@settings(max_examples=25, deadline=None)
@given(*[st.integers(1, 9)] * 4)
def test_constant_scores_stay_constant_and_others_stay_in_their_range(h, w, h2, w2):
    source, target = grid(h, w), grid(h2, w2)
    assert torch.allclose(transfer(torch.full((1, h * w), 0.3), source, target), torch.tensor(0.3))
    scores = torch.rand(2, h * w)
    moved = transfer(scores, source, target)
    assert moved.shape == (2, h2 * w2)
    assert float(moved.amin()) >= float(scores.amin()) - 1e-6 and float(moved.amax()) <= float(scores.amax()) + 1e-6


def test_the_peak_stays_where_it_is_in_the_image():
    scores = torch.zeros(1, 49)
    scores[0, 2 * 7 + 5] = 1.0
    row, column = divmod(int(transfer(scores, grid(7), grid(14)).argmax()), 14)
    assert (row // 2, column // 2) == (2, 5)


def test_frames_are_moved_one_by_one():
    scores = torch.rand(2, 3 * 4)
    frames = [transfer(frame, grid(2), grid(3)) for frame in scores.view(2, 3, 4).unbind(1)]
    assert torch.equal(transfer(scores, grid(2, t=3), grid(3, t=3)), torch.cat(frames, dim=1))


def test_grids_of_other_lengths_cannot_be_aligned():
    with pytest.raises(UserError, match="time steps; got 8x7x7 and 14x14"):
        transfer(torch.rand(1, 8 * 49), grid(7, t=8), grid(14))
