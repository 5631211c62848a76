"""Images that were named one by one or by their folder, for a detector: with their size, and without boxes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

from vitdistill.data.boxes.resizing import Resizing
from vitdistill.data.boxes.samples import PATCH
from vitdistill.data.boxes.transforms import BoxImage, BoxTransform
from vitdistill.data.clips.video import Video
from vitdistill.data.given import given_files
from vitdistill.data.samples import Samples, ViewOptions
from vitdistill.types import InputSpec


class GivenImages(Samples):
    """Images of users, and the middle frames of their videos."""

    word: ClassVar[str] = "file"

    def __init__(self, files: Sequence[str], resizing: Resizing | None) -> None:
        """
        Args:
            files: images, videos, and folders of them at any depth.
            resizing: as in the network's validation; None brings all to the network's size.

        Raises:
            UserError: as `given_files`.
        """
        self.files, self.resizing = given_files(files, clips=False), resizing

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> tuple[Image.Image, None]:
        sample = self.files.load(index)[0]
        if isinstance(sample, Video):
            sample = Image.fromarray(sample.read([sample.length // 2])[0])
        return sample, None

    def path(self, index: int) -> str:
        return self.files.path(index)

    @property
    def labels(self) -> None:
        return None

    def transform(self, spec: InputSpec, options: ViewOptions, *, train: bool) -> "SizedTransform":
        patch = (PATCH, PATCH) if spec.patch is None else spec.patch[1:]
        return SizedTransform(BoxTransform((spec.shape[0], *spec.size), self.resizing, patch, rows=1, train=False))


@dataclass(frozen=True)
class SizedTransform:
    """From an image to the input of a detector, and its height and width in pixels as they were.

    Attributes:
        resize: of validation.
    """

    resize: BoxTransform

    @property
    def random(self) -> bool:
        return False

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.resize.shape

    @property
    def sizes_differ(self) -> bool:
        return self.resize.sizes_differ

    def __call__(self, image: Image.Image) -> tuple[UInt8[Tensor, "ch height width"], Float32[Tensor, "2"]]:
        nothing = BoxImage(image, np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64))
        return self.resize(nothing)[0], torch.tensor(image.size[::-1], dtype=torch.float32)
