"""Any other image classifier: usable as an unmasked teacher or as a student with random or third-network masks."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone, QKVReader, SaliencyKind
from vitdistill.types import BackboneOutput, Capture, TokenGrid


class Opaque(Backbone):
    """A network of which only the logits are known (a CNN, say). It has no patches and no saliency."""

    maskable = False

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.sized = "input_size" in (getattr(net, "pretrained_cfg", None) or {})

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
    def num_classes(self) -> int:
        classes = getattr(self.net, "num_classes", None)
        if classes is None:
            raise UserError(
                "A network given as a module must state its number of classes",
                type(self.net).__name__,
                "Set its attribute `num_classes`",
            )
        return int(classes)

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

    def head(self, tokens: Tensor) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        logits = self.net(tokens)
        scores = logits[0] if isinstance(logits, tuple) else logits  # two heads: a distilled EfficientFormer, say
        return scores.unsqueeze(1), logits

    def read_qkv(self, block: int) -> QKVReader:
        raise UserError(f"{self.name} hands out logits only", remedy="Choose a ViT, DeiT, CaiT or Swin")

    def saliency_capture(self, block: int = -1, kind: SaliencyKind = "cls") -> Capture:
        raise self._no_attention()

    def saliency(self, output: BackboneOutput, block: int = -1, kind: SaliencyKind = "cls") -> Float[Tensor, "b n"]:
        raise self._no_attention()

    def _no_attention(self) -> UserError:
        return UserError(
            f"{self.name} has no attention to take saliency from",
            remedy="Use --criterion random, or take the saliency from a ViT, DeiT, CaiT or Swin",
        )
