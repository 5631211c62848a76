"""Augmentation as options: the published recipes, and what may be changed in them. Needs no torch."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from vitdistill.errors import UserError, near

RecipeName = Literal["deit", "tiny", "finetune", "pretrain", "sound", "flip", "photometric", "none"]
Interpolation = Literal["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"]

# Ranges of the numeric options: lowest, highest, in words. Zero area would leave nothing to crop.
RANGES: dict[str, tuple[float, float, str]] = {
    "scale": (1e-6, 1.0, "above 0, at most 1"),
    "hflip": (0.0, 1.0, "0 to 1"),
    "color_jitter": (0.0, 1.0, "0 to 1"),
    "mixup": (0.0, 1e6, "0 (off) or more"),
    "cutmix": (0.0, 1e6, "0 (off) or more"),
    "mixup_prob": (0.0, 1.0, "0 to 1"),
    "erasing": (0.0, 1.0, "0 to 1"),
    "repeats": (1, 100, "1 to 100"),
    "smoothing": (0.0, 1.0 - 1e-6, "0 or more, below 1"),
    "crop_pct": (1e-2, 1.0, "above 0, at most 1"),
    "freq_mask": (0.0, 1.0, "0 to 1"),
    "time_mask": (0.0, 1.0, "0 to 1"),
}
# What has an effect on pictures alone, and on sounds alone.
OF_PICTURES = ("scale", "hflip", "color_jitter", "auto_augment", "erasing", "crop_pct", "interpolation")
OF_SOUNDS = ("freq_mask", "time_mask")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Augmentation: a published recipe, and what to change in it. Options left out are as the recipe says.

    Args:
        recipe: `deit` (RandAugment, mixup, cutmix, erasing, three repeats; DeiT, Table 9), `tiny` (random resized
            crop and flip, what MaskedKD uses for DeiT-Ti), `finetune` (as `deit`, each image once; MAE, Table 9, and
            TinyMIM), `pretrain` (random resized crop of at least 20% of the area, and flip; nothing that needs
            labels; MAE, Table 8, and TinyMIM), `sound` (SpecAugment alone; AST on ESC-50), `flip` (nothing else),
            `photometric` (flip, brightness, contrast and saturation), or `none` (resize and centre crop only). Of the
            recipes of images, sounds take mixing, repeats, label smoothing, and SpecAugment.
        scale: smallest share of the image's area that the random crop may take, above 0; 1 takes the centre crop
            of validation in its place.
        hflip: probability of a horizontal flip, 0 to 1.
        color_jitter: strength of brightness, contrast and saturation jitter, 0 to 1; without effect next to
            `auto_augment`.
        auto_augment: timm's policy string, e.g. `rand-m9-mstd0.5-inc1`, or `none`.
        mixup: alpha of mixup's Beta distribution; 0 turns it off.
        cutmix: alpha of cutmix's Beta distribution; 0 turns it off.
        mixup_prob: probability that a batch is mixed at all, 0 to 1.
        erasing: probability of random erasing per image, 0 to 1.
        repeats: times that an image stands in the same batch, each time augmented differently (repeated
            augmentation); an epoch keeps its length.
        smoothing: label smoothing, 0 to below 1.
        crop_pct: share of the resized image's edge that the centre crop of validation keeps, above 0.
        interpolation: how images are resized.
        freq_mask: of sounds, width of the widest band of frequencies that SpecAugment leaves out, as a share of the mel
            bins: 0.1875 is 24 of 128; 0 turns it off.
        time_mask: of sounds, length of the longest stretch of time that SpecAugment leaves out, as a share of the
            frames: 0.1875 is 96 of 512; 0 turns it off.
    """

    recipe: RecipeName = "tiny"
    scale: float | None = None
    hflip: float | None = None
    color_jitter: float | None = None
    auto_augment: str | None = None
    mixup: float | None = None
    cutmix: float | None = None
    mixup_prob: float | None = None
    erasing: float | None = None
    repeats: int | None = None
    smoothing: float | None = None
    crop_pct: float | None = None
    interpolation: Interpolation | None = None
    freq_mask: float | None = None
    time_mask: float | None = None

    def resolved(self) -> "ResolvedAugment":
        """The same with every option filled in from the recipe and checked.

        Raises:
            UserError: naming every option that is out of range.
        """
        if self.recipe not in RECIPES:
            raise UserError(
                f"augment.recipe must be one of {', '.join(RECIPES)}", repr(self.recipe), near(self.recipe, RECIPES)
            )
        given = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        merged = replace(RECIPES[self.recipe], **given)
        if errors := _errors(merged):
            raise UserError("Augmentation options must be in range", "; ".join(errors))
        return merged

    def given(self, names: Iterable[str]) -> dict[str, bool]:
        """Which options were chosen beside the recipe, by the names of the command line; for `refuse_given`."""
        return {f"augment.{name}": getattr(self, name) is not None for name in names}

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed, which makes the targets soft and needs even batches."""
        options = self.resolved()
        return options.mixup_prob > 0 and (options.mixup > 0 or options.cutmix > 0)


@dataclass(frozen=True, kw_only=True)
class ResolvedAugment(Augment):
    """An `Augment` in which no option is None."""

    scale: float
    hflip: float
    color_jitter: float
    auto_augment: str
    mixup: float
    cutmix: float
    mixup_prob: float
    erasing: float
    repeats: int
    smoothing: float
    crop_pct: float
    interpolation: Interpolation
    freq_mask: float
    time_mask: float


TINY = ResolvedAugment(
    recipe="tiny",
    scale=0.08,
    hflip=0.5,
    color_jitter=0.0,
    auto_augment="none",
    mixup=0.0,
    cutmix=0.0,
    mixup_prob=1.0,
    erasing=0.0,
    repeats=1,
    smoothing=0.1,
    crop_pct=0.875,
    interpolation="bicubic",
    freq_mask=0.1875,
    time_mask=0.1875,
)
FINETUNE = replace(
    TINY,
    recipe="finetune",
    auto_augment="rand-m9-mstd0.5-inc1",
    mixup=0.8,
    cutmix=1.0,
    erasing=0.25,
)
# crop_pct 1: an image that already has the model's size passes through untouched.
NONE = replace(
    TINY,
    recipe="none",
    scale=1.0,
    hflip=0.0,
    smoothing=0.0,
    crop_pct=1.0,
    freq_mask=0.0,
    time_mask=0.0,
)
RECIPES: dict[str, ResolvedAugment] = {
    "tiny": TINY,
    "deit": replace(FINETUNE, recipe="deit", color_jitter=0.3, repeats=3),
    "finetune": FINETUNE,
    "pretrain": replace(TINY, recipe="pretrain", scale=0.2, smoothing=0.0),
    "sound": replace(TINY, recipe="sound", scale=1.0, hflip=0.0, smoothing=0.0),
    "flip": replace(NONE, recipe="flip", hflip=0.5),
    "photometric": replace(NONE, recipe="photometric", hflip=0.5, color_jitter=0.5),
    "none": NONE,
}


def _errors(options: ResolvedAugment) -> list[str]:
    """Every option that is out of range, with its range."""
    errors = []
    for name, (low, high, words) in RANGES.items():
        value = getattr(options, name)
        if not low <= value <= high:  # NaN fails this as well
            errors.append(f"{name} {value} ({words})")
    if options.interpolation not in get_args(Interpolation):
        errors.append(f"interpolation '{options.interpolation}' ({', '.join(get_args(Interpolation))})")
    known = ("none", *(recipe.auto_augment for recipe in RECIPES.values()))
    if options.auto_augment not in known and (problem := _policy_error(options.auto_augment)):
        errors.append(problem)
    return errors


def _policy_error(policy: str) -> str:
    """Why timm cannot build an augmentation policy; empty when it can."""
    from timm.data.auto_augment import (
        augment_and_mix_transform,
        auto_augment_transform,
        rand_augment_transform,
    )

    kinds = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    build = kinds.get(policy.split("-")[0], auto_augment_transform)
    try:
        build(policy, {"translate_const": 1, "img_mean": (0, 0, 0)})
    except (AssertionError, KeyError, ValueError, TypeError, IndexError):
        return f"auto_augment '{policy}' (a timm policy such as rand-m9-mstd0.5-inc1, or none)"
    return ""
