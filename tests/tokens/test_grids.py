"""Moving scores and features between patch grids."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdistill.errors import UserError
from vitdistill.tokens.grids import transfer, transfer_features
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
    with pytest.raises(UserError, match="time steps; got 8x7x7 and 4x7x7"):
        transfer_features(torch.rand(1, 8 * 49, 3), grid(7, t=8), grid(7, t=4))


def test_bicubic_scores_may_leave_their_range():
    scores = torch.zeros(1, 64)
    scores[0, 27] = 1.0
    moved = transfer(scores, grid(8), grid(4), "bicubic")
    expected = F.interpolate(scores.view(1, 1, 8, 8), size=(4, 4), mode="bicubic", align_corners=False).flatten(1)
    assert torch.equal(moved, expected) and float(moved.min()) < 0


@settings(max_examples=25, deadline=None)
@given(*[st.integers(1, 5)] * 4, st.integers(1, 3), st.integers(1, 4))
def test_every_channel_of_features_moves_as_scores_do(h, w, h2, w2, t, d):
    source, target = grid(h, w, t), grid(h2, w2, t)
    features = torch.rand(2, source.count, d)
    channels = [transfer(channel, source, target) for channel in features.unbind(-1)]
    torch.testing.assert_close(transfer_features(features, source, target), torch.stack(channels, dim=-1))


def test_equal_grids_pass_features_unchanged():
    features = torch.rand(2, 32, 3)
    assert transfer_features(features, grid(4, t=2), grid(4, t=2)) is features


def test_the_gradient_of_moved_features_is_the_transposed_interpolation():
    features = torch.rand(2, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: transfer_features(x, grid(2, 3), grid(3, 4)), features)
