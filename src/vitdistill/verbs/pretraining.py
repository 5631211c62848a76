"""What the verbs that pre-train without labels share: a student without a classifier, initialised as MAE does."""

from pathlib import Path
from typing import Any, Literal

from torch import nn

from vitdistill.data.source import DataSource
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import BUNDLED
from vitdistill.models.decoder import xavier
from vitdistill.models.positions import fix_positions
from vitdistill.models.video_vit import VideoPositions, VideoViT, check_video
from vitdistill.verbs.common import Model, make_student

Positions = Literal["sincos", "learned"]


def make_pretraining_student(
    spec: Model,
    source: DataSource,
    *,
    args: dict[str, Any] | None,
    image_size: int | None,
    pretrained: bool,
    positions: Positions,
) -> Backbone:
    """A student without a classifier; a fresh one with MAE's initialisation and, by default, fixed positions."""
    student = make_student(
        spec, source, args=args, image_size=image_size, pretrained=pretrained, drop_path=0.0, classes=0
    )
    if is_fresh(spec, pretrained):
        xavier(student.net)
        if getattr(student.net, "cls_token", None) is not None:
            nn.init.normal_(student.net.cls_token, std=0.02)
        if positions == "sincos":
            fix_positions(student)
    return student


def make_video_student(
    spec: Model,
    source: DataSource,
    *,
    args: dict[str, Any] | None,
    frames: int | None,
    image_size: int | None,
    positions: VideoPositions,
    drop_path: float,
) -> VideoViT:
    """A video ViT without a classifier; a fresh one with the method's positions and MAE's initialisation.

    Raises:
        UserError: when the network takes images.
    """
    options = dict(args or {})
    wanted = frames or source.frames
    if wanted is not None:
        options.setdefault("frames", wanted)
    if is_fresh(spec, pretrained=False):
        options.setdefault("positions", positions)
    student = make_student(
        spec, source, args=options, image_size=image_size, pretrained=False, drop_path=drop_path, classes=0
    )
    network = check_video(student, "student")
    if is_fresh(spec, pretrained=False):
        xavier(network.net)
    return network


def is_fresh(spec: Model, pretrained: bool) -> bool:
    """Whether a student begins with random weights."""
    loaded = isinstance(spec, nn.Module) or "@" in spec or spec in BUNDLED or Path(spec).is_dir()
    return not loaded and not pretrained
