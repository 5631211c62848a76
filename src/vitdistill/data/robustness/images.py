"""The images of a test set, with the class numbers of its classes."""

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor, resize

from vitdistill.data.folders import FileSamples, of_classes
from vitdistill.data.images.folder import IMAGES, FolderImages
from vitdistill.data.images.recipes import ImageTransform, to_channels
from vitdistill.data.left_out import say_left_out
from vitdistill.data.robustness.layout import Part, image_numbers
from vitdistill.data.robustness.sets import REAL, real_labels
from vitdistill.data.samples import Transform, ViewOptions
from vitdistill.errors import UserError
from vitdistill.types import InputSpec


class CorruptedImages(FolderImages):
    """Images that were cropped before they were corrupted: they are neither resized by an edge nor cropped again.

    Networks of another input size get them resized to it directly.
    """

    def transform(self, spec: InputSpec, options: ViewOptions, *, train: bool) -> Transform:
        super().transform(spec, options, train=False)  # refuses what is no network over images
        interpolation = InterpolationMode(options.augment.resolved().interpolation)
        channels, (height, width) = spec.shape[0], spec.size
        run = _Direct((height, width), channels, interpolation)
        return ImageTransform(run, random=False, shape=(channels, height, width))


@dataclass(frozen=True)
class _Direct:
    """To pixels, without any change of an image that has the size."""

    size: tuple[int, int]
    channels: int
    interpolation: InterpolationMode

    def __call__(self, image: Image.Image) -> Tensor:
        if (image.height, image.width) != self.size:
            image = resize(image, list(self.size), self.interpolation)
        for step in to_channels(self.channels):
            image = step(image)
        return pil_to_tensor(image)


def open_part(part: Part, images: int | None = None) -> tuple[FileSamples, Part]:
    """The images of a part, and the part with what only the files show to be missing.

    Those of ImageNet-ReaL have their places in `real_labels` for class numbers; those without a label are left out.

    Args:
        part: whose files are listed.
        images: how many to take, the first by their file names whatever their class; None takes all.

    Raises:
        UserError: when there is no image, or none in a class folder that is there; or one of ImageNet-ReaL has another
            name.
    """
    left: Counter[str] = Counter()
    there = [(number, name) for number, name in enumerate(part.folders) if (part.root / name).is_dir()]
    numbers = np.array([number for number, _ in there], dtype=np.int64)  # a class that is missing keeps its number

    total = unlabelled = 0

    def make(root: Path, names: np.ndarray, labels: np.ndarray | None) -> FolderImages:
        nonlocal total, unlabelled
        assert labels is not None  # class folders
        labels = numbers[labels]
        if part.name == REAL:
            labels = np.array(image_numbers(root, map(os.fsdecode, names.tolist())), dtype=np.int64)
            has_label = np.array([bool(each) for each in real_labels()])[labels]
            unlabelled = len(names) - int(has_label.sum())
            names, labels = names[has_label], labels[has_label]
            if not len(names):
                raise UserError(f"At least one image of {REAL} must have a label", f"none of {unlabelled} in {root}")
        total = len(names)
        if images is not None:
            # By the files' own names: where these tell no class, the first are of all classes.
            files = [(os.path.basename(name), name) for name in names.tolist()]
            rows = sorted(range(len(files)), key=files.__getitem__)[:images]
            names, labels = names[rows], labels[rows]
        return (CorruptedImages if part.corruption else FolderImages)(root, names, labels)

    found = of_classes(part.root, [name for _, name in there], replace(IMAGES, make=make), left)
    without = f"{unlabelled} image{'s' * (unlabelled > 1)} without a real label" if unlabelled else ""
    say_left_out(part.root, IMAGES.word, left, [without])
    part = replace(part, unlabelled=unlabelled)
    if len(found) < total:
        part = replace(part, missing=(*part.missing, f"all but the first {images} images"))
    return found, part
