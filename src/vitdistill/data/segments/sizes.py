"""At which size an image is tested: told by its own size and the network's input alone."""

LONGER = 4  # times the input that the longer side may have: ADE20K's 2048 by 512


def scaled_size(size: tuple[int, int], crop: tuple[int, int], ratio: float = 1.0) -> tuple[int, int]:
    """The size at which an image fits into `LONGER` times the crop by the crop, its aspect kept.

    Args:
        size: height and width of the image.
        crop: height and width of the network's input; of two sides the longer counts.
        ratio: factor on both.

    Example:
        >>> scaled_size((683, 1024), (512, 512)), scaled_size((683, 1024), (512, 512), 0.5)
        ((512, 768), (256, 384))
    """
    side = max(crop) * ratio
    factor = min(LONGER * side / max(size), side / min(size))
    return _rounded(size, factor)


def scored_size(size: tuple[int, int], crop: tuple[int, int], ratio: float = 1.0) -> tuple[int, int]:
    """The size at which an image is tested: as `scaled_size`, and large enough to hold the crop.

    Args:
        size: as of `scaled_size`.
        crop: as of `scaled_size`.
        ratio: as of `scaled_size`.

    Example:
        >>> scored_size((512, 683), (512, 512)), scored_size((100, 800), (512, 512))
        ((512, 683), (512, 4096))
    """
    height, width = scaled_size(size, crop, ratio)
    if height >= crop[0] and width >= crop[1]:
        return height, width
    factor = max(crop[0] / height, crop[1] / width)
    height, width = _rounded((height, width), factor)
    return max(height, crop[0]), max(width, crop[1])


def _rounded(size: tuple[int, int], factor: float) -> tuple[int, int]:
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width
