"""Sets of images with masks, and how both become inputs and targets together."""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitdistill.data.device import OnDevice
from vitdistill.data.images.augment import Augment
from vitdistill.data.images.samples import refuse_clips
from vitdistill.data.patches import say_many_patches
from vitdistill.data.samples import Facts, Samples, ViewOptions, digest_of, refuse_sound
from vitdistill.data.segments.device import SegmentsOnDevice
from vitdistill.data.segments.transforms import COMMON, TrainTransform, ValTransform
from vitdistill.errors import UserError
from vitdistill.types import InputSpec


class Segmented(NamedTuple):
    """An image and the class of each of its pixels.

    Attributes:
        image: RGB.
        mask: class numbers; 255 where there is none.
    """

    image: Image.Image
    mask: UInt8[np.ndarray, "height width"]


class SegmentSamples(Samples):
    """Images with masks, each loaded as a `Segmented`.

    Attributes:
        ratio: smallest and largest factor on the size of training images.
        common: share of a crop that its most frequent class may have, if it can be avoided.
    """

    word: ClassVar[str] = "image"
    ratio: tuple[float, float] = (0.5, 2.0)
    common: ClassVar[float] = COMMON

    @abstractmethod
    def load(self, index: int) -> tuple[Segmented, None]:
        """The image and its mask; the class of a whole image means nothing."""

    @property
    def labels(self) -> None:
        """What images show is in their masks."""
        return None

    def inspect(self, index: int) -> Facts:
        image, mask = self.load(index)[0]
        content = digest_of(repr(image.size).encode(), image.tobytes(), mask.tobytes())
        return Facts(*image.size, content=content)

    def short_side(self, index: int) -> int | None:
        return min(self.load(index)[0].image.size)

    def transform(self, spec: InputSpec, options: ViewOptions, *, train: bool) -> TrainTransform | ValTransform:
        refuse_sound(spec, options, self.word)
        if spec.frames is not None:
            raise UserError("A network over clips needs videos", "images with masks", "Choose a network over images")
        if spec.shape[0] != 3:
            raise UserError(
                "Images with masks are read as RGB, for networks with 3 channels", f"in_chans {spec.shape[0]}"
            )
        if options.several is not None:
            raise UserError("Several crops are made of images alone", "images with masks")
        refuse_clips(options)
        augment = _checked(options.augment)
        if not train:
            return ValTransform(spec.size, options.ratios)
        return TrainTransform(spec.size, self.ratio, augment.hflip, augment.color_jitter, self.common)

    def check(self, spec: InputSpec, options: ViewOptions) -> None:
        """Say of very many patches how to have fewer."""
        say_many_patches(spec.size, spec, "a smaller --image_size")

    def on_device(self, spec: InputSpec, options: ViewOptions, classes: int) -> OnDevice:
        return SegmentsOnDevice(Augment(recipe="none"), spec.mean, spec.std, classes)

    def preprocessing(self, spec: InputSpec, options: ViewOptions) -> dict[str, Any]:
        resized = {"crop_pct": 1.0, "interpolation": "bilinear", "crop_mode": "slide"}
        return {**super().preprocessing(spec, options), **resized}


def _checked(augment: Augment) -> Any:
    """The recipe, filled in.

    Raises:
        UserError: when it would move pixels without their classes, or mix those of two images.
    """
    options = augment.resolved()
    unknown = {
        "scale": options.scale != 1,
        "auto_augment": options.auto_augment != "none",
        "mixup or cutmix": options.mixes or augment.mixup_prob is not None,
        "erasing": options.erasing > 0,
        "smoothing": options.smoothing > 0,
        "crop_pct": options.crop_pct != 1,
        "interpolation": augment.interpolation not in (None, "bilinear"),
    }
    if refused := [name for name, is_given in unknown.items() if is_given]:
        raise UserError(
            "Images with masks take the augmentations hflip, color_jitter and repeats only (and --segments.ratio)",
            ", ".join(refused),
            "Choose --augment.recipe none and what you want of these",
        )
    return options
