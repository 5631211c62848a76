"""The adapter interface: how the rest of the package sees any backbone.

An adapter runs the backbone's own modules in the backbone's own order. It never copies a forward pass, replaces a
class or touches a weight; it only decides which patch tokens enter the blocks, and reads what passes through.
To add a backbone family: subclass `Backbone` in a new file and add the class to `ADAPTERS` in `build.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitdistill.errors import UserError
from vitdistill.tokens.gather import keep_patches
from vitdistill.types import NOTHING, QKV, BackboneOutput, Capture, InputSpec, Part, TokenGrid

SaliencyKind = Literal["cls", "patch"]

# timm's defaults for networks that carry no pretrained configuration.
DEFAULT_MEAN, DEFAULT_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module, ABC):
    """One network behind the common interface.

    Attributes:
        net: the untouched network; its `state_dict` is what gets exported.
        maskable: whether `keep` may be given, that is whether patches can be left out of the input.
        sized: whether images must have `image_size`; a teacher without a stated size gets the student's images.
    """

    maskable = True
    sized = True

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net

    # --- what the network is --------------------

    @property
    def name(self) -> str:
        """timm's architecture name where there is one, else the class name."""
        return (getattr(self.net, "pretrained_cfg", None) or {}).get("architecture") or type(self.net).__name__

    @property
    @abstractmethod
    def grid(self) -> TokenGrid:
        """Patches of one input."""

    @property
    @abstractmethod
    def prefix(self) -> int:
        """Prefix tokens (class, distillation, register) that stand before the patches in the blocks."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[Any]:
        """The blocks, in the order in which they run; `Capture` counts along this list."""

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Channels of the tokens that leave the last block."""
        return int(self.net.num_features)

    @property
    def num_classes(self) -> int:
        return int(self.net.num_classes)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input, in pixels."""
        height, width = self.net.patch_embed.img_size
        return int(height), int(width)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One input without its batch dimension: (channels, height, width), or (channels, frames, height, width)."""
        return (3, *self.image_size)

    @property
    def mean(self) -> tuple[float, ...]:
        """Per-channel mean of the input statistics that the network expects, for inputs in 0..1."""
        return tuple((getattr(self.net, "pretrained_cfg", None) or {}).get("mean", DEFAULT_MEAN))

    @property
    def std(self) -> tuple[float, ...]:
        """Per-channel standard deviation that goes with `mean`."""
        return tuple((getattr(self.net, "pretrained_cfg", None) or {}).get("std", DEFAULT_STD))

    @property
    def spec(self) -> InputSpec:
        """What the network takes: for this the data makes its samples ready."""
        return InputSpec(self.input_shape, self.mean, self.std)

    # --- running it --------------------

    @abstractmethod
    def embed(self, images: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b m d"]:
        """Prefix and patch tokens with their positions added, before anything is left out."""

    @abstractmethod
    def run_blocks(self, tokens: Float[Tensor, "b m d"], capture: Capture, hidden: dict[int, Tensor]) -> Tensor:
        """Run the blocks that `capture` makes necessary, storing asked outputs in `hidden`."""

    @abstractmethod
    def head(self, tokens: Tensor) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        """Final norm, pooling and classifier: the tokens that enter the head, and the logits of one or two heads."""

    @abstractmethod
    def saliency(self, output: BackboneOutput, block: int = -1, kind: SaliencyKind = "cls") -> Float[Tensor, "b n"]:
        """Patch saliency in patch coordinates, detached, float32, from a pass with `saliency_capture`."""

    def saliency_capture(self, block: int = -1, kind: SaliencyKind = "cls") -> Capture:
        """What a pass must capture so that `saliency` can be computed from it.

        Raises:
            UserError: when there is no such block, or it has no attention that gives saliency of this kind.
        """
        index = self.block_index(block)
        self.read_qkv(index)
        return Capture(qkv=(index,))

    def forward(
        self,
        images: Float[Tensor, "b ch *pixels"],
        *,
        keep: Int[Tensor, "bm k"] | None = None,
        capture: Capture = NOTHING,
    ) -> BackboneOutput:
        """Run the backbone on all patches, or on the prefix tokens and the patches in `keep`.

        Args:
            images: normalised with `mean` and `std`.
            keep: patch coordinates; positions are added before the others are dropped. With a multiple of the batch,
                rows i * r to (i + 1) * r - 1 are r selections of input i.
            capture: what to hand out besides logits.

        Raises:
            UserError: when `keep` is given to a backbone whose patches cannot be left out.
        """
        if keep is not None and not self.maskable:
            raise UserError(
                f"{self.name} cannot leave out patches, so it cannot be a masked teacher or masked student",
                remedy="Use it with every patch (--keep 1.0), or choose a ViT, DeiT or CaiT",
            )
        tokens = self.embed(images)
        if keep is not None:
            tokens = keep_patches(tokens, keep, prefix=self.prefix)
        output = BackboneOutput()
        with self._reading(capture, output):
            tokens = self.run_blocks(tokens, capture, output.hidden)
        if capture.logits:
            output.tokens, logits = self.head(tokens)
            # A distilled DeiT in distilled training answers with its two heads.
            output.logits, output.distilled_logits = logits if isinstance(logits, tuple) else (logits, None)
        return output

    def compile_blocks(self) -> None:
        """torch.compile each block in place (static shapes: the number of kept patches is fixed).

        Blocks of one shape share their compiled code, except that each drop path rate needs its own.
        """
        import torch._dynamo as dynamo

        # Blocks that differ in their drop path rate, training and evaluation, and every number of kept patches of a
        # schedule are compiled separately; past the default of 8, dynamo falls back to eager with only a warning.
        limit = "recompile_limit" if hasattr(dynamo.config, "recompile_limit") else "cache_size_limit"
        setattr(dynamo.config, limit, max(128, getattr(dynamo.config, limit)))
        for block in self.blocks:
            block.compile(dynamic=False)

    def run_block(self, index: int, *tokens: Tensor, capture: Capture) -> Tensor:
        """Run one block; eagerly if its inside is being read, since compiled code would skip the hooks.

        Under timm's `set_grad_checkpointing` its activations are recomputed in the backward pass.
        """
        block = self.blocks[index]
        eager = block._compiled_call_impl is not None and index in map(self.block_index, capture.hooked)
        run = block.forward if eager else block
        if self.net.grad_checkpointing and self.training:
            return checkpoint(run, *tokens, use_reentrant=False)
        return run(*tokens)

    def block_index(self, block: int) -> int:
        """A block number counted from 0, from one that may be negative.

        Raises:
            UserError: when there is no such block.
        """
        if not -self.depth <= block < self.depth:
            raise UserError(
                f"{self.name} has blocks 0 to {self.depth - 1}", block, "Negative numbers count from the end"
            )
        return block % self.depth

    @abstractmethod
    def read_qkv(self, block: int) -> "QKVReader":
        """How to read q, k and v of one block."""

    def read_part(
        self, block: int, part: Part, found: dict[tuple[int, Part], Tensor]
    ) -> torch.utils.hooks.RemovableHandle:
        """Register a hook that puts a branch of a block into `found[block, part]`; returns its handle.

        Raises:
            UserError: for backbones whose blocks do not show their branches.
        """
        raise UserError(f"{self.name} does not show the branches of its blocks", part, "Choose a ViT or DeiT")

    @contextmanager
    def _reading(self, capture: Capture, output: BackboneOutput) -> Iterator[None]:
        """Forward hooks on the asked blocks, for the length of one pass."""
        handles = []
        try:
            for block in capture.qkv:
                index = self.block_index(block)
                handles += self.read_qkv(index).attach(index, output.qkv)
            for block, part in capture.parts:
                handles.append(self.read_part(self.block_index(block), part, output.parts))
            yield
        finally:
            for handle in handles:
                handle.remove()


class QKVReader(ABC):
    """Reads the queries, keys and values that a block computes anyway."""

    @abstractmethod
    def attach(self, index: int, found: dict[int, QKV]) -> list[torch.utils.hooks.RemovableHandle]:
        """Register hooks that put the block's QKV into `found[index]`; returns their handles."""


class FusedQKVReader(QKVReader):
    """For attention modules with one `qkv` linear, an optional q/k norm and `num_heads` (timm's `Attention`)."""

    def __init__(self, attention: Any) -> None:
        if not hasattr(attention, "qkv") or not hasattr(attention, "num_heads"):
            raise UserError(
                "Token relations and saliency need an attention module with a fused qkv projection",
                type(attention).__name__,
                "Choose another layer or backbone",
            )
        self.attention = attention

    def attach(self, index: int, found: dict[int, QKV]) -> list[torch.utils.hooks.RemovableHandle]:
        def read(_module: nn.Module, _inputs: object, projected: Tensor) -> None:
            found[index] = self.split(projected)

        return [self.attention.qkv.register_forward_hook(read)]

    def split(self, projected: Float[Tensor, "b m d3"]) -> QKV:
        """Views on the projection, one per role; copies nothing unless the block normalises q and k."""
        b, m, _ = projected.shape
        heads = self.attention.num_heads
        q, k, v = projected.reshape(b, m, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        norm_q, norm_k = getattr(self.attention, "q_norm", None), getattr(self.attention, "k_norm", None)
        return QKV(norm_q(q) if norm_q is not None else q, norm_k(k) if norm_k is not None else k, v)
