"""Masked modelling: the student sees some patches, and a decoder per target predicts something at the others.

With pixels as the target this is MAE and VideoMAE; with a teacher's features it is masked feature modelling (MVD),
with those of a teacher's decoder, at all tokens, the generic stage of G2SD; and several targets are co-teaching.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.methods.method import Method, Pass, freeze_unreached
from vitdistill.methods.targets.target import Target
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.decoder import Decoder, tokens_at
from vitdistill.models.families import as_network
from vitdistill.models.network import Network, check_names_inputs
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.masking import Masking
from vitdistill.types import NOTHING, Step


@dataclass(frozen=True)
class Goal:
    """One target with the decoder that predicts it and its weight in the loss."""

    target: Target
    decoder: Decoder
    weight: float = 1.0


class MaskedModelling(Method):
    """Sum over targets of weight * distance(decoder(encoder(visible patches)), target), over the masked patches, or
    wherever a target says that it is compared.

    Example:
        >>> goal = Goal(Pixels(student.grid, (16, 16)), Decoder(student.grid, 1, student.width, 16 * 16 * 3))
        >>> MaskedModelling(student, {"pixels": goal}, masking=Masking(0.75))
    """

    student: Backbone

    def __init__(
        self,
        student: Network | nn.Module,
        goals: Mapping[str, Goal],
        *,
        masking: Masking = Masking(),
        masks_per_clip: int = 1,
    ) -> None:
        """
        Args:
            student: the encoder, whose patches can be left out.
            goals: by the name under which each loss is reported.
            masking: which patches the encoder does not see.
            masks_per_clip: masks of each input; all share its embedding and one pass of every teacher.

        Raises:
            UserError: when patches cannot be left out, the decoders would get tokens without a final norm, there is no
                goal, or the ratio leaves nothing to do.
        """
        network = as_network(student)
        check_names_inputs(network, "Masked modelling trains a ViT without a head")
        if not network.maskable:
            raise UserError(f"{network.name} cannot leave out patches", remedy="Choose a ViT, DeiT or CaiT")
        super().__init__(with_tokens(network))
        if not goals:
            raise UserError("At least one target is needed")
        check_final_norm(self.student)
        if masks_per_clip < 1:
            raise UserError("masks_per_clip must be at least 1", masks_per_clip)
        self.masking, self.masks_per_clip = masking, masks_per_clip
        self.visible: int = masking.visible(self.student.grid)  # refuses impossible ratios
        self.targets = {name: goal.target for name, goal in goals.items()}
        self.weights = {name: goal.weight for name, goal in goals.items()}
        self.decoders = nn.ModuleDict({name: goal.decoder for name, goal in goals.items()})
        freeze_unreached(self.student, self.student.reached(NOTHING, prediction=False))

    def forward(
        self, inputs: Float[Tensor, "b ch *pixels"], targets: Tensor | None = None, progress: float = 0.0
    ) -> Step:
        # The encoder sees the visible patches alone.
        rows = len(inputs) * self.masks_per_clip
        kept, masked = self.masking.draw(rows, self.student.grid, device=inputs.device)
        tokens = self.student(inputs, keep=kept).final
        assert tokens is not None

        # Each decoder predicts its target at the masked ones, or where else the target wants it.
        losses = {}
        for name, target in self.targets.items():
            with self.clock("teacher") if target.teachers else nullcontext(), torch.no_grad():
                values = target.values(inputs, kept, masked)
            prediction = self.decoders[name](tokens.all, kept, masked, target.at)
            losses[name] = target.distance(prediction, tokens_at(values, kept, masked, target.at))
        loss = torch.stack([self.weights[name] * value for name, value in losses.items()]).sum()
        return Step(loss, {name: value.detach() for name, value in losses.items()})

    @property
    def teachers(self) -> list[Teacher]:
        return [teacher for target in self.targets.values() for teacher in target.teachers]

    def passes(self, progress: float) -> list[Pass]:
        student = Pass("student", self.student, self.visible).over(self.masks_per_clip)
        teachers = (target.passes(self.visible, self.masks_per_clip) for target in self.targets.values())
        return [*student, *(one for passes in teachers for one in passes)]


def check_final_norm(student: Backbone) -> None:
    """A decoder takes the encoder's tokens behind its final norm.

    Raises:
        UserError: when the norm is behind the pooling, where no decoder sees it.
    """
    if norm_behind_pooling(student):
        raise UserError(
            "A decoder needs the encoder's final norm on the tokens",
            f"{student.name}, which has it behind its mean pooling",
            "Begin with a network that was not fine-tuned, or build it with fc_norm=False",
        )


def norm_behind_pooling(student: Network) -> bool:
    """Whether a network mean-pools first and normalises then (timm's `fc_norm`)."""
    before, behind = (getattr(student.net, name, None) for name in ("norm", "fc_norm"))
    return isinstance(before, nn.Identity) and not isinstance(behind, nn.Identity | None)
