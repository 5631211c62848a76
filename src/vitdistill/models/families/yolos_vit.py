"""The adapter of YOLOS: patches may be left out, and every batch may have a size of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.models.backbone import Captured, SaliencyKind
from vitdistill.models.families.vit import ViT
from vitdistill.models.families.yolos import COORDINATES, Size
from vitdistill.models.macs import Macs, linears
from vitdistill.models.sizes import pair
from vitdistill.tokens.gather import keep_patches
from vitdistill.tokens.saliency import attention_of_queries
from vitdistill.types import NOTHING, Capture, InputSpec, Output, TokenGrid


class YolosViT(ViT):
    """Adapter of `Yolos`: special tokens are the class token and the detection tokens.

    It has no fixed size: `grid` and `input` are those of the tables of positions, and within `fit` those of the inputs
    at hand. Where patches are left out, the positions between the blocks are gathered for those that are there.
    """

    sized = False
    padded = True
    purpose = "finds objects"
    task = "boxes"
    saliency_by_default: SaliencyKind = "det"

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self._size: Size | None = None

    @contextmanager
    def fit(self, size: Sequence[int]) -> Iterator[None]:
        before = self._size
        self.net.grid_of(size)  # refuses what patches do not fill
        height, width = size
        self._size = height, width
        try:
            yield
        finally:
            self._size = before

    @property
    def grid(self) -> TokenGrid:
        return TokenGrid(1, *self.net.grid_of(self.input.size))

    @property
    def input(self) -> InputSpec:
        height, width = self._size or pair(self.net.patch_embed.img_size)
        return InputSpec((self.channels, height, width), *self._statistics, (1, *pair(self.net.patch_embed.patch_size)))

    @property
    def detections(self) -> int:
        return int(self.net.det_tokens)

    # --- running it --------------------

    def forward(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        *,
        keep: Int[Tensor, "bm k"] | None = None,
        capture: Capture = NOTHING,
    ) -> Output:
        with self.fit(inputs.shape[-2:]):
            return super().forward(inputs, keep=keep, capture=capture)

    def embed(self, inputs: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b m d"]:
        return self.net.embed(inputs)

    def run(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        keep: Int[Tensor, "bm k"] | None,
        capture: Capture,
        captured: Captured,
    ) -> Tensor:
        tokens = self.embed(inputs)
        if keep is not None:
            tokens = keep_patches(tokens, keep, prefix=self.specials)
        between: list[tuple[Any, ...]] = [(table, keep) for table in self.net.mid_positions((self.grid.h, self.grid.w))]
        beside = [(), *(between or [()] * (self.depth - 1))]
        return self.run_each(self.before_blocks(tokens), beside, capture, captured)

    def run_block(self, index: int, *arguments: Tensor | None, capture: Capture) -> Tensor:
        return super().run_block(index, self._placed(*arguments), capture=capture)

    def project(self, block: Any, tokens: Float[Tensor, "b m d"], *beside: Any) -> None:
        super().project(block, self._placed(tokens, *beside))

    def _placed(self, tokens: Any, table: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Tokens that enter a block, with the positions that are added before it."""
        if table is None:
            return tokens
        if keep is None:
            return tokens + table
        return tokens + keep_patches(table.expand(len(keep), -1, -1), keep, prefix=self.specials)

    # --- its predictions --------------------

    def named(self, prediction: Tensor) -> Int[Tensor, "b q"]:
        """The class of each detection token's object; -1 where there is none."""
        scores = prediction[..., :-COORDINATES]
        found = scores.argmax(dim=-1)
        return torch.where(found == scores.shape[-1] - 1, -1, found)

    def in_order(self, prediction: Tensor, order: Int[Tensor, "c"]) -> Tensor:
        rest = torch.arange(self.num_classes, prediction.shape[-1], device=order.device)
        return prediction.index_select(-1, torch.cat((order, rest)))

    def reached(
        self,
        capture: Capture,
        roles: frozenset[str] = frozenset("qkv"),
        *,
        prediction: bool = True,
        special: bool = True,
    ) -> set[nn.Parameter]:
        reached = super().reached(capture, roles, prediction=prediction, special=special)
        within_first = not any(self.block_index(block) for block, _ in capture.points)
        return reached - {self.net.mid_pos_embed} if within_first and not capture.head else reached

    @property
    def head_parameters(self) -> set[nn.Parameter]:
        return {*self.net.class_embed.parameters(), *self.net.bbox_embed.parameters()}

    # --- looking inside --------------------

    def saliency_capture(self, block: int = -1, kind: SaliencyKind = "det") -> Capture:
        return super().saliency_capture(block, "cls" if kind == "det" else kind)

    def saliency(self, output: Output, block: int = -1, kind: SaliencyKind = "det") -> Float[Tensor, "b n"]:
        if kind != "det":
            return super().saliency(output, block, kind)
        q, k, _, specials = output.qkv(block)
        return attention_of_queries(q[:, :, 1:specials], k, prefix=specials)

    def macs(
        self,
        kept: int | None = None,
        capture: Capture = NOTHING,
        *,
        layernorm: bool = True,
        size: tuple[int, int] | None = None,
    ) -> Macs:
        with self.fit(size or self.input.size):
            total = super().macs(kept, capture, layernorm=layernorm)
        if not capture.head:
            return total
        of_one = linears(self.net.class_embed) + linears(self.net.bbox_embed)
        return total + Macs(head=of_one * self.detections)
