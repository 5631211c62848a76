"""Images with boxes as samples, on disk and as bundled scenes."""

import math
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from vitdistill.data.boxes.annotations import Boxes, Gathering
from vitdistill.data.boxes.resizing import Resizing, resized
from vitdistill.data.boxes.transforms import SHIFT, BoxImage, BoxTransform
from vitdistill.data.bundled import scenes
from vitdistill.data.images.augment import Augment
from vitdistill.data.images.decode import read_image
from vitdistill.data.images.samples import refuse_clips
from vitdistill.data.patches import say_many_patches
from vitdistill.data.samples import Facts, Problem, Samples, ViewOptions, digest_of, refuse_sound
from vitdistill.errors import UserError
from vitdistill.types import InputSpec

PATCH = 16  # pixels, where a network does not say the size of its own
HFLIP = 0.5


class BoxImages(Samples):
    """The images of one split, read from disk.

    Attributes:
        boxes: what is known of them.
        category_ids: by which files with results call the classes.
        resizing: how images become inputs; None brings all to the network's size.
        hflip: probability of a flip, where the recipe says none.
        shift: pixels by which images are moved at most.
        trains: whether a network is trained on them, at the sizes of training.
    """

    word: ClassVar[str] = "image"
    thing: ClassVar[str | None] = "object"

    def __init__(
        self,
        boxes: Boxes,
        category_ids: list[int],
        resizing: Resizing | None,
        *,
        hflip: float = HFLIP,
        shift: int = 0,
        trains: bool = False,
    ) -> None:
        self.boxes, self.category_ids, self.resizing = boxes, category_ids, resizing
        self.trains = trains
        self.hflip, self.shift = hflip, shift

    def __len__(self) -> int:
        return len(self.boxes)

    def load(self, index: int) -> tuple[BoxImage, None]:
        rows = self.boxes.rows(index)
        wanted = ~self.boxes.ignored[rows]
        image = self.image(index)
        return BoxImage(image, self.boxes.corners[rows][wanted], self.boxes.classes[rows][wanted]), None

    def image(self, index: int) -> Image.Image:
        """One whole image.

        Raises:
            ValueError: when it has another size than annotated; and as `load`.
        """
        image = read_image(self.path(index))
        height, width = self.boxes.sizes[index].tolist()
        if image.size != (width, height):
            raise ValueError(f"{image.width}x{image.height} pixels when upright, annotated as {width}x{height}")
        return image

    def path(self, index: int) -> str:
        return self.boxes.paths[index]

    @property
    def labels(self) -> None:
        """What images show is with their boxes."""
        return None

    def problems(self) -> list[Problem]:
        return self.boxes.problems

    def class_counts(self) -> Counter[int]:
        return Counter(self.boxes.classes[~self.boxes.ignored].tolist())

    def inspect(self, index: int) -> Facts:
        image = self.load(index)[0].image
        return Facts(*image.size, content=digest_of(repr(image.size).encode(), image.tobytes()))

    def short_side(self, index: int) -> int:
        return int(self.boxes.sizes[index].min())

    def digest(self) -> str:
        """Of the images' names in the annotations, their sizes, boxes and classes."""
        boxes = self.boxes
        arrays = (boxes.sizes, boxes.offsets, boxes.corners, boxes.classes, boxes.ignored)
        names = "\0".join(map(str, boxes.ids)).encode("utf-8", "surrogateescape")
        return digest_of(names, *(np.ascontiguousarray(array).tobytes() for array in arrays))

    def transform(self, spec: InputSpec, options: ViewOptions, *, train: bool) -> BoxTransform:
        """Resized, and in training flipped and cropped, with their boxes.

        A network whose patches are not known has one size, to which whole images are squeezed.
        """
        refuse_sound(spec, options, self.word)
        refuse_clips(options)
        if spec.frames is not None:
            raise UserError("A network over clips needs videos", "images with boxes", "Give a network over images")
        if options.several is not None:
            raise UserError("Several crops are made of images without boxes", "images with boxes", "Leave out --views")
        if train:
            check_augment(options.augment)
        hflip = self.hflip if options.augment.hflip is None else options.augment.hflip
        return BoxTransform(
            shape=(spec.shape[0], *spec.size),
            resizing=None if spec.patch is None else self.resizing,
            patch=(PATCH, PATCH) if spec.patch is None else spec.patch[1:],
            rows=self.boxes.most,
            train=train,
            hflip=hflip if train else 0.0,
            shift=self.shift if train else 0,
        )

    def check(self, spec: InputSpec, options: ViewOptions) -> None:
        """Say of very many patches how to have fewer."""
        size = spec.size
        if self.resizing is not None and spec.patch is not None and len(self):
            sizes, patch, how = np.unique(self.boxes.sizes, axis=0).tolist(), spec.patch[1:], self.resizing
            of_use = [(how.eval_side, how.eval_longest)]
            of_use += [(max(how.sides), how.longest)] if self.trains else []
            found = [resized((rows, columns), *limits, patch) for rows, columns in sizes for limits in of_use]
            size = max(found, key=math.prod)
        say_many_patches(size, spec, f"smaller {'--boxes.sides and ' if self.trains else ''}--boxes.eval_side")

    def preprocessing(self, spec: InputSpec, options: ViewOptions) -> dict[str, Any]:
        fixed = {"crop_pct": 1.0, "interpolation": "bilinear", "crop_mode": "squash"}
        found = {**super().preprocessing(spec, replace(options, augment=Augment(recipe="none"))), **fixed}
        if self.resizing is None:
            return found
        sides = {"short_side": self.resizing.eval_side, "long_side": self.resizing.eval_longest}
        return {**found, "crop_mode": "border", **sides}


class SceneImages(BoxImages):
    """The bundled scenes: digits, so nothing is flipped, but they are moved a little."""

    in_memory = True

    def __init__(self, part: scenes.Part, count: int, resizing: Resizing | None) -> None:
        """
        Args:
            part: train or val.
            count: of scenes.
            resizing: None keeps their size.
        """
        ids = list(range(len(scenes.CLASSES)))
        super().__init__(_scene_boxes(part, count), ids, resizing, hflip=0.0, shift=SHIFT)
        self.part, self.count = part, count

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(_drawn(self.part, self.count)[index].image)


@cache
def _drawn(part: scenes.Part, count: int) -> list[scenes.Scene]:
    return [scenes.draw(part, number) for number in range(count)]


@cache
def _scene_boxes(part: scenes.Part, count: int) -> Boxes:
    gathering = Gathering()
    for number, scene in enumerate(_drawn(part, count)):
        gathering.image(f"scenes/{part}/{number}", number, (scenes.CANVAS, scenes.CANVAS))
        for corners, digit in zip(scene.boxes.tolist(), scene.classes.tolist(), strict=True):
            gathering.box(corners, digit)
    return gathering.finish()


def check_augment(augment: Augment) -> None:
    """Refuse what would move pixels without their boxes, or hide or mix what is in them.

    Raises:
        UserError: naming it.
    """
    options = augment.resolved()
    unknown = {
        "scale": options.scale != 1,
        "auto_augment": options.auto_augment != "none",
        "color_jitter": options.color_jitter > 0,
        "mixup or cutmix": options.mixes or augment.mixup_prob is not None,
        "erasing": options.erasing > 0,
        "smoothing": options.smoothing > 0,
        "crop_pct": augment.crop_pct is not None,
        "interpolation": augment.interpolation is not None,
    }
    if refused := [name for name, is_given in unknown.items() if is_given]:
        raise UserError(
            "Images with boxes take the augmentations hflip and repeats only",
            ", ".join(refused),
            "Choose --augment.recipe none; how images are resized and cropped is said by --boxes.resize",
        )
