"""How alike the moments of a clip are to a network: cosine similarity of features, frame by frame (MVD, Figs. 3 to 5).

The paper compares "feature maps across different frames of each input video clip via the cosine similarity" and says
no more. Here a time step's feature is the mean over its positions, of the tokens that MVD takes as targets: a block's
output before the final norm, by default the last block's. The matrices of all clips are averaged.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitdistill.data.images.augment import Augment
from vitdistill.data.loader import CorruptLog
from vitdistill.data.samples import ViewOptions
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.evaluation.loading import Reader, Subject
from vitdistill.evaluation.spread import EvenlySpread
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.teacher import FrameTeacher, Teacher
from vitdistill.types import Capture, InputSpec

Role = Literal["image teacher", "video teacher", "model"]

# Of networks over images alone, which say nothing about clips: what VideoMAE and MVD take.
FRAMES, TUBELET = 16, 2


class Wanted(NamedTuple):
    """A network to compare, before it is opened.

    Attributes:
        spec: run directory, timm name, name@weights-file or bundled network.
        role: what it is compared as.
        args: further arguments of its architecture.
    """

    spec: str
    role: Role = "model"
    args: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The last part of a run's path; any other network as the user calls it."""
        return Path(self.spec).resolve().name if Path(self.spec).is_dir() else self.spec

    @property
    def identity(self) -> str:
        """Equal for the same network, however its path is written."""
        place = str(Path(self.spec).resolve()) if Path(self.spec).is_dir() else self.spec
        return f"{place} {sorted((self.args or {}).items())}"


class Compared(NamedTuple):
    """A network to compare, and the block whose output is looked at (negative numbers count from the end)."""

    name: str
    backbone: Backbone
    role: Role = "model"
    block: int = -1


@dataclass(frozen=True)
class Steps:
    """The time steps that all networks share: `frames` of a clip in `count` steps of equal length."""

    frames: int
    count: int

    @property
    def first_frames(self) -> list[int]:
        """Which frame of the clip each step begins with, from 0."""
        return list(range(0, self.frames, self.frames // self.count))

    @property
    def half(self) -> int:
        """Steps in half a clip."""
        return max(1, self.count // 2)


@dataclass(frozen=True)
class Similarity:
    """One network's mean similarity between the time steps of a clip.

    Attributes:
        name: of the network.
        role: what it is compared as.
        block: whose output was compared, from 0.
        matrix: cosine similarities, averaged over clips; symmetric, 1 on the diagonal.
    """

    name: str
    role: Role
    block: int
    matrix: Float[Tensor, "t t"]

    def apart(self, steps: int) -> float:
        """Mean similarity of steps that lie so many steps apart."""
        return float(self.matrix.diagonal(steps).mean())


@dataclass(frozen=True)
class Comparison:
    """What several networks make of the same clips.

    Attributes:
        plain: as the paper compares features, one per network, in the order given.
        centred: the same after each network's mean feature over all clips and steps was subtracted (not in the
            paper). Features that share a large constant part are all alike without that.
        steps: the time steps, rows and columns of every matrix.
        clips: how many were averaged.
        unreadable: paths of those that were left out.
    """

    plain: list[Similarity]
    centred: list[Similarity]
    steps: Steps
    clips: int
    unreadable: tuple[str, ...] = ()


# --- which networks --------------------


def teachers_of(config: dict[str, Any]) -> list[Wanted]:
    """The teachers that a run of `mvd` had, by its configuration; none for other runs."""
    roles: tuple[Role, ...] = ("image teacher", "video teacher")
    keys = [(role, role.replace(" ", "_")) for role in roles]
    return [Wanted(str(config[key]), role, config.get(f"{key}_args")) for role, key in keys if config.get(key)]


def distinct(wanted: Iterable[Wanted]) -> list[Wanted]:
    """Each network once, in the order of first appearance."""
    first: dict[str, Wanted] = {}
    for one in wanted:
        first.setdefault(one.identity, one)
    return list(first.values())


# --- what is compared --------------------


def frame_similarity(features: Float[Tensor, "b t d"]) -> Float[Tensor, "b t t"]:
    """Cosine similarity between the time steps of each clip."""
    unit = F.normalize(features, dim=-1)
    return unit @ unit.mT


def step_features(
    teacher: Teacher, clips: Float[Tensor, "b 3 frames height width"], steps: Steps, block: int = -1
) -> Float[Tensor, "b t d"]:
    """One feature per time step: the mean over its positions of a block's output, before any final norm.

    A network over images sees the first frame of every step, as MVD's image teacher does; one over clips sees them
    whole.

    Args:
        teacher: the network; it brings the clips to its own statistics and size.
        clips: normalised with the statistics that the teacher was told.
        steps: of the clips.
        block: whose output; negative numbers count from the end.

    Raises:
        UserError: when the network has no such block, or hands out no tokens.
    """
    backbone = teacher.backbone
    index = backbone.block_index(block)
    shown = teacher if backbone.input.frames is not None else FrameTeacher.over(teacher, steps.count)
    patches = shown(clips, capture=Capture.at(index, "output", head=False)).tokens(index).patches.float()
    return patches.reshape(len(clips), steps.count, -1, patches.shape[-1]).mean(dim=2)


def common_steps(networks: Sequence[Compared], source: DataSource) -> Steps:
    """The frames and time steps of all networks over clips; without any, every second frame of 16.

    Raises:
        UserError: when they differ, or when there is a single step.
    """
    seen = {n.name: Steps(frames, n.backbone.grid.t) for n in networks if (frames := n.backbone.input.frames)}
    if len(set(seen.values())) > 1:
        each = "; ".join(f"{name} sees {steps.frames} frames in {steps.count} steps" for name, steps in seen.items())
        raise UserError("All networks over clips must see the same frames", each, "Compare them one at a time")
    frames = source.frames or FRAMES
    steps = next(iter(seen.values()), Steps(frames, max(1, frames // TUBELET)))
    if steps.count < 2:
        raise UserError("Frames can be compared from two time steps on", f"{steps.frames} frames in 1 step")
    return steps


@torch.no_grad()
def compare(
    networks: Sequence[Compared],
    source: DataSource,
    *,
    clips: int = 64,
    stride: int | None = None,
    sampling: str = "dense",
    batch_size: int = 8,
    device: str = "auto",
    workers: int | None = None,
) -> Comparison:
    """Similarity matrices of several networks over the same clips of the validation videos.

    Videos are spread evenly over the set; of each the middle clip is taken, read at the frame size of the first
    network over clips (of the first network, if none is), and resized for the others as MVD does for its teachers.

    Args:
        networks: at least one; moved to the device and frozen.
        source: videos.
        clips: how many, at most as many as there are videos.
        stride: frames of the video from one frame of a dense clip to the next; None takes bundled clips whole, and 4
            of others.
        sampling: dense or uniform.
        batch_size: clips per step.
        device: auto, cpu, cuda, ...
        workers: loader processes; None chooses by the data and the cores.

    Raises:
        UserError: when the source holds no videos or none is readable, networks hand out no tokens or disagree about
            the frames of a clip, or features are not finite.
    """
    if clips < 1 or batch_size < 1:
        raise UserError("There must be at least one clip, and one per step", f"{clips} clips, batches of {batch_size}")
    if not source.val.has_frames:
        raise UserError(
            "Frames are compared in videos", f"{source.name}, which holds images", "Give --data moving_digits or videos"
        )
    for network in networks:
        _check(network)
    steps = common_steps(networks, source)
    # Clips are read at the frame size of the first network over clips.
    first = next((n.backbone for n in networks if n.backbone.input.frames), networks[0].backbone)
    options = ViewOptions(augment=Augment(recipe="none"), stride=stride, sampling=sampling)
    spec = InputSpec((3, steps.frames, *first.input.size), first.input.mean, first.input.std)
    source.val.check(spec, options)
    subject = Subject(backbone=first, source=source, options=options, spec=spec)
    reader = Reader(subject, batch_size=batch_size, device=device, workers=workers)
    frozen = [Teacher(network.backbone, mean=first.input.mean, std=first.input.std) for network in networks]
    features: list[list[Tensor]] = [[] for _ in networks]
    corrupt = _SkippedClips()
    for batch, _ in reader.batches(EvenlySpread(source.val, clips), corrupt, "comparing frames"):
        for network, teacher, found in zip(networks, frozen, features, strict=True):
            # In float64 on the CPU, since not every accelerator has it.
            found.append(step_features(teacher, batch, steps, network.block).cpu().double())
    if not features[0]:
        raise UserError("At least one clip must be readable", f"none of {len(corrupt.paths)}")
    whole = [torch.cat(found) for found in features]
    plain = [_similarity(network, found) for network, found in zip(networks, whole, strict=True)]
    centred = [
        _similarity(network, found - found.mean(dim=(0, 1))) for network, found in zip(networks, whole, strict=True)
    ]
    return Comparison(plain, centred, steps, len(whole[0]), tuple(corrupt.paths))


def _similarity(network: Compared, features: Float[Tensor, "b t d"]) -> Similarity:
    if not features.isfinite().all():
        raise UserError(f"The features of {network.name} must be finite", "nan or inf", "Its training has diverged")
    matrix = frame_similarity(features).mean(dim=0).float()
    return Similarity(network.name, network.role, network.backbone.block_index(network.block), matrix)


def _check(network: Compared) -> None:
    """Refuse a network without tokens, before any clip is read."""
    with_tokens(network.backbone)
    network.backbone.block_index(network.block)


class _SkippedClips(CorruptLog):
    """Takes note of unreadable videos, and goes on: a few of few clips are already more than a run bears."""

    def check(self, total: int) -> None:
        return
