"""How images and their masks are read, and how they are tested; groups of options, read without loading torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vitdistill.errors import UserError

Head = Literal["mask", "linear", "upernet", "upernet_wide"]
RATIOS = (0.1, 10.0)  # that can be meant
MOST_CLASSES = 254  # of which masks of 8 bits can tell: 255 is no class, and 254 marks padding in a batch


@dataclass(frozen=True, kw_only=True)
class SegmentFiles:
    """Of the task segmentation: what masks mean, how images are scaled, and where networks look in tests.

    Args:
        classes: file with their names (ADE20K's objectInfo150.txt, or a name on each line), or how many there are; by
            default an objectInfo150.txt or classes.txt beside the images, and 150 for a folder ADEChallengeData2016.
        reduce_zero_label: masks count classes from 1, and 0 is no class (ADE20K's rule): 1 becomes class 0, and so on.
            By default only for a folder ADEChallengeData2016.
        ratio: smallest and largest factor on the size of training images, before a crop is cut; by default 0.5 to 2,
            and 0.9 to 1.25 for the bundled scenes.
        stride: pixels from one window to the next where an image is larger than the network's input. By default the
            windows touch while training; a finished Segmenter is tested with the input's size - 32, an UperNet with two
            thirds of it (480 and 341 of 512).
        head: what makes maps of a ViT that does not label pixels yet: Segmenter's mask transformer (mask), by default,
            or its linear decoder, or UperNet, with the necks of most networks of TinyMIM or those of its tiny*
            (upernet_wide).
    """

    classes: int | str | None = None
    reduce_zero_label: bool | None = None
    ratio: tuple[float, float] | None = None
    stride: int | None = None
    head: Head | None = None

    def __post_init__(self) -> None:
        if isinstance(self.classes, str) and self.classes.isdecimal():  # which member a parser tries first varies
            object.__setattr__(self, "classes", int(self.classes))
        if self.ratio is not None:
            low, high = self.ratio
            if not RATIOS[0] <= low <= high <= RATIOS[1]:
                rule = (
                    f"--segments.ratio must be two factors between {RATIOS[0]:g} and {RATIOS[1]:g}, the smaller first"
                )
                raise UserError(rule, f"{low:g}, {high:g}")
        if self.stride is not None and self.stride < 1:
            raise UserError("--segments.stride must be at least 1 pixel", self.stride)
        if isinstance(self.classes, int) and not 2 <= self.classes <= MOST_CLASSES:
            raise UserError(f"--segments.classes must be 2 to {MOST_CLASSES}, or a file of names", self.classes)

    @classmethod
    def recorded(cls, config: Mapping[str, Any] | None) -> "SegmentFiles":
        """The options in a run's configuration, where tuples are lists."""
        return cls(**_restored(config or {}))


@dataclass(frozen=True, kw_only=True)
class SegmentTest(SegmentFiles):
    """Of a test of the task segmentation: what masks mean, and how finished networks look at images.

    Args:
        test_ratios: test at several sizes: factors on the one at which images are tested, such as
            [0.5,0.75,1.0,1.25,1.5,1.75]; each pixel's probabilities are averaged. By default that one size.
        test_flip: look at each image's mirror image as well, and average.
    """

    test_ratios: list[float] | None = None
    test_flip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        ratios = self.test_ratios
        if ratios is None:
            return
        in_range = all(RATIOS[0] <= ratio <= RATIOS[1] for ratio in ratios)
        if not ratios or not in_range or len(set(ratios)) < len(ratios):
            rule = f"--segments.test_ratios must be factors between {RATIOS[0]:g} and {RATIOS[1]:g}, each once"
            raise UserError(rule, ", ".join(f"{ratio:g}" for ratio in ratios) or "none")

    def over(self, recorded: Mapping[str, Any]) -> "SegmentTest":
        """These options, and for what is not given those of a run's configuration."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return SegmentTest(**_restored({**recorded, **given}))


def _restored(config: Mapping[str, Any]) -> dict[str, Any]:
    """Values of options as they were before they were recorded."""
    values = dict(config)
    if values.get("ratio") is not None:
        values["ratio"] = tuple(values["ratio"])
    return values
