"""Options of methods that need no torch: groups of them, and what text alone tells to be wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal

from vitdistill.errors import UserError, near

Relation = Literal["qk", "vv", "qq", "kk"]
RELATIONS: tuple[str, ...] = Relation.__args__  # type: ignore[attr-defined]

# Backward computes two products per linear map (for inputs and for weights) where forward computes one.
TRAINING_FORWARDS = 3


def training_forwards(trains_body: bool) -> int:
    """Forward passes of a network that a training step of it counts as.

    Args:
        trains_body: whether gradients pass through the network. Those of a classifier alone are not worth counting.
    """
    return TRAINING_FORWARDS if trains_body else 1


@dataclass(frozen=True)
class FeatureDecoder:
    """The decoder of each feature target (blocks x width: S 2 x 384, B 2 x 768, L 4 x 512, H 8 x 640).

    Args:
        width: channels.
        depth: blocks.
        heads: attention heads of each block.
        mlp_ratio: hidden channels of the MLPs, as a multiple of the width.
        drop_path: stochastic depth rate of the last block, rising from 0.
    """

    width: int = 384
    depth: int = 2
    heads: int = 6
    mlp_ratio: float = 4.0
    drop_path: float = 0.1


@dataclass(frozen=True)
class DinoHead:
    """DINO's head, of student and teacher each; it is left out of the exported network.

    Args:
        outputs: how many prototypes the class token is compared with.
        hidden: channels between the linear maps.
        bottleneck: channels in front of the prototypes.
        norm_last: keep the prototypes at length 1; false learns their lengths.
    """

    outputs: int = 65536
    hidden: int = 2048
    bottleneck: int = 256
    norm_last: bool = True


@dataclass(frozen=True)
class PixelDecoder:
    """The MAE decoder of TinyMIM's variants with a pixel loss.

    Args:
        width: channels.
        depth: blocks.
        heads: attention heads of each block.
        norm_pix: predict each patch standardised by its own mean and deviation.
    """

    width: int = 512
    depth: int = 8
    heads: int = 16
    norm_pix: bool = True


def relation_list(relations: str | Sequence[str]) -> tuple[str, ...]:
    """The relations in "qk+vv", or in a list of names.

    Raises:
        UserError: when there is none, one is misspelt, or one is named twice.

    Example:
        >>> relation_list("qk+vv")
        ('qk', 'vv')
    """
    parts = relations.replace(",", "+").split("+") if isinstance(relations, str) else relations
    names = tuple(name.strip().lower() for name in parts if name.strip())
    unknown = [name for name in names if name not in RELATIONS]
    if unknown:
        raise UserError(
            f"relations must be some of {', '.join(RELATIONS)}", repr(unknown[0]), near(unknown[0], RELATIONS)
        )
    if not names or len(set(names)) < len(names):
        raise UserError(f"relations must name at least one of {', '.join(RELATIONS)}, each once", list(names))
    return names


Relations = Annotated[str | Sequence[str], relation_list]


def check_views(large: int, small: int) -> None:
    """
    Raises:
        UserError: when no view of an image has another one to learn from.
    """
    if large < 1 or large + small < 2:
        raise UserError(
            "DINO compares views of an image, so it needs at least two, one of them large",
            f"--views.globals {large} and --views.locals {small}",
            "Use --views.globals 2",
        )


def check_patch_drop(rate: float) -> None:
    """
    Raises:
        UserError: when no patch would be left, or the rate is no share.
    """
    if not 0 <= rate < 1:
        raise UserError("patch_drop must lie in [0, 1)", rate, "0 shows every patch, 0.5 half of them")


PatchDrop = Annotated[float, check_patch_drop]


def check_drop_path(rate: float) -> None:
    """
    Raises:
        UserError: when it is no share of the blocks, or all of them.
    """
    if not 0 <= rate < 1:
        raise UserError("drop_path must lie in [0, 1)", rate)


DropPath = Annotated[float, check_drop_path]


def check_numbers(**values: float | None) -> None:
    """Refuse temperatures and decays of DINO that are out of range.

    Args:
        values: by name, which says what each is.

    Raises:
        UserError: naming the first of them.
    """
    for name, value in values.items():
        if value is None:
            continue
        if name.endswith("temperature") and not 0 < value < inf:
            raise UserError(f"{name} must be positive", value)
        if name.endswith("momentum") and not 0 <= value < 1:
            raise UserError(f"{name} must lie in [0, 1)", value)
