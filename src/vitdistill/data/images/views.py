"""Several crops of each image, as options. Needs no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitdistill.errors import UserError, refuse_given

if TYPE_CHECKING:
    from vitdistill.data.images.augment import Augment
    from vitdistill.types import InputSpec

SMALL = 96 / 224  # edge of a small crop, as a share of a large one's: 96 pixels for 224


@dataclass(frozen=True)
class MultiCrop:
    """Several crops of each image (DINO's multi-crop): large ones at the student's input size, and small ones.

    Args:
        globals: large crops of each image.
        locals: small crops of each image.
        local_size: edge of the small ones in pixels, whole patches; none takes 96/224 of the student's, rounded.
        global_scale: smallest and largest share of the image's area in a large crop.
        local_scale: the same of a small one.
        jitter: strength of brightness and contrast jitter; half of it of saturation, a quarter of hue. Four of five
            crops are jittered; 0 jitters none.
        grey: probability that a crop becomes grey.
        blur: probability of a blur of the first large crop, of the other large ones, and of the small ones.
        solarize: probability that a large crop other than the first is solarised.
    """

    globals: int = 2
    locals: int = 8
    local_size: int | None = None
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    jitter: float = 0.4
    grey: float = 0.2
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    solarize: float = 0.2

    def check(self) -> None:
        """
        Raises:
            UserError: naming every option that is out of range.
        """
        rules = {
            f"--views.globals must be at least 1, not {self.globals}": self.globals >= 1,
            f"--views.locals must be 0 or more, not {self.locals}": self.locals >= 0,
            f"--views.local_size must be at least 1, not {self.local_size}": self.local_size is None
            or self.local_size >= 1,
            **{
                f"--views.{name} must be two shares of the area in (0, 1], the smaller first, not {list(scale)}": (
                    len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1
                )
                for name, scale in (("global_scale", self.global_scale), ("local_scale", self.local_scale))
            },
            f"--views.jitter must lie in [0, 1], not {self.jitter}": 0 <= self.jitter <= 1,
            f"--views.grey must lie in [0, 1], not {self.grey}": 0 <= self.grey <= 1,
            f"--views.solarize must lie in [0, 1], not {self.solarize}": 0 <= self.solarize <= 1,
            f"--views.blur must be three probabilities, not {list(self.blur)}": len(self.blur) == 3
            and all(0 <= share <= 1 for share in self.blur),
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise UserError("; ".join(broken))

    def local_shape(self, spec: "InputSpec") -> tuple[int, int]:
        """Height and width of the small crops in pixels.

        Args:
            spec: what the student takes.

        Raises:
            UserError: when the student's patches do not fill them.
        """
        if spec.patch is None:
            raise UserError("The patches of the student must not overlap, so that they fill crops of any size")
        (height, width), (_, down, across) = spec.size, spec.patch
        if self.local_size is None:
            return _whole(SMALL * height, down), _whole(SMALL * width, across)
        size = self.local_size
        if size > height or size > width:
            raise UserError(
                f"Small crops must be no larger than the large ones, of {height}x{width} pixels",
                f"--views.local_size {size}",
            )
        if size % down or size % across:
            near = sorted({max(size // down, 1) * down, -(-size // down) * down})
            raise UserError(
                f"The student's patches of {down}x{across} pixels must fill the small crops",
                f"--views.local_size {size}",
                f"Use {' or '.join(map(str, near))}",
            )
        return size, size


def _whole(edge: float, patch: int) -> int:
    return max(1, round(edge / patch)) * patch


def refuse_single_crops(augment: "Augment") -> None:
    """Refuse options of a recipe that make one crop of an image, where several are made.

    Raises:
        UserError: naming them.
    """
    given = {
        "augment.scale": augment.scale is not None,
        "augment.color_jitter": bool(augment.color_jitter),
        "augment.auto_augment": augment.auto_augment not in (None, "none"),
    }
    refuse_given(given, "on several crops of an image, which --views.* describe")
