"""Masking criteria: who decides which patches the teacher sees (MaskedKD, Sec. 5.1, Table 6).

To add one: subclass `Criterion`, write `scores`, and pass an instance as `MaskedKD(..., criterion=Mine())`; to give it
a name on the command line, add it to `CRITERIA`.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitdistill.models.backbone import Backbone, SaliencyKind
from vitdistill.tokens.grids import transfer
from vitdistill.tokens.select import random_scores, top_k, top_then_random
from vitdistill.types import NOTHING, BackboneOutput, Capture, TokenGrid


@runtime_checkable
class Network(Protocol):
    """A frozen network that can be asked for an output: `methods.teacher.Teacher` is one."""

    backbone: Backbone

    def __call__(self, images: Tensor, *, keep: Tensor | None = None, capture: Capture = NOTHING) -> BackboneOutput: ...


@dataclass
class Scene:
    """What a criterion may look at.

    Attributes:
        images: the batch as the student sees it.
        student: the student's adapter.
        output: the student's pass over all patches, with what `Criterion.capture` asked for.
        teacher: the teacher.
        grid: the grid in which patches are selected.
    """

    images: Float[Tensor, "b ch *pixels"]
    student: Backbone
    output: BackboneOutput
    teacher: Network | None
    grid: TokenGrid


class Criterion:
    """Scores patches; the highest are kept."""

    def capture(self, student: Backbone) -> Capture:
        """What the student's own pass must capture for `scores`; nothing by default."""
        return NOTHING

    def extra_passes(self, teacher: Network | None) -> list[Backbone]:
        """Networks that `scores` runs in full, for the cost that is reported; none by default."""
        return []

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        """Scores in the patch coordinates of `scene.grid`."""
        raise NotImplementedError

    def select(self, scene: Scene, k: int, *, order: Literal["top", "bottom"] = "top") -> Int[Tensor, "b k"]:
        """The `k` patches of highest (or lowest) score, ascending."""
        scores = self.scores(scene)
        return top_k(scores if order == "top" else -scores, k)


class StudentAttention(Criterion):
    """The student's own attention: the method of the paper. Its pass is needed anyway, so this is almost free."""

    def __init__(self, layer: int = -1, kind: SaliencyKind = "cls") -> None:
        self.layer, self.kind = layer, kind

    def capture(self, student: Backbone) -> Capture:
        return student.saliency_capture(self.layer, self.kind)

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        scores = scene.student.saliency(scene.output, self.layer, self.kind)
        return transfer(scores, scene.student.grid, scene.grid)


class NetworkAttention(Criterion):
    """The attention of another frozen network (the paper's DINO): costs that network's full pass every step."""

    def __init__(self, network: Network, layer: int = -1, kind: SaliencyKind = "cls") -> None:
        self.network, self.layer, self.kind = network, layer, kind
        network.backbone.saliency_capture(layer, kind)  # an impossible block is refused now, not in the first step

    def extra_passes(self, teacher: Network | None) -> list[Backbone]:
        return [self.network.backbone]

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        return self.scores_of(self.network, scene)

    def scores_of(self, network: Network, scene: Scene) -> Float[Tensor, "b n"]:
        backbone = network.backbone
        wanted = backbone.saliency_capture(self.layer, self.kind)
        output = network(scene.images, capture=Capture(qkv=wanted.qkv, logits=False))
        return transfer(backbone.saliency(output, self.layer, self.kind), backbone.grid, scene.grid)


class TeacherAttention(NetworkAttention):
    """The teacher's own attention: a full teacher pass before the masked one, so it saves nothing (for comparison)."""

    def __init__(self, layer: int = -1, kind: SaliencyKind = "cls") -> None:
        self.layer, self.kind = layer, kind

    def extra_passes(self, teacher: Network | None) -> list[Backbone]:
        return [] if teacher is None else [teacher.backbone]

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        assert scene.teacher is not None
        return self.scores_of(scene.teacher, scene)


class Random(Criterion):
    """Uniformly random patches, drawn on the device from torch's global generator."""

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        return random_scores(len(scene.images), scene.grid.count, device=scene.images.device)


class MixedWithRandom(Criterion):
    """The best patches by another criterion, the rest of the budget at random (the paper's DINO + Random)."""

    def __init__(self, base: Criterion, random_share: float = 0.5) -> None:
        """
        Args:
            base: scores the patches.
            random_share: share of the kept patches that is drawn at random, in [0, 1]. The paper does not state
                its share; a half is our choice.
        """
        self.base, self.random_share = base, random_share

    def capture(self, student: Backbone) -> Capture:
        return self.base.capture(student)

    def extra_passes(self, teacher: Network | None) -> list[Backbone]:
        return self.base.extra_passes(teacher)

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        return self.base.scores(scene)

    def select(self, scene: Scene, k: int, *, order: Literal["top", "bottom"] = "top") -> Int[Tensor, "b k"]:
        scores = self.scores(scene)
        noise = torch.rand_like(scores)
        return top_then_random(scores if order == "top" else -scores, noise, k, self.random_share)
