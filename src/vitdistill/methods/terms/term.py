"""The interface of a term: one thing that a student learns from a teacher's pass.

To add a term: subclass `Term` in a file of its own; `Distillation` takes any list of them. For a name on the command
line, write a frozen dataclass of its options with a method `build(student, teacher)`, and add a line to `Terms` in
`methods/terms/options.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone
from vitdistill.models.network import Network
from vitdistill.tokens.gather import take
from vitdistill.tokens.grids import transfer_features
from vitdistill.types import Capture, Output, Tokens


class Term(nn.Module, ABC):
    """What a student learns from a teacher's pass.

    Its parameters (projections) are trained along with the student and dropped at export.

    Attributes:
        weights: of its losses, by the names that `forward` gives them; 1 where a name is missing.
        compares_predictions: whether the teacher must predict what the student does.
        separable: whether its losses are means over the samples of a batch, so that those of its parts, weighted by
            their sizes, add up to them.
        uses_labels: whether `forward` takes the batch's targets as a third argument.
    """

    weights: dict[str, float]
    compares_predictions: ClassVar[bool] = False
    separable: ClassVar[bool] = False
    uses_labels: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.weights = {}

    @abstractmethod
    def captures(self) -> tuple[Capture, Capture]:
        """What the student's pass, and the teacher's, must hand out. A teacher stops behind the last point asked."""

    @abstractmethod
    def forward(self, student: Output, teacher: Output) -> dict[str, Float[Tensor, ""]]:
        """The named, unweighted losses.

        Args:
            student: a pass over what the student sees.
            teacher: a pass over what the teacher sees; its tensors carry no gradient.
        """

    def reached(self, student: Network) -> set[nn.Parameter]:
        """The student's parameters on which the losses depend; by default all that its pass uses."""
        capture, _ = self.captures()
        return student.reached(capture) if isinstance(student, Backbone) else set(student.net.parameters())


def check_class_token(what: str, network: Backbone, blocks: Sequence[int]) -> None:
    """
    Raises:
        UserError: when a network has no class token in the blocks.
    """
    if getattr(network.net, "cls_token", None) is None:
        raise UserError(f"{what}, and {network.name} has none", remedy="Choose a ViT or DeiT")
    for block in blocks:
        network.saliency_capture(block)  # refuses CaiT's trunk, where there is no class token


Shared = Literal["all", "class", "none"]


def shared_special(student: Backbone, teacher: Backbone) -> Shared:
    """Which special tokens two networks can compare: all where they have the same, else their class tokens, or none."""
    own, other = (getattr(network.net, "cls_token", None) is not None for network in (student, teacher))
    if student.specials == teacher.specials and own == other:
        return "all"
    return "class" if own and other else "none"


def without_registers(tokens: Float[Tensor, "*b m d"], specials: int, shared: Shared) -> Float[Tensor, "*b m2 d"]:
    """The special tokens that both networks have, and the patches.

    Args:
        tokens: special ones first, the class token before all others.
        specials: how many special tokens there are.
        shared: which of them stay.
    """
    if shared == "all":
        return tokens
    patches = tokens[..., specials:, :]
    return patches if shared == "none" else torch.cat((tokens[..., :1, :], patches), dim=-2)


def common_patches(
    student: Output, own: Tokens, teacher: Output, other: Tokens
) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b k d2"]]:
    """Patch tokens of both passes at the patches that both saw.

    Where grids differ, the student's patches are moved to the teacher's grid by bilinear interpolation, or the
    teacher's to a masked student's, whose map has holes. Where one of the two saw a selection, the other's patches at
    that selection are taken.

    Args:
        student: the student's pass.
        own: tokens of it.
        teacher: the teacher's pass.
        other: tokens of it.
    """
    assert student.grid is not None and teacher.grid is not None
    mine, theirs = own.patches, other.patches
    if student.kept is teacher.kept:  # both saw all, or the same selection
        same = student.kept is not None or student.grid == teacher.grid
        return (mine if same else transfer_features(mine, student.grid, teacher.grid)), theirs
    if student.kept is not None:
        assert teacher.kept is None, "student and teacher saw different selections"
        return mine, take(transfer_features(theirs, teacher.grid, student.grid), student.kept)
    assert teacher.kept is not None
    return take(transfer_features(mine, student.grid, teacher.grid), teacher.kept), theirs
