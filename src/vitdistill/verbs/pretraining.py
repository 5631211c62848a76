"""What the verbs that pre-train without labels share: a student without a classifier, initialised as MAE does."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.models.backbone import with_tokens
from vitdistill.models.decoder import xavier
from vitdistill.models.families.video_vit import VideoPositions, VideoViT, check_video
from vitdistill.models.network import Network
from vitdistill.models.surgery.positions import fix_positions
from vitdistill.verbs.arguments import Model, Positions, is_fresh
from vitdistill.verbs.common import make_student


def make_pretraining_student(
    spec: Model,
    source: DataSource,
    *,
    args: dict[str, Any] | None,
    image_size: int | None,
    pretrained: bool = False,
    positions: Positions = "sincos",
    initialise: Callable[[nn.Module], object] = xavier,
) -> Network:
    """A student without a classifier; a fresh one with MAE's initialisation and, by default, fixed positions.

    A fresh one that mean-pools has its final norm in front of the pooling, where a decoder sees it.

    Raises:
        UserError: when the network takes clips.
    """
    from vitdistill.methods.masked_modelling import norm_behind_pooling

    fresh = is_fresh(spec, pretrained)
    make = partial(make_student, spec, source, image_size=image_size, pretrained=pretrained, drop_path=0.0, classes=0)
    student = make(args=args)
    if fresh and norm_behind_pooling(student) and "fc_norm" not in (args or {}):
        student = make(args={**(args or {}), "fc_norm": False})
    if isinstance(student, VideoViT):
        raise UserError("The student must see images", student.name, "Pre-train video ViTs with `videomae` or `mvd`")
    if fresh:
        initialise(student.net)
        if getattr(student.net, "cls_token", None) is not None:
            nn.init.normal_(student.net.cls_token, std=0.02)
        if positions == "sincos":
            fix_positions(with_tokens(student))
    return student


def as_built(net: nn.Module) -> None:
    """Leave timm's own initialisation, which is DINO's, too: linear maps from a truncated normal, biases 0."""


def make_video_student(
    spec: Model,
    source: DataSource,
    *,
    args: dict[str, Any] | None,
    image_size: int | None,
    positions: VideoPositions,
    drop_path: float = 0.0,
) -> VideoViT:
    """A video ViT without a classifier; a fresh one with the method's positions and MAE's initialisation.

    Frames are those in `args`, else those of bundled data for a fresh network, and its own for another.

    Raises:
        UserError: when the network takes images.
    """
    options, fresh = dict(args or {}), is_fresh(spec, pretrained=False)
    if fresh and source.frames is not None:
        options.setdefault("frames", source.frames)
    if fresh:
        options.setdefault("positions", positions)
    student = make_student(
        spec, source, args=options, image_size=image_size, pretrained=False, drop_path=drop_path, classes=0
    )
    network = check_video(student, "student")
    if fresh:
        xavier(network.net)
    return network
