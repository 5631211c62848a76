"""The interface of a criterion: who ranks the patches (MaskedKD, Sec. 5.1, Table 6).

To add one: subclass `Criterion` in a file of its own and write `scores`; any method with a `Selector` takes an
instance. For a name on the command line, add a line to `CRITERIA` in `selection/__init__.py`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitdistill.models.backbone import SaliencyKind
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.select import top_k, top_then_random
from vitdistill.types import Capture, Output, TokenGrid

Order = Literal["top", "bottom"]


@dataclass
class Scene:
    """What a criterion may look at.

    Attributes:
        inputs: the batch as the student sees it.
        student: the student's adapter.
        output: the student's pass over all patches, with what `Criterion.capture` asked for.
        teacher: the teacher.
        grid: the grid in which patches are selected.
        noise: what chance goes by, for draws that can be repeated; None draws it.
        padding: patches that show nothing of the input, since it was filled up to the size of its batch: they are kept
            last. None where there are none.
    """

    inputs: Float[Tensor, "b ch *pixels"]
    student: Network
    output: Output
    teacher: Teacher | None
    grid: TokenGrid
    noise: Float[Tensor, "b n"] | None = None
    padding: Bool[Tensor, "b n"] | None = None

    def last(self, scores: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Scores in which padding comes behind everything else; above -inf, which marks what is already chosen."""
        return scores if self.padding is None else scores.masked_fill(self.padding, torch.finfo(scores.dtype).min)


@dataclass(frozen=True)
class Attention:
    """Whose attention ranks patches, where a criterion looks at attention.

    Attributes:
        layer: block, a number from 0 (negative from the end), or first, middle or last.
        kind: attention of the class token ("cls"), received from all patches ("patch"), of the pooling head ("pool"),
            or of the detection tokens ("det"); None is what the network says (`saliency_by_default`).
        network: the frozen network of the criteria that ask a third one.
    """

    layer: int | str = "last"
    kind: SaliencyKind | None = None
    network: Teacher | None = None


class Criterion:
    """Scores patches; the highest are kept.

    Attributes:
        draws: whether chance has a part in it, that goes by the scene's noise.
    """

    draws = False

    @classmethod
    def of(cls, attention: Attention) -> "Criterion":
        """The criterion for a selector's options; those that look at no attention ignore them."""
        return cls()

    def capture(self, student: Network) -> Capture:
        """What the student's own pass must capture for `scores`, its prediction not included; nothing by default.

        Raises:
            UserError: when the student cannot hand it out.
        """
        return Capture(head=False)

    def waits(self, student: Network) -> bool:
        """Whether the student's pass must be over before patches can be ranked: where it captures something of it."""
        wanted = self.capture(student)
        return wanted.head or bool(wanted.points)

    def ranking(self, teacher: Teacher | None) -> list[tuple[Teacher, Capture]]:
        """Frozen networks that `scores` asks, and where their passes stop, for the cost report; none by default."""
        return []

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        """Scores in the patch coordinates of `scene.grid`."""
        raise NotImplementedError

    def pick(self, scores: Float[Tensor, "b n"], scene: Scene, k: int, *, order: Order = "top") -> Int[Tensor, "b k"]:
        """The `k` patches of highest (or lowest) score, ascending; several `k` cost one pass of who ranks them."""
        return top_k(scene.last(scores if order == "top" else -scores), k)

    def select(self, scene: Scene, k: int, *, order: Order = "top") -> Int[Tensor, "b k"]:
        """The `k` patches of a scene that are kept, ascending."""
        return self.pick(self.scores(scene), scene, k, order=order)


class MixedWithRandom(Criterion):
    """The best patches by another criterion, the rest of the budget at random (the paper's DINO + Random)."""

    draws = True

    def __init__(self, base: Criterion, random_share: float = 0.5) -> None:
        """
        Args:
            base: scores the patches.
            random_share: share of the kept patches that is drawn at random, in [0, 1]. The paper does not state
                its share; a half is our choice.
        """
        self.base, self.random_share = base, random_share

    def capture(self, student: Network) -> Capture:
        return self.base.capture(student)

    def ranking(self, teacher: Teacher | None) -> list[tuple[Teacher, Capture]]:
        return self.base.ranking(teacher)

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        return self.base.scores(scene)

    def pick(self, scores: Float[Tensor, "b n"], scene: Scene, k: int, *, order: Order = "top") -> Int[Tensor, "b k"]:
        noise = torch.rand_like(scores) if scene.noise is None else scene.noise
        ranked = scene.last(scores if order == "top" else -scores)
        return top_then_random(ranked, scene.last(noise), k, self.random_share)
