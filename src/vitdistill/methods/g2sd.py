"""G2SD (Huang et al., CVPR 2023), generic stage: a small masked autoencoder learns what a large one's decoder thinks.

Teacher and student see the same visible patches, both decode all of them; the student's decoder predicts the hidden
tokens of a block in the middle of the teacher's. The second stage, on labels, is `maskedkd` with a distillation token.
"""

from typing import Literal

from torch import nn

from vitdistill.errors import UserError
from vitdistill.methods.masked_modelling import Goal, MaskedModelling
from vitdistill.methods.targets.decoder_hidden import DecoderHidden
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.decoder import Decoder
from vitdistill.models.families import as_network
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.masking import Masking

GOAL = "hidden"
SMALL = 192  # widest encoder (ViT-Ti) with the smaller of the paper's decoders


class G2SD(MaskedModelling):
    """Smooth-L1 between the student's decoder and the normalised hidden tokens of the teacher's, at every token.

    Example:
        >>> method = G2SD(student, MaskedAutoencoder(teacher, its_decoder))
        >>> method(images).loss.backward()
    """

    def __init__(
        self,
        student: Network | nn.Module,
        teacher: Teacher | Network | nn.Module,
        *,
        teacher_block: int | None = None,
        supervise: Literal["all", "masked"] = "all",
        mask_ratio: float = 0.75,
        decoder_width: int | None = None,
        decoder_depth: int = 4,
        decoder_heads: int | None = None,
        decoder_mlp_ratio: float = 4.0,
    ) -> None:
        """
        Args:
            student: the encoder.
            teacher: a `MaskedAutoencoder`: an MAE with its decoder.
            teacher_block: block of the teacher's decoder, counted from 1, whose output is the target; its pass ends
                there. By default half of its blocks: 4 of MAE's 8.
            supervise: compare at all tokens, the class token and visible patches included, or at the masked patches.
            mask_ratio: share of the patches that neither encoder sees, between 0 and 1.
            decoder_width: channels of the student's decoder; by default 128 for encoders up to ViT-Ti's width, else
                256.
            decoder_depth: blocks of the student's decoder.
            decoder_heads: attention heads of the student's decoder; by default 4 up to ViT-Ti's width, else 8.
            decoder_mlp_ratio: hidden channels of the MLPs of the student's decoder, as a multiple of its width.

        Raises:
            UserError: when the teacher has no decoder or other patches, sizes or the ratio are impossible, or the
                student's patches cannot be left out.
        """
        encoder = with_tokens(as_network(student))
        target = DecoderHidden(Teacher.of(teacher, encoder), teacher_block, at=supervise)
        _check_tokens(encoder, target)
        small = encoder.width <= SMALL
        decoder = Decoder(
            encoder.grid,
            encoder.final_specials,
            encoder.width,
            target.channels,
            width=(128 if small else 256) if decoder_width is None else decoder_width,
            depth=decoder_depth,
            heads=(4 if small else 8) if decoder_heads is None else decoder_heads,
            mlp_ratio=decoder_mlp_ratio,
            predictor="mlp",
        )
        super().__init__(encoder, {GOAL: Goal(target, decoder)}, masking=Masking(mask_ratio))


def _check_tokens(student: Backbone, target: DecoderHidden) -> None:
    """
    Raises:
        UserError: when student and teacher do not have the same tokens.
    """
    own, other = student.grid, target.network.grid
    if own != other:
        sides = zip(target.network.input.size, (other.h, other.w), (own.h, own.w), strict=True)
        height, width = (side // cells * new for side, cells, new in sides)
        raise UserError(
            f"Student and teacher must have the same patches; {target.teacher.name} has {other} and {student.name} "
            f"{own}",
            remedy=f"They match with --teacher_args.img_size {height if height == width else [height, width]}",
        )
    specials = student.final_specials, target.network.decoder.prefix
    if target.at == "all" and specials[0] != specials[1]:
        raise UserError(
            "To compare all tokens, student and teacher must have as many special tokens",
            f"{specials[0]} and {specials[1]}",
            "Use --supervise masked, or a student with a class token alone",
        )
