"""Any other image classifier: usable as an unmasked teacher or as a student with random or third-network masks."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone, QKVReader, SaliencyKind
from vitdistill.types import BackboneOutput, Capture, TokenGrid


class Opaque(Backbone):
    """A network of which only the logits are known (a CNN, say). It has no patches and no saliency."""

    maskable = False

    @property
    def grid(self) -> TokenGrid:
        return TokenGrid(1, 1, 1)

    @property
    def prefix(self) -> int:
        return 0

    @property
    def blocks(self) -> Sequence[Any]:
        return []

    @property
    def image_size(self) -> tuple[int, int]:
        config = getattr(self.net, "pretrained_cfg", None) or {}
        _, height, width = config.get("input_size", (3, 224, 224))
        return int(height), int(width)

    def embed(self, images: Float[Tensor, "b ch height width"]) -> Tensor:
        return images

    def run_blocks(self, tokens: Tensor, capture: Capture, hidden: dict[int, Tensor]) -> Tensor:
        if capture.qkv or capture.hidden or not capture.logits:
            raise UserError(f"{self.name} hands out logits only", remedy="Choose a ViT, DeiT, CaiT or Swin")
        return tokens

    def head(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net(tokens)
        return logits.unsqueeze(1), logits

    def read_qkv(self, block: int) -> QKVReader:
        raise UserError(f"{self.name} hands out logits only", remedy="Choose a ViT, DeiT, CaiT or Swin")

    def saliency(self, output: BackboneOutput, block: int = -1, kind: SaliencyKind = "cls") -> Float[Tensor, "b n"]:
        raise UserError(
            f"{self.name} has no attention to take saliency from",
            remedy="Use --criterion random, teacher, or another network",
        )
