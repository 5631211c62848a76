"""The bundled scenes as images with masks: the background, and ten digits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vitdistill.data.bundled.scenes import BACKGROUND, CANVAS, CLASSES, PARTS, TRAIN, VAL, Part, draw
from vitdistill.data.samples import digest_of
from vitdistill.data.segments.files import SegmentFiles
from vitdistill.data.segments.samples import Segmented, SegmentSamples
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError

NAMES = ["background", *CLASSES]
RATIO = (0.9, 1.25)  # digits are told by their shape, not by their size


class SceneSegments(SegmentSamples):
    """Scenes of one part, each drawn once."""

    in_memory = True
    ratio = RATIO
    common = 1.0  # the background is nearly everywhere

    def __init__(self, part: Part, count: int, ratio: tuple[float, float] | None = None) -> None:
        """
        Args:
            part: whose scans are used.
            count: how many.
            ratio: smallest and largest factor on the size of training images; None is mild.
        """
        self.part, self.count = part, count
        self.ratio = ratio or RATIO
        self._drawn: dict[int, tuple[Any, Any]] = {}

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> tuple[Segmented, None]:
        if index not in self._drawn:
            scene = draw(self.part, index)
            mask = np.where(scene.mask == BACKGROUND, 0, scene.mask + 1).astype(np.uint8)
            self._drawn[index] = (scene.image, mask)
        image, mask = self._drawn[index]
        return Segmented(Image.fromarray(image), mask), None

    def path(self, index: int) -> str:
        return f"scene {self.part}/{index}"

    def digest(self) -> str:
        return digest_of(self.part.encode(), str(self.count).encode())


def scene_segments(files: SegmentFiles, sizes: Sequence[int] = (TRAIN, VAL)) -> DataSource:
    """The bundled scenes: eleven classes, nothing is ignored.

    Args:
        files: of which only the ratio means something here, and what the task takes.
        sizes: how many scenes there are to train and to validate on.

    Raises:
        UserError: when it is said what the masks of files mean, or scikit-learn is not installed.
    """
    given = {"classes": files.classes is not None, "reduce_zero_label": files.reduce_zero_label is not None}
    if names := [name for name, is_given in given.items() if is_given]:
        raise UserError(f"--segments.{names[0]} has no effect on the bundled scenes, whose classes are known")
    train, val = (SceneSegments(part, size, files.ratio) for part, size in zip(PARTS, sizes, strict=True))
    train.load(0)  # refuses now where the scans are missing
    return DataSource("scenes", train, val, NAMES, image_size=CANVAS)
