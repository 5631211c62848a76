"""What happens to a batch after its transfer: normalisation, random erasing, mixup and cutmix (timm's).

Of pictures; what happens to sounds is in `audio/device.py`.
"""

from collections.abc import Sequence
from typing import Any, overload

import torch
from jaxtyping import Float, Int64, Shaped
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from vitdistill.data.images.augment import Augment
from vitdistill.errors import UserError

# One tensor per view. Any, as the type checker of the tests looks at one item of a tuple drawn from `random`, and so
# would change what the step draws.
ManyViews = tuple[Any, ...]


def blank_padding(
    images: Float[Tensor, "b ch *pixels"] | ManyViews, sizes: Int64[Tensor, "b 2"] | None
) -> Float[Tensor, "b ch *pixels"] | ManyViews:
    """Zeros where images were filled up to the size of their batch, as detectors are trained; in place.

    Args:
        images: normalised; clips have no sizes.
        sizes: height and width of each in pixels, as `Batch` has them; None leaves the images as they are.
    """
    if sizes is None:
        return images
    assert isinstance(images, Tensor)  # several views have sizes of their own
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    outside = (rows >= sizes[:, :1])[:, :, None] | (columns >= sizes[:, 1:])[:, None, :]
    return images.masked_fill_(outside[:, None], 0.0)


class OnDevice:
    """The part of a recipe that runs on the device, batch by batch.

    Erasing and mixup draw from `random`, `numpy.random` and torch's generators: call
    `order.seed_everything_at(seed, step, rank)` before each training batch to make it repeatable.
    """

    def __init__(self, augment: Augment, mean: Sequence[float], std: Sequence[float], num_classes: int) -> None:
        """
        Args:
            augment: the recipe.
            mean: per channel, for inputs in 0..1; what the student expects.
            std: per channel, goes with `mean`.
            num_classes: length of the soft targets.

        Raises:
            UserError: when an option of the recipe is out of range.
        """
        self.augment = options = augment.resolved()
        self.mean, self.std = tuple(mean), tuple(std)
        self.mixup: Mixup | None = None
        if options.mixes:
            self.mixup = Mixup(
                mixup_alpha=options.mixup,
                cutmix_alpha=options.cutmix,
                prob=options.mixup_prob,
                label_smoothing=options.smoothing,
                num_classes=num_classes,
            )
        self._erasing: dict[torch.device, RandomErasing] = {}
        self._stats: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def check_batch_size(self, batch_size: int) -> None:
        """Call before training, since the first batch comes late.

        Args:
            batch_size: images per batch and process.

        Raises:
            UserError: when batches are mixed (image i with image b-1-i) and this one is odd.
        """
        if self.mixup is not None and batch_size % 2:
            raise UserError(
                "Mixup and cutmix need an even batch size per process",
                batch_size,
                "Use an even one, or turn them off with --augment.mixup 0 --augment.cutmix 0",
            )

    def train(
        self,
        images: Shaped[Tensor, "b *values"] | ManyViews,
        targets: Shaped[Tensor, "b *labels"] | None,
    ) -> tuple[
        Float[Tensor, "b ch *pixels"] | ManyViews,
        Float[Tensor, "b *c"] | Int64[Tensor, "b"] | None,
    ]:
        """Normalise, erase and mix a training batch; clips alike in all their frames, several views each by itself.

        Returns:
            The images, normalised, and the targets: soft ones (b, num_classes) with label smoothing applied when
            the recipe mixes batches, else as they came (smoothing is then the loss's business).

        Raises:
            UserError: when the recipe mixes batches and this one is odd.
            ValueError: when it mixes batches of several views, or batches without labels.
        """
        if self.mixup is not None and (isinstance(images, tuple) or targets is None):
            raise ValueError("Only single views with labels can be mixed")
        if isinstance(images, tuple):
            return tuple(self._augmented(view) for view in images), targets
        self.check_batch_size(len(images))
        inputs = self._augmented(images)
        if self.mixup is not None:
            # timm's mixing knows pictures: a clip's frames stand in for so many more channels.
            pictures, targets = self.mixup(inputs.flatten(1, -3), targets)
            inputs = pictures.view(inputs.shape)
        return inputs, targets

    @overload
    def eval(self, images: Shaped[Tensor, "b *values"]) -> Float[Tensor, "b ch *pixels"]: ...

    @overload
    def eval(self, images: ManyViews) -> ManyViews: ...

    def eval(self, images: Shaped[Tensor, "b *values"] | ManyViews) -> Float[Tensor, "b ch *pixels"] | ManyViews:
        """Normalise a batch: (x / 255 - mean) / std; several views each by itself."""
        if isinstance(images, tuple):
            return tuple(self._normalised(view) for view in images)
        return self._normalised(images)

    def _normalised(self, images: Shaped[Tensor, "b *values"]) -> Float[Tensor, "b ch *pixels"]:
        shape = (-1, *[1] * (images.ndim - 2))
        mean, std = (values.view(shape) for values in self._statistics(images.device))
        return images.to(torch.float32).sub_(mean).div_(std)

    def _augmented(self, images: Shaped[Tensor, "b *values"]) -> Float[Tensor, "b ch *pixels"]:
        """Normalised, and with random rectangles erased where the recipe says so."""
        normalised = self._normalised(images)
        if self.augment.erasing == 0:
            return normalised
        # timm's erasing knows pictures: a clip's frames stand in for so many more channels.
        return self._eraser(images.device)(normalised.flatten(1, -3)).view(images.shape)

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation for inputs in 0..255, as timm's loaders have them."""
        if device not in self._stats:  # built once: making a tensor on a GPU from numbers waits for the GPU
            mean, std = (
                torch.tensor([value * 255 for value in values], device=device) for values in (self.mean, self.std)
            )
            self._stats[device] = (mean, std)
        return self._stats[device]

    def _eraser(self, device: torch.device) -> RandomErasing:
        if device not in self._erasing:
            self._erasing[device] = RandomErasing(self.augment.erasing, mode="pixel", device=str(device))
        return self._erasing[device]
