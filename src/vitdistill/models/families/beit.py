"""BEiT and BEiT v2: attention adds a learned bias for each pair of tokens, by where they lie to each other."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.beit import Block
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from vitdistill.errors import UserError
from vitdistill.models.backbone import Captured, SaliencyKind
from vitdistill.models.families.eva import RotaryViT
from vitdistill.tokens.gather import keep_patches
from vitdistill.tokens.saliency import attention_received, cls_attention
from vitdistill.types import Capture, Output

MOST = 2**29  # elements of the biases of one block, which are one set an image as soon as patches are left out


class BiasedViT(RotaryViT):
    """Adapter over `timm.models.beit.Beit`.

    Its blocks are built as those of EVA, with biases in place of rotations. A bias is added by the call that computes
    the softmax, and where patches are left out, it is gathered for the pairs of tokens that are there.
    """

    has_bias = True
    blocks_apart = False  # saliency adds a block's bias

    def embed(self, inputs: Float[Tensor, "b ch height width"]) -> Float[Tensor, "b m d"]:
        tokens = self.net.patch_embed(inputs)
        tokens = torch.cat((self.net.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        return self.net.pos_drop(tokens if self.net.pos_embed is None else tokens + self.net.pos_embed)

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
            heads = self.blocks[0].attn.num_heads
            if len(tokens) * heads * tokens.shape[1] ** 2 > MOST:
                raise UserError(
                    f"{self.name} needs a bias for each pair of tokens of each image and head, at most {MOST} of them",
                    f"{len(tokens)} images, {heads} heads, {tokens.shape[1]} tokens",
                    "Use a smaller batch, or --keep 1.0",
                )
        shared = None if self.net.rel_pos_bias is None else self.net.rel_pos_bias()
        return self.run_each(tokens, [(shared, keep)] * self.depth, capture, captured)

    def run_block(self, index: int, *arguments: Tensor | None, capture: Capture) -> Tensor:
        tokens, shared, keep = arguments
        assert tokens is not None
        if self.net.grad_checkpointing and self.training:
            return checkpoint(self._run_gathering, self.blocks[index], tokens, shared, keep, use_reentrant=False)
        return self._run_gathering(self.blocks[index], tokens, shared, keep)

    def project(self, block: Any, tokens: Float[Tensor, "b m d"], *beside: Any) -> None:
        shared, keep = beside
        self._run_gathering(block.attn, block.norm1(tokens), shared, keep)

    def _run_gathering(self, module: Any, tokens: Tensor, shared: Tensor | None, keep: Tensor | None) -> Tensor:
        if keep is None:
            return module(tokens, shared)
        with _Gather(keep, self.specials):
            return module(tokens, shared)

    def compile_blocks(self) -> None:
        """Nothing: compiled code would not be seen gathering."""

    def is_known(self, block: Any) -> bool:
        return isinstance(block, Block)

    # --- looking inside --------------------

    def saliency(self, output: Output, block: int = -1, kind: SaliencyKind = "cls") -> Float[Tensor, "b n"]:
        kind = self.saliency_kind(block, kind)
        q, k, _, specials = output.qkv(block)
        bias = self._bias(self.block_index(block))
        if kind == "cls":
            return cls_attention(q[:, :, 0], k, prefix=specials, bias=None if bias is None else bias[:, :, 0])
        return attention_received(q, k, prefix=specials, bias=bias)

    def _bias(self, block: int) -> Float[Tensor, "1 h m m"] | None:
        """What the softmax of a block adds where all patches are there."""
        attention, shared = self.blocks[block].attn, self.net.rel_pos_bias
        parts = [attention._get_rel_pos_bias()] if attention.relative_position_bias_table is not None else []
        parts += [shared()[None]] if shared is not None else []
        return torch.stack(parts).sum(dim=0) if parts else None

    def reached(
        self,
        capture: Capture,
        roles: frozenset[str] = frozenset("qkv"),
        *,
        prediction: bool = True,
        special: bool = True,
    ) -> set[nn.Parameter]:
        reached = super().reached(capture, roles, prediction=prediction, special=special)
        attends = any(self.block_index(block) > 0 or point != "qkv" for block, point in capture.points)
        shared = self.net.rel_pos_bias
        return reached if shared is None or attends or capture.head else reached - set(shared.parameters())


class _Gather(TorchFunctionMode):
    """Takes from the biases given to `scaled_dot_product_attention` those between tokens that are there."""

    def __init__(self, keep: Int[Tensor, "b k"], specials: int) -> None:
        super().__init__()
        special = torch.arange(specials, device=keep.device).expand(len(keep), -1)
        self.seen = torch.cat((special, keep + specials), dim=1)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and kwargs.get("attn_mask") is not None:
            bias = kwargs["attn_mask"].flatten(0, -3)  # (h, m, m), the same for every image
            bias = bias[:, self.seen[:, :, None], self.seen[:, None, :]].transpose(0, 1)
            kwargs = {**kwargs, "attn_mask": bias}
        return function(*args, **kwargs)
