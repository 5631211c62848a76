"""Masked modelling: the student sees some patches, and a decoder per target predicts something at the others.

With pixels as the target this is MAE and VideoMAE; with a teacher's features it is masked feature modelling (MVD),
and several targets are co-teaching.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.methods.method import Pass
from vitdistill.methods.targets.target import Target, TargetMethod
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.decoder import Decoder
from vitdistill.tokens.gather import take
from vitdistill.tokens.masking import Masking
from vitdistill.types import StepOutput


@dataclass(frozen=True)
class Goal:
    """One target with the decoder that predicts it and its weight in the loss."""

    target: Target
    decoder: Decoder
    weight: float = 1.0


class MaskedModelling(TargetMethod):
    """Sum over targets of weight * distance(decoder(encoder(visible patches)), target), over the masked patches."""

    def __init__(
        self,
        student: Backbone | nn.Module,
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
        super().__init__(build(student), {name: (goal.target, goal.weight) for name, goal in goals.items()})
        if not self.student.maskable:
            raise UserError(f"{self.student.name} cannot leave out patches", remedy="Choose a ViT or DeiT")
        check_final_norm(self.student)
        if masks_per_clip < 1:
            raise UserError("masks_per_clip must be at least 1", masks_per_clip)
        self.masking, self.masks_per_clip = masking, masks_per_clip
        self.visible: int = masking.visible(self.student.grid)  # refuses impossible ratios
        self.decoders = nn.ModuleDict({name: goal.decoder for name, goal in goals.items()})
        freeze_head(self.student)

    def student_passes(self, progress: float) -> list[Pass]:
        first = Pass(self.student, self.visible)
        return [first, first._replace(times=self.masks_per_clip - 1, embeds=False)]

    def forward(
        self,
        images: Float[Tensor, "b ch *pixels"],
        targets: Int[Tensor, "b"] | Float[Tensor, "b c"] | None = None,
        progress: float = 0.0,
    ) -> StepOutput:
        rows = len(images) * self.masks_per_clip
        kept, masked = self.masking.draw(rows, self.student.grid, device=images.device)
        tokens = self.student(images, keep=kept).tokens
        assert tokens is not None
        return self.weighted(self.losses(images, tokens, kept, masked))

    def losses(
        self,
        images: Float[Tensor, "b ch *pixels"],
        tokens: Float[Tensor, "bm pk d"],
        kept: Int[Tensor, "bm k"],
        masked: Int[Tensor, "bm r"],
    ) -> dict[str, Float[Tensor, ""]]:
        """Every goal's loss, unweighted.

        Args:
            images: normalised with the student's statistics.
            tokens: the encoder's output after its final norm, prefix tokens first.
            kept: patches that it saw, in the order of `tokens`.
            masked: the others.
        """
        terms = {}
        for name, target in self.targets.items():
            values = self.values(target, images)
            # Row i * r + j of the masks is mask j of input i: all masks of an input pick from one copy of its values.
            wanted = take(values, masked.reshape(len(values), -1)).reshape(*masked.shape, -1)
            terms[name] = target.distance(self.decoders[name](tokens, kept, masked), wanted)
        return terms


def freeze_head(student: Backbone) -> None:
    """Keep a classifier that the loss does not reach from training: DDP waits for gradients of all that trains."""
    for name in ("fc_norm", "attn_pool", "head", "head_dist"):
        module = getattr(student.net, name, None)
        if isinstance(module, nn.Module):
            module.requires_grad_(False)


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


def norm_behind_pooling(student: Backbone) -> bool:
    """Whether a network mean-pools first and normalises then (timm's `fc_norm`)."""
    before, behind = (getattr(student.net, name, None) for name in ("norm", "fc_norm"))
    return isinstance(before, nn.Identity) and not isinstance(behind, nn.Identity | None)
