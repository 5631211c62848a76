"""Sliding windows cover everything, and change nothing where there is nothing to change."""

import pytest
import torch

from vitdistill.tasks.windows import slide, window_starts


def test_windows_begin_where_the_published_tests_have_them() -> None:
    assert [window_starts(size, 512, 341) for size in (512, 683, 1024)] == [[0], [0, 171], [0, 341, 512]]
    assert window_starts(1024, 512, 512) == [0, 512] and window_starts(1000, 512, 512) == [0, 488]


@pytest.mark.parametrize("at_once", [None, 1, 4])
def test_a_constant_network_gives_a_constant_map(at_once: int | None) -> None:
    sizes = [(20, 33), (16, 16)]
    images = torch.randn(2, 3, 20, 33)
    constant = lambda windows: torch.tensor([1.0, -2.0])[:, None, None].expand(len(windows), 2, 16, 16)  # noqa: E731
    maps = slide(constant, images, sizes, (16, 16), 11, at_once)
    assert torch.equal(maps[0], torch.tensor([1.0, -2.0])[:, None, None].expand(2, 20, 33))
    assert torch.equal(maps[1, 0, :16, :16], torch.ones(16, 16)) and maps[1, :, 16:].isnan().all()
    assert maps[1, :, :, 16:].isnan().all()


def test_a_network_of_single_pixels_is_the_same_through_windows() -> None:
    images = torch.randn(1, 3, 40, 57)
    torch.testing.assert_close(slide(lambda x: 2 * x + 1, images, [(40, 57)], (16, 16), 11), 2 * images + 1)
