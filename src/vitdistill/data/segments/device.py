"""What happens to images with masks on the device."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from vitdistill.data.device import ManyViews, OnDevice
from vitdistill.data.segments.masks import IGNORED, PADDING


class SegmentsOnDevice(OnDevice):
    """Normalises; what pads a training crop becomes 0 after that, and ignored in its mask."""

    def train(
        self, images: Shaped[Tensor, "b ch height width"] | ManyViews, targets: Shaped[Tensor, "b *values"] | None
    ) -> tuple[Float[Tensor, "b ch height width"] | ManyViews, Shaped[Tensor, "b *values"] | None]:
        """
        Args:
            images: uint8.
            targets: class numbers; `PADDING` where there is no image.
        """
        assert isinstance(images, Tensor) and targets is not None
        padding = targets == PADDING
        blank = self._normalised(images).masked_fill_(padding[:, None], 0.0)
        return blank, torch.where(padding, torch.full_like(targets, IGNORED), targets)
