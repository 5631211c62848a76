"""The adapter interface of networks with patches: how the rest of the package sees any backbone.

An adapter runs the backbone's own modules in the backbone's own order. It never copies a forward pass, replaces a
class or touches a weight; it only decides which patch tokens enter the blocks, and reads what passes through.
To add a backbone family: subclass `Backbone` in a new file of `families/` and add the class to `ADAPTERS` there.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from vitdistill.errors import UserError, near
from vitdistill.models.names import SaliencyKind
from vitdistill.models.network import Network, refuse_opaque
from vitdistill.tokens.gather import keep_patches
from vitdistill.types import NOTHING, QKV, Capture, InputSpec, Output, Point, TokenGrid, Tokens

Captured = dict[tuple[int, Point], Tokens | QKV]

# Blocks by word (MaskedKD, Table 6: 1, 6 and 12 of 12, counted from 1).
BLOCK_WORDS = ("first", "middle", "last")


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's weights are shared out among processes (torch's `fully_shard`)."""
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)  # whose import takes a while


def kind_of(module: nn.Module) -> type:
    """The class that a module was built as; sharding puts one of its own in front of it."""
    return type(module).__mro__[2] if is_sharded(module) else type(module)


class Backbone(Network, ABC):
    """One network whose patches and blocks are known.

    Attributes:
        has_bias: whether blocks add something to the scores of queries and keys before the softmax.
        blocks_apart: whether a block's weights are looked at in its own pass alone, so that they may be gathered for it
            where they are sharded.
        saliency_by_default: the attention that ranks patches where nobody says which.
    """

    maskable = True
    has_bias = False
    blocks_apart = True
    saliency_by_default: SaliencyKind = "cls"

    # --- what the network is --------------------

    @property
    @abstractmethod
    def grid(self) -> TokenGrid:
        """Patches of one input."""

    @property
    @abstractmethod
    def specials(self) -> int:
        """Special tokens (class, distillation, register) that stand before the patches in the first block."""

    @property
    def final_specials(self) -> int:
        """Special tokens among those that enter the head."""
        return self.specials

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
    def trunk(self) -> nn.Module:
        """The network without a head that has blocks of its own: whose blocks have a stochastic depth rate."""
        return self.net

    @property
    def input(self) -> InputSpec:
        height, width = self.net.patch_embed.img_size
        return InputSpec((self.channels, int(height), int(width)), *self._statistics, self._patch(height, width))

    def _patch(self, height: int, width: int) -> tuple[int, int, int]:
        return 1, height // self.grid.h, width // self.grid.w

    def block_index(self, block: int | str) -> int:
        """A block counted from 0, from a number that may be negative, or from first, middle or last.

        Raises:
            UserError: when there is no such block.
        """
        words = dict(zip(BLOCK_WORDS, (0, (self.depth - 1) // 2, self.depth - 1), strict=True))
        if str(block) in words:
            return words[str(block)]
        if not str(block).lstrip("-").isdigit():
            raise UserError(
                f"A block is {', '.join(BLOCK_WORDS)}, or a block number from 0", repr(block), near(str(block), words)
            )
        if not -self.depth <= int(block) < self.depth:
            raise UserError(
                f"{self.name} has blocks 0 to {self.depth - 1}", block, "Negative numbers count from the end"
            )
        return int(block) % self.depth

    # --- running it --------------------

    @abstractmethod
    def embed(self, inputs: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b m d"]:
        """Special and patch tokens with their positions added, before anything is left out."""

    @abstractmethod
    def run_blocks(self, tokens: Float[Tensor, "b m d"], capture: Capture, captured: Captured) -> Tensor:
        """Run the blocks that `capture` makes necessary, putting the asked outputs into `captured`.

        Args:
            tokens: that enter the first block.
            capture: of which blocks count from 0.
            captured: receives the points "output"; the others are read by hooks.
        """

    @abstractmethod
    def head(self, tokens: Tensor) -> tuple[Tokens, Tensor | tuple[Tensor, Tensor]]:
        """Final norm, pooling and classifier: the tokens that enter the head, and the scores of one or two heads."""

    def forward(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        *,
        keep: Int[Tensor, "bm k"] | None = None,
        capture: Capture = NOTHING,
    ) -> Output:
        """Run the backbone on all patches, or on the special tokens and the patches in `keep`.

        Args:
            inputs: normalised with the statistics of `input`.
            keep: patch coordinates; positions are added before the others are dropped. With a multiple of the batch,
                rows i * r to (i + 1) * r - 1 are r selections of input i.
            capture: what to hand out besides the prediction.

        Raises:
            UserError: when `keep` is given to a backbone whose patches cannot be left out, or there is no such block.
        """
        if keep is not None and not self.maskable:
            raise self.cannot_leave_out()
        numbers = {(block, point): (self.block_index(block), point) for block, point in capture.points}
        wanted = Capture(frozenset(numbers.values()), capture.head)
        captured: Captured = {}
        output = Output(grid=self.grid, kept=keep)
        with self._reading(wanted, captured):
            tokens = self.run(inputs, keep, wanted, captured)
            if capture.head:
                output.final, scores = self.finish(tokens, inputs, keep, captured)
                # A distilled DeiT in distilled training answers with its two heads.
                output.prediction, output.distilled = scores if isinstance(scores, tuple) else (scores, None)
        output.captured = {asked: captured[counted] for asked, counted in numbers.items()}
        return output

    def run(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        keep: Int[Tensor, "bm k"] | None,
        capture: Capture,
        captured: Captured,
    ) -> Tensor:
        """From the inputs to the tokens that leave the blocks; patches are left out on the way.

        For families whose blocks take more than tokens (rotary positions), which must be left out along with these.
        """
        tokens = self.embed(inputs)
        if keep is not None:
            tokens = keep_patches(tokens, keep, prefix=self.specials)
        return self.run_blocks(tokens, capture, captured)

    def finish(
        self,
        tokens: Tensor,
        inputs: Float[Tensor, "b ch *pixels"],
        keep: Int[Tensor, "bm k"] | None,
        captured: Captured,
    ) -> tuple[Tokens, Tensor | tuple[Tensor, Tensor]]:
        """From the tokens that leave the blocks to the prediction; by default `head`.

        For families whose head also goes by the size of the inputs, or by what leaves earlier blocks.
        """
        return self.head(tokens)

    def run_block(self, index: int, *arguments: Tensor | None, capture: Capture) -> Tensor:
        """Run one block; eagerly if its inside is being read, since compiled code would skip the hooks.

        Under timm's `set_grad_checkpointing` its activations are recomputed in the backward pass.
        """
        block = self.blocks[index]
        read = any(block == index and point != "output" for block, point in capture.points)
        run = block.forward if block._compiled_call_impl is not None and read else block
        if self.net.grad_checkpointing and self.training:
            return checkpoint(run, *arguments, use_reentrant=False)
        return run(*arguments)

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

    # --- looking inside --------------------

    def final_capture(self) -> Capture:
        """What a pass must capture so that it shows the tokens behind the final norm; by default it runs the head."""
        return NOTHING

    @abstractmethod
    def saliency(self, output: Output, block: int = -1, kind: SaliencyKind = "cls") -> Float[Tensor, "b n"]:
        """Patch saliency in patch coordinates, detached, float32, from a pass with `saliency_capture`."""

    def saliency_capture(self, block: int = -1, kind: SaliencyKind = "cls") -> Capture:
        """What a pass must capture so that `saliency` can be computed from it.

        Raises:
            UserError: when there is no such block, or it has no attention that gives saliency of this kind.
        """
        if kind == "pool":
            raise UserError(
                "The saliency 'pool' needs a network that pools its patches by attention (SigLIP, Perception Encoder)",
                self.name,
                "Use --saliency cls or patch",
            )
        if kind == "cls+dist" and getattr(self.net, "dist_token", None) is None:
            raise UserError(
                "The saliency 'cls+dist' needs a network with a distillation token (AST, distilled DeiT)",
                self.name,
                "Use --saliency cls",
            )
        if kind == "det":
            raise UserError(
                "The saliency 'det' needs a network with detection tokens (YOLOS)", self.name, "Use --saliency cls"
            )
        if kind == "decoder":
            raise UserError(
                "The saliency 'decoder' needs a Segmenter whose decoder is a mask transformer",
                self.name,
                "Use --saliency cls or patch",
            )
        self.read_qkv(self.block_index(block))
        return Capture.at(block, "qkv")

    @abstractmethod
    def read_qkv(self, block: int) -> "QKVReader":
        """How to read q, k and v of one block (from 0)."""

    def read_branch(self, block: int, point: Point, captured: Captured) -> RemovableHandle:
        """Register a hook that puts a branch of a block (from 0) into `captured[block, point]`; returns its handle.

        Raises:
            UserError: for backbones whose blocks do not show their branches.
        """
        raise UserError(f"{self.name} does not show the branches of its blocks", point, "Choose a ViT or DeiT")

    def reached(
        self,
        capture: Capture,
        roles: frozenset[str] = frozenset("qkv"),
        *,
        prediction: bool = True,
        special: bool = True,
    ) -> set[nn.Parameter]:
        """The parameters on which what a pass hands out can depend.

        Args:
            capture: of the pass; one that runs up to the head reaches all of the body.
            roles: which of queries, keys and values are used of the points "qkv".
            prediction: whether the prediction is used, and not only the tokens that enter the head.
            special: whether special tokens are used, and not only the patches; patches depend on them as well, but for
                CaiT's.

        Raises:
            UserError: for a family that does not know, when the pass stops early.
        """
        if not capture.head:
            raise UserError(f"{self.name} does not tell what a pass that stops early trains", remedy="Choose a ViT")
        return set(self.net.parameters()) - (set() if prediction else self.head_parameters)

    @property
    def head_parameters(self) -> set[nn.Parameter]:
        """Parameters behind the tokens that enter the head: pooling and classifiers."""
        modules = (getattr(self.net, name, None) for name in ("fc_norm", "attn_pool", "head", "head_dist"))
        return {p for module in modules if isinstance(module, nn.Module) for p in module.parameters()}

    @contextmanager
    def _reading(self, capture: Capture, captured: Captured) -> Iterator[None]:
        """Forward hooks on the asked blocks, for the length of one pass."""
        handles: list[RemovableHandle] = []
        try:
            for block, point in capture.points:
                if point == "qkv":
                    handles += self.read_qkv(block).attach(block, captured)
                elif point != "output":
                    handles.append(self.read_branch(block, point, captured))
            yield
        finally:
            for handle in handles:
                handle.remove()


def with_tokens(network: Network) -> Backbone:
    """The network, if its tokens are known.

    Raises:
        UserError: when it hands out its prediction only.
    """
    if not isinstance(network, Backbone):
        refuse_opaque(network)
    return network


class QKVReader(ABC):
    """Reads the queries, keys and values that a block computes anyway."""

    @abstractmethod
    def attach(self, index: int, captured: Captured) -> list[RemovableHandle]:
        """Register hooks that put the block's QKV into `captured[index, "qkv"]`; returns their handles."""


class FusedQKVReader(QKVReader):
    """For attention modules with one `qkv` linear, an optional q/k norm and `num_heads` (timm's `Attention`)."""

    def __init__(self, attention: Any, specials: int) -> None:
        if not hasattr(attention, "qkv") or not hasattr(attention, "num_heads"):
            raise UserError(
                "Token relations and saliency need an attention module with a fused qkv projection",
                type(attention).__name__,
                "Choose another layer or backbone",
            )
        self.attention, self.specials = attention, specials

    def attach(self, index: int, captured: Captured) -> list[RemovableHandle]:
        def read(_module: nn.Module, _inputs: object, projected: Tensor) -> None:
            captured[index, "qkv"] = self.split(projected)

        return [self.attention.qkv.register_forward_hook(read)]

    def split(self, projected: Float[Tensor, "b m d3"]) -> QKV:
        """Views on the projection, one per role; copies nothing unless the block normalises q and k."""
        b, m, _ = projected.shape
        heads = self.attention.num_heads
        q, k, v = projected.reshape(b, m, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        norm_q, norm_k = getattr(self.attention, "q_norm", None), getattr(self.attention, "k_norm", None)
        q, k = norm_q(q) if norm_q is not None else q, norm_k(k) if norm_k is not None else k
        return QKV(q, k, v, self.specials)
