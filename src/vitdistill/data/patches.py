"""How many patches inputs are made of."""

from vitdistill.data.left_out import say_once
from vitdistill.types import InputSpec

# Patches above which attention is most of the work: YOLOS's own images have up to 4200.
MANY_PATCHES = 5000


def say_many_patches(size: tuple[int, int], spec: InputSpec, smaller: str) -> None:
    """One line on inputs of so many patches that attention, which grows with their square, is nearly all of the work.

    Args:
        size: height and width of the largest input.
        spec: what the network takes.
        smaller: how images become smaller.
    """
    if spec.patch is None:
        return
    count = (size[0] // spec.patch[1]) * (size[1] // spec.patch[2])
    if count > MANY_PATCHES:
        say_once(
            f"Images of up to {size[0]}x{size[1]} pixels are {count} patches of {spec.patch[1]}x{spec.patch[2]}, and "
            f"attention grows with their square. Choose a network with larger patches, or {smaller}"
        )
