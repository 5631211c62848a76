"""Hidden tokens of a teacher's decoder as a target (G2SD, Huang et al., CVPR 2023, Sec. 3.2)."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.losses.features import smooth_l1
from vitdistill.methods.method import Pass
from vitdistill.methods.targets.target import Target
from vitdistill.models.autoencoder import MaskedAutoencoder
from vitdistill.models.decoder import Where
from vitdistill.models.teacher import Teacher
from vitdistill.types import Capture


class DecoderHidden(Target):
    """What leaves a block of a masked autoencoder's decoder, before any norm, under the student's own mask.

    The teacher's encoder sees the patches that the student sees; its decoder gives every token a value, also those of
    the class token and of the visible patches.
    """

    BETA = 2.0

    def __init__(self, teacher: Teacher, block: int | None = None, *, at: Where = "all") -> None:
        """
        Args:
            teacher: a `MaskedAutoencoder` over the student's patches.
            block: of its decoder, counted from 1; the pass stops behind it. By default half of the decoder's depth.
            at: all tokens (G2SD), all patches, or the masked patches.

        Raises:
            UserError: when the teacher has no decoder, or its decoder no such block.
        """
        network = teacher.network
        if not isinstance(network, MaskedAutoencoder):
            raise UserError(
                f"The teacher must come with its decoder, and {teacher.name} is an encoder alone",
                remedy="Give MAE's full file (name@mae_pretrain_*_full.pth) or a run of `mae`; in Python, "
                "MaskedAutoencoder(encoder, decoder)",
            )
        depth = len(network.decoder.blocks)
        block = (depth + 1) // 2 if block is None else block
        if not 1 <= block <= depth:
            raise UserError(f"teacher_block must lie between 1 and {depth}, the depth of the teacher's decoder", block)
        self.teacher, self.network, self.at = teacher, network, at
        self.block = block - 1
        self._capture = Capture.at(self.block, "output", head=False)

    @property
    def channels(self) -> int:
        return self.network.decoder.width

    @property
    def teachers(self) -> list[Teacher]:
        return [self.teacher]

    def passes(self, visible: int, masks: int = 1) -> list[Pass]:
        return Pass("teacher", self.network, visible, self._capture).over(masks)

    def values(
        self, inputs: Float[Tensor, "b ch *pixels"], kept: Int[Tensor, "bm k"], masked: Int[Tensor, "bm r"]
    ) -> Float[Tensor, "bm m c"]:
        hidden = self.teacher(inputs, keep=kept, capture=self._capture).tokens(self.block).all.float()
        return F.layer_norm(hidden, hidden.shape[-1:], eps=1e-6)

    def distance(self, prediction: Float[Tensor, "b q c"], values: Float[Tensor, "b q c"]) -> Float[Tensor, ""]:
        return smooth_l1(prediction, values, beta=self.BETA, normalise=False)
