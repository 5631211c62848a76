"""Patches in the part of an image that was filled up."""

import torch
import torch.nn.functional as F

from vitdistill.tokens.padding import padding_patches
from vitdistill.types import TokenGrid


def filled(height: int, width: int, size: tuple[int, int]) -> torch.Tensor:
    image = torch.randn(3, height, width, generator=torch.Generator().manual_seed(height))
    return F.pad(image, (0, size[1] - width, 0, size[0] - height))


def test_rows_and_columns_of_zeros_up_to_the_border() -> None:
    """A patch that shows a single pixel of the image is none of the padding."""
    images = torch.stack([filled(24, 32, (24, 32)), filled(16, 17, (24, 32)), filled(8, 8, (24, 32))])
    got = padding_patches(images, TokenGrid(1, 3, 4)).unflatten(1, (3, 4))
    assert not got[0].any()
    assert got[1].tolist() == [[False, False, False, True]] * 2 + [[True] * 4]
    assert (~got[2]).nonzero().tolist() == [[0, 0]]


def test_a_black_part_inside_an_image_is_no_padding() -> None:
    images = torch.zeros(1, 3, 24, 32)
    images[:, 1, 20, 30] = -1.0  # in the last patch
    assert not padding_patches(images, TokenGrid(1, 3, 4)).any()


def test_images_of_nothing_are_padding_throughout() -> None:
    assert padding_patches(torch.zeros(2, 1, 8, 8), TokenGrid(1, 2, 2)).all()
