"""Manifold distillation (Hao et al., NeurIPS 2022): how similar patches are to one another, in several blocks."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.losses.manifold import draw_rows, inter_image, intra_image, random_sample
from vitdistill.methods.terms.term import Term, common_patches
from vitdistill.models.backbone import Backbone
from vitdistill.models.network import Network
from vitdistill.types import Capture, Output


class ManifoldTerm(Term):
    """Squared differences of the cosines between patches: within an image, between images, and of random patches.

    Each is the mean over pairs of blocks. With a masked teacher, the student's patches that the teacher saw are
    compared; where grids differ, they are moved to the teacher's. Special tokens take no part.

    Example:
        >>> term = ManifoldTerm(student, teacher.backbone, student_blocks=(0, 11), teacher_blocks=(0, 23))
        >>> Distillation(student, [Lesson(teacher, [Logits(), term])], task=Classification(1000))
    """

    def __init__(
        self,
        student: Backbone,
        teacher: Backbone,
        *,
        student_blocks: Sequence[int],
        teacher_blocks: Sequence[int],
        rows: int = 192,
        weight: float = 1.0,
        intra: float = 4.0,
        inter: float = 0.1,
        random: float = 0.2,
    ) -> None:
        """
        Args:
            student: its patches must form a grid.
            teacher: its patches must form a grid with as many time steps.
            student_blocks: blocks whose outputs are compared, from 0.
            teacher_blocks: with which blocks of the teacher, one each.
            rows: random patches of a batch.
            weight: of the three losses together (beta).
            intra: weight of patches within an image.
            inter: weight of images at the same position.
            random: weight of random patches.

        Raises:
            UserError: when blocks do not pair up or do not exist, or a number is out of range.
        """
        super().__init__()
        pairs = list(zip(student_blocks, teacher_blocks, strict=False))
        if not pairs or len(student_blocks) != len(teacher_blocks):
            raise UserError(
                "manifold needs as many blocks of the student as of the teacher, at least one",
                f"{list(student_blocks)} and {list(teacher_blocks)}",
                "Set --terms.manifold.student_blocks and --terms.manifold.teacher_blocks",
            )
        if rows < 2:
            raise UserError("--terms.manifold.rows must be at least 2", rows)
        self.pairs = [(student.block_index(own), teacher.block_index(other)) for own, other in pairs]
        self.rows = rows
        self.weights = {
            "manifold_intra": weight * intra,
            "manifold_inter": weight * inter,
            "manifold_random": weight * random,
        }

    def captures(self) -> tuple[Capture, Capture]:
        own, other = zip(*self.pairs, strict=True)
        return (
            Capture(frozenset((block, "output") for block in own), head=False),
            Capture(frozenset((block, "output") for block in other), head=False),
        )

    def reached(self, student: Network) -> set[nn.Parameter]:
        assert isinstance(student, Backbone)
        return student.reached(self.captures()[0], special=False)

    def forward(self, student: Output, teacher: Output) -> dict[str, Float[Tensor, ""]]:
        losses: list[list[Tensor]] = []
        for own, other in self.pairs:
            mine, theirs = common_patches(student, student.tokens(own), teacher, teacher.tokens(other))
            rows = draw_rows(mine.shape[0] * mine.shape[1], self.rows, device=mine.device)  # new for each pair
            losses.append([intra_image(mine, theirs), inter_image(mine, theirs), random_sample(mine, theirs, rows)])
        means = [torch.stack(values).mean() for values in zip(*losses, strict=True)]
        return dict(zip(self.weights, means, strict=True))
