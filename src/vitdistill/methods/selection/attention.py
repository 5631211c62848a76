"""Criteria that rank patches by the attention of the student, of the teacher, or of a third network."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.methods.selection.criterion import Attention, Criterion, Scene
from vitdistill.models.backbone import Backbone, SaliencyKind
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.grids import transfer
from vitdistill.types import Capture


class StudentAttention(Criterion):
    """The student's own attention: the method of the paper. Its pass is needed anyway, so this is almost free."""

    def __init__(self, layer: int | str = "last", kind: SaliencyKind | None = None) -> None:
        self.layer, self.kind = layer, kind

    @classmethod
    def of(cls, attention: Attention) -> "StudentAttention":
        return cls(attention.layer, attention.kind)

    def capture(self, student: Network) -> Capture:
        backbone = attentive(student)
        return replace(backbone.saliency_capture(*where(backbone, self.layer, self.kind)), head=False)

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        student = attentive(scene.student)
        scores = student.saliency(scene.output, *where(student, self.layer, self.kind))
        return transfer(scores, scene.output.grid or student.grid, scene.grid)


class NetworkAttention(Criterion):
    """The attention of another frozen network (the paper's DINO): costs that network's pass every step."""

    def __init__(self, network: Teacher, layer: int | str = "last", kind: SaliencyKind | None = None) -> None:
        self.network, self.layer, self.kind = network, layer, kind
        self._capture(network)  # an impossible block is refused now, not in the first step

    @classmethod
    def of(cls, attention: Attention) -> "Criterion":
        if attention.network is None:
            raise UserError("The criterion 'network' needs a third network", remedy="Name it with --network")
        return cls(attention.network, attention.layer, attention.kind)

    def ranking(self, teacher: Teacher | None) -> list[tuple[Teacher, Capture]]:
        return [(self.network, self._capture(self.network))]

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        return self._scores_of(self.network, scene)

    def _capture(self, network: Teacher) -> Capture:
        backbone = attentive(network.network)
        return replace(backbone.saliency_capture(*where(backbone, self.layer, self.kind)), head=False)

    def _scores_of(self, network: Teacher, scene: Scene) -> Float[Tensor, "b n"]:
        backbone = network.backbone
        output = network(scene.inputs, capture=self._capture(network))
        scores = backbone.saliency(output, *where(backbone, self.layer, self.kind))
        return transfer(scores, output.grid or backbone.grid, scene.grid)


class TeacherAttention(NetworkAttention):
    """The teacher's own attention, for comparison: a pass up to the ranking block comes before the masked one.

    With the last block and half of the patches the two cost more than one pass over all of them; an early one saves.
    """

    def __init__(self, layer: int | str = "last", kind: SaliencyKind | None = None) -> None:
        self.layer, self.kind = layer, kind

    @classmethod
    def of(cls, attention: Attention) -> "TeacherAttention":
        return cls(attention.layer, attention.kind)

    def ranking(self, teacher: Teacher | None) -> list[tuple[Teacher, Capture]]:
        return [] if teacher is None else [(teacher, self._capture(teacher))]

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        assert scene.teacher is not None
        return self._scores_of(scene.teacher, scene)


def where(network: Backbone, layer: int | str, kind: SaliencyKind | None) -> tuple[int, SaliencyKind]:
    """The block whose attention ranks patches, and which attention of it."""
    return network.block_index(layer), network.saliency_by_default if kind is None else kind


def attentive(network: Network) -> Backbone:
    """The network, if it has attention to take saliency from.

    Raises:
        UserError: when it has none.
    """
    if not isinstance(network, Backbone):
        raise UserError(
            f"{network.name} has no attention to take saliency from",
            remedy="Use --criterion random, or take the saliency from a ViT, DeiT, CaiT or Swin",
        )
    return network
