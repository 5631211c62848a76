"""Sets of images, and how images become inputs of networks."""

from typing import ClassVar

from vitdistill.data.images.recipes import ImageTransform, eval_transform, train_transform
from vitdistill.data.samples import Facts, Samples, Transform, ViewOptions, digest_of, refuse_sound
from vitdistill.errors import UserError, refuse_given
from vitdistill.types import InputSpec


class ImageSamples(Samples):
    """Images. `load` gives a whole one as RGB, a `PIL.Image.Image`, with its class number. Networks with one channel
    get it as grey."""

    word: ClassVar[str] = "image"

    def transform(self, spec: InputSpec, options: ViewOptions, *, train: bool) -> Transform:
        refuse_sound(spec, options, self.word)
        if spec.frames is not None:
            raise UserError(
                "A network over clips needs videos", "single images", "Give a folder of videos, or moving_digits"
            )
        if options.several is not None:
            from vitdistill.data.images.multicrop import eval_crops, train_crops

            return (train_crops if train else eval_crops)(options.several, options.augment, spec)
        return image_transform(spec, options, train=train)

    def inspect(self, index: int) -> Facts:
        image = self.load(index)[0]
        # Of the pixels and not of the file: sets without files have it too, and a comment in a file changes nothing.
        return Facts(*image.size, content=digest_of(repr(image.size).encode(), image.tobytes()))

    def short_side(self, index: int) -> int | None:
        return min(self.load(index)[0].size)


def image_transform(spec: InputSpec, options: ViewOptions, *, train: bool) -> ImageTransform:
    """The transform of a recipe, for single images and single frames of videos.

    Raises:
        UserError: when options of clips are given, an option of the recipe is out of range, or the network takes other
            channels than 3 or 1, or sound.
    """
    if spec.sound:
        size = f"{spec.size[0]} mel bins and {spec.size[1]} frames"
        raise UserError("A network over images is needed", f"one over spectrograms of {size}", "Choose a ViT or DeiT")
    refuse_clips(options)
    return (train_transform if train else eval_transform)(options.augment, spec.size, spec.shape[0])


def refuse_clips(options: ViewOptions) -> None:
    """For networks over single images.

    Raises:
        UserError: when options of clips are given.
    """
    given = {
        "clips": (options.clips, options.crops) != (1, 1),
        "stride": options.stride is not None,
        "sampling": options.sampling is not None,
    }
    refuse_given(given, "with a network over single images")
