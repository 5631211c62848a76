"""Where a set of images with boxes is, and how its images are resized; a group of options, read without torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from vitdistill.errors import UserError, near

Split = Literal["VOC2012", "VOC2007", "07+12"]
Ids = Literal["dense", "published"]
ResizeName = Literal["auto", "voc", "coco", "coco_tiny", "fixed"]

SIZES = ("resize", "sides", "longest", "eval_side")  # options that mean something on other data as well


@dataclass(frozen=True, kw_only=True)
class BoxFiles:
    """Images with boxes: which of them, and their size before the network.

    Args:
        split: of a VOC devkit, what to train and to validate on: VOC2012 (train, val; the default), VOC2007 (train,
            val), or 07+12 (trainval of both years, test of 2007).
        train: of COCO's format, the json file to train on; by default annotations/instances_train2017.json or
            annotations/voc_train.json below the data.
        val: the same to validate on; by default annotations/instances_val2017.json or annotations/voc_val.json.
        train_images: of COCO's format, the folder of the images to train on; by default train2017, images/train or
            train below the data.
        val_images: the same to validate on; by default val2017, images/val or val.
        ids: of COCO's format: dense numbers the classes 0, 1, ... in the order of their ids, published takes the ids
            themselves as class numbers, 0 to 90, as networks that were published for COCO have them.
        resize: recipe of resizing: voc (shorter side 416 to 608, at most 800; 512 in validation), coco_tiny (256 to
            608, at most 1013; 512), coco (480 to 800, at most 1333; 800), fixed (all to the network's size), or auto:
            fixed for bundled scenes, voc for VOC's classes, coco for all others.
        sides: lengths of the shorter side in training, of which one is drawn; by default the recipe's.
        longest: of the longer side; by default the recipe's.
        eval_side: of the shorter side in validation; by default the recipe's.
        det_tokens: objects that can be found in an image, where a ViT becomes a detector; by default 100.
        class_weight: of the loss of the classes beside those of the boxes; by default 1, as published. More of it helps
            small detectors that find objects and do not tell them apart.
    """

    split: Split | None = None
    train: str | None = None
    val: str | None = None
    train_images: str | None = None
    val_images: str | None = None
    ids: Ids | None = None
    resize: ResizeName | None = None
    sides: list[int] | None = None
    longest: int | None = None
    eval_side: int | None = None
    det_tokens: int | None = None
    class_weight: float | None = None

    def __post_init__(self) -> None:
        for name, kind in (("split", Split), ("ids", Ids), ("resize", ResizeName)):
            value = getattr(self, name)
            if value is not None and value not in get_args(kind):
                rule = f"--boxes.{name} must be one of {', '.join(get_args(kind))}"
                raise UserError(rule, repr(value), near(str(value), get_args(kind)))
        if self.sides is not None and (not self.sides or min(self.sides) < 1):
            raise UserError("--boxes.sides must be numbers of pixels, one at least", self.sides)
        for name in ("longest", "eval_side"):
            pixels = getattr(self, name)
            if pixels is not None and pixels < 1:
                raise UserError(f"--boxes.{name} must be a number of pixels", pixels)
        if self.det_tokens is not None and self.det_tokens < 1:
            raise UserError("--boxes.det_tokens must be at least 1", self.det_tokens)
        if self.class_weight is not None and not 0 < self.class_weight < math.inf:
            raise UserError("--boxes.class_weight must be a number above 0", self.class_weight)

    def over(self, recorded: Mapping[str, Any], *, elsewhere: bool = False) -> "BoxFiles":
        """These files, and for what is not given those of a run's configuration.

        Args:
            recorded: of the run.
            elsewhere: whether they are of other data, so that only the recorded sizes and weight hold.

        Example:
            >>> BoxFiles(split="VOC2007").over({"resize": "voc"})
            BoxFiles(split='VOC2007', ..., resize='voc', ...)
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        kept = {name: value for name, value in recorded.items() if not elsewhere or name in (*SIZES, "class_weight")}
        return BoxFiles(**{**kept, **given})
