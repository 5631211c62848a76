"""Sliding windows: a network of one input size on images of any size, its maps averaged where windows overlap."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side; the last is shifted back to end at the border.

    Args:
        size: of the image, at least that of a window.
        window: size of a window.
        stride: from one to the next.

    Example:
        >>> [window_starts(size, 512, 341) for size in (512, 683, 1024)]
        [[0], [0, 171], [0, 341, 512]]
    """
    count = max(size - window + stride - 1, 0) // stride + 1
    return [max(0, min(number * stride, size - window)) for number in range(count)]


def slide(
    network: Callable[[Tensor], Tensor],
    images: Float[Tensor, "b ch height width"],
    sizes: Sequence[tuple[int, int]],
    window: tuple[int, int],
    stride: int,
    at_once: int | None = None,
) -> Float[Tensor, "b c height width"]:
    """The map of each image, from windows over all of it.

    Args:
        network: from windows to maps of their size.
        images: filled up at the right and at the bottom.
        sizes: height and width of each without that, at least those of a window.
        window: height and width.
        stride: in pixels, along both sides.
        at_once: windows that the network sees at once, whichever image they are of; None is as many as images.

    Returns:
        Scores, NaN where an image was filled up.
    """
    places = [
        (number, slice(top, top + window[0]), slice(left, left + window[1]))
        for number, (height, width) in enumerate(sizes)
        for top in window_starts(height, window[0], stride)
        for left in window_starts(width, window[1], stride)
    ]
    sums = seen = None
    step = at_once or len(images)
    for start in range(0, len(places), step):
        part = places[start : start + step]
        maps = network(torch.stack([images[number, :, rows, columns] for number, rows, columns in part])).float()
        if sums is None or seen is None:
            sums = maps.new_zeros(len(images), maps.shape[1], *images.shape[-2:])
            seen = maps.new_zeros(len(images), 1, *images.shape[-2:])
        for scores, (number, rows, columns) in zip(maps, part, strict=True):
            sums[number, :, rows, columns] += scores
            seen[number, :, rows, columns] += 1
    assert sums is not None and seen is not None
    return sums / seen  # 0 / 0 is NaN
