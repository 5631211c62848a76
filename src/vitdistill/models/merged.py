"""Token merging (ToMe, Bolya et al., 2023) in a trained network: each block merges the tokens that are most alike.

It needs no training. A block attends, merges some of its tokens into others, and passes what is left through its MLP,
so later blocks compute less. MaskedKD compares itself with a teacher that does so.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from timm.models.cait import LayerScaleBlock
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone, FusedQKVReader, kind_of
from vitdistill.models.families import as_network
from vitdistill.models.families.cait import CaiT, class_attention_macs
from vitdistill.models.families.eva import RotaryViT
from vitdistill.models.families.vit import ViT
from vitdistill.models.macs import Macs, check_kept, mlp_branch_macs, norm_macs, self_attention_macs
from vitdistill.models.network import Network, check_names_inputs, refuse_opaque
from vitdistill.tokens.merge import match, merge_tokens, traced
from vitdistill.tokens.merge_schedule import MergeSchedule, merged_of, tokens_left
from vitdistill.types import NOTHING, Capture, InputSpec, Output


class MergedTokens(NamedTuple):
    """What leaves the last block.

    Attributes:
        all: special tokens, then those that are left.
        size: of how many of the first tokens each is made; None where none was merged.
        place: where each of the first tokens has ended.
    """

    all: Float[Tensor, "b n d"]
    size: Float[Tensor, "b n"] | None
    place: Int[Tensor, "b m"] | None


class Merged(Network):
    """A network whose blocks merge tokens: it hands out class scores, and no patch can be left out of it.

    It runs the modules of the network beneath, whose weights it shares. Merging nothing is bit for bit that network.

    Attributes:
        merges: tokens to merge in each block; a block merges half of its patches at most.
        proportional: whether a token counts in attention as often as there are tokens in it.

    Example:
        >>> teacher = Merged.over(timm.create_model("deit_small_patch16_224", pretrained=True), 8)
        >>> MaskedKD(student, teacher, keep=1.0)
    """

    def __init__(self, whole: Backbone, merges: Sequence[int], *, proportional: bool = True) -> None:
        """
        Args:
            whole: the network that merges, of a family that can.
            merges: tokens to merge in each block that attends to all tokens.
            proportional: off is the ablation, and for networks that were trained with merging.
        """
        super().__init__(whole.net)
        self._whole = (whole,)  # in a tuple, since the weights are registered once, under `net`
        self.merges, self.proportional = tuple(merges), proportional
        self.sized = whole.sized

    @classmethod
    def over(
        cls,
        network: Network | nn.Module,
        merge: int | str | Sequence[int] | MergeSchedule,
        *,
        proportional: bool = True,
    ) -> "Merged":
        """A network that merges so many tokens.

        Args:
            network: an adapter or a module of timm; its weights are shared.
            merge: tokens of each block: a number (8), a number with its slope over the blocks (8:-1 falls from 16 to
                0), or one for each block (4,0,2).
            proportional: see the class.

        Raises:
            UserError: when tokens of the network cannot be merged, or `merge` is no schedule for its blocks.
        """
        whole = as_network(network).whole
        check_mergeable(whole)
        assert isinstance(whole, Backbone)
        depth = whole.trunk_depth if isinstance(whole, CaiT) else whole.depth
        return cls(whole, MergeSchedule.parse(merge).per_block(depth), proportional=proportional)

    @property
    def whole(self) -> Backbone:
        return self._whole[0]

    @property
    def name(self) -> str:
        return f"{self.whole.name} (merging tokens)"

    @property
    def why_whole(self) -> str:
        return "it merges tokens"

    @property
    def input(self) -> InputSpec:
        return self.whole.input

    def tokens_left(self) -> list[int]:
        """Tokens that leave each block that merges, special tokens included."""
        special = self.whole.specials
        return tokens_left(self.merges, special + self.whole.grid.count, special)

    def described(self) -> dict[str, Any]:
        """What it saves: the tokens that each block merges, those left of all, and its cost, also as a share."""
        macs, special = self.macs().total, self.whole.specials
        return {
            "merge": ",".join(map(str, self.merges)),
            "tokens": self.tokens_left()[-1],
            "of": special + self.whole.grid.count,
            "gmacs": macs / 1e9,
            "share": macs / self.whole.macs().total,
        }

    # --- running it --------------------

    def forward(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        *,
        keep: Int[Tensor, "bm k"] | None = None,
        capture: Capture = NOTHING,
    ) -> Output:
        """
        Raises:
            UserError: when anything but the prediction is asked for: tokens are not those of the patches.
        """
        if keep is not None:
            raise self.cannot_leave_out()
        if capture.points or not capture.head:
            refuse_opaque(self)
        scores = self._head(self.run(inputs))
        first, second = scores if isinstance(scores, tuple) else (scores, None)
        return Output(prediction=first, distilled=second)

    def run(self, inputs: Float[Tensor, "b ch *pixels"]) -> MergedTokens:
        """From the inputs to the tokens that leave the last block that merges."""
        whole, tokens = self.whole, self.whole.embed(inputs)
        size: Tensor | None = None
        place: Tensor | None = None
        tokens = whole.before_blocks(tokens) if isinstance(whole, ViT) else tokens
        for block, merge in zip(whole.blocks, self.merges, strict=False):  # without CaiT's class-attention blocks
            halves = HALVES[kind_of(block)]
            merge = merged_of(merge, tokens.shape[1], whole.specials)
            keys: list[Tensor] = []
            handles = [halves.read_keys(block, keys)] if merge else []
            try:
                log_size = None if size is None or not self.proportional else size.log().to(tokens.dtype)
                tokens = halves.attend(block, tokens, log_size)
            finally:
                for handle in handles:
                    handle.remove()
            if merge:
                matching = match(keys[0].mean(dim=1), merge, whole.specials)
                tokens, size = merge_tokens(tokens, size, matching)
                place = traced(place, matching)
            tokens = halves.feed(block, tokens)
        return MergedTokens(tokens, size, place)

    def _head(self, left: MergedTokens) -> Tensor | tuple[Tensor, Tensor]:
        net, tokens = self.net, left.all
        if isinstance(self.whole, CaiT):
            cls = net.cls_token.expand(len(tokens), -1, -1)
            for block in net.blocks_token_only:
                cls = block(tokens, cls)
            return self.whole.head(torch.cat((cls, tokens), dim=1))[1]
        if left.size is None or net.global_pool != "avg":
            return self.whole.head(tokens)[1]
        # The mean over all patches, as the mean over one token that is their mean.
        tokens, special = net.norm(tokens), self.whole.specials
        weights = left.size[:, special:, None] / self.whole.grid.count
        mean = (tokens[:, special:].to(weights.dtype) * weights).sum(dim=1, keepdim=True).to(tokens.dtype)
        return net.forward_head(torch.cat((tokens[:, :special], mean), dim=1))

    # --- counting --------------------

    def macs(
        self,
        kept: int | None = None,
        capture: Capture = NOTHING,
        *,
        layernorm: bool = True,
        size: tuple[int, int] | None = None,
    ) -> Macs:
        whole = self.whole
        if isinstance(whole, ViT) and not whole.is_countable():
            return super().macs(kept, capture, layernorm=layernorm, size=size)
        check_kept(self, kept)
        all_tokens = tokens = whole.specials + whole.grid.count
        total = whole.macs(layernorm=layernorm)
        for block, left in zip(whole.blocks, self.tokens_left(), strict=False):
            total += self_attention_macs(block, all_tokens, layernorm) * -1
            total += self_attention_macs(block, tokens, layernorm)
            total += mlp_branch_macs(block, tokens, layernorm) * -1 + mlp_branch_macs(block, left, layernorm)
            if left < tokens:
                channels = block.attn.proj.in_features // block.attn.num_heads
                total += Macs(matching=(tokens + 1) // 2 * (tokens // 2) * channels)
            tokens = left
        joined = int(isinstance(whole, CaiT))  # CaiT's class token
        for block in self.net.blocks_token_only if joined else ():
            total += class_attention_macs(block, all_tokens + 1, layernorm) * -1
            total += class_attention_macs(block, tokens + 1, layernorm)
        total += norm_macs(self.net.norm, all_tokens + joined, layernorm) * -1
        return total + norm_macs(self.net.norm, tokens + joined, layernorm)


def check_mergeable(network: Network) -> None:
    """
    Raises:
        UserError: when the tokens of a network cannot be merged: Swin, rotary positions, CNNs, pooling by attention.
    """
    rule = "Tokens can be merged in ViT, DeiT, DeiT3, CLIP, MAE, ConvViT and CaiT"
    remedy = "Choose one of these, or merge no tokens"
    if not network.trains_body:
        raise UserError(rule, f"{network.name}, a frozen body with a linear classifier on it", remedy)
    if isinstance(network, RotaryViT) or not isinstance(network, ViT | CaiT):
        raise UserError(rule, network.name, remedy)
    check_names_inputs(network, rule, remedy)
    trunk = network.blocks[: network.trunk_depth] if isinstance(network, CaiT) else network.blocks
    if not all(kind_of(block) in HALVES for block in trunk):
        raise UserError(rule, f"{network.name}, with blocks of its own", remedy)
    if isinstance(network, ViT) and not all(type(block.attn) is Attention for block in trunk):
        raise UserError(rule, f"{network.name}, with attention of its own", remedy)
    net = network.net
    by_mean = net.global_pool == "avg" and isinstance(network, ViT) and not getattr(net, "pool_include_prefix", False)
    if getattr(net, "attn_pool", None) is not None or not (net.global_pool == "token" or by_mean):
        pools = "attention" if getattr(net, "attn_pool", None) is not None else repr(net.global_pool)
        raise UserError(
            "Tokens can be merged where the head reads the class token, or the mean of all patches",
            f"{network.name}, which pools by {pools}",
            remedy,
        )


# --- the halves of a block -------------------------------------------------------------------------------------------


class Halves(NamedTuple):
    """The two branches of a kind of block, between which tokens are merged.

    Attributes:
        attend: the tokens with what attention adds, from block, tokens, and what is added to the logits of each key.
        feed: the tokens with what the MLP adds, from block and tokens.
        read_keys: a hook that appends the keys of all heads to a list.
    """

    attend: Callable[[Any, Tensor, Tensor | None], Tensor]
    feed: Callable[[Any, Tensor], Tensor]
    read_keys: Callable[[Any, list[Tensor]], RemovableHandle]


def _attend(block: Any, tokens: Tensor, bias: Tensor | None) -> Tensor:
    mask = None if bias is None else bias[:, None, None]
    return tokens + block.drop_path1(block.ls1(block.attn(block.norm1(tokens), attn_mask=mask)))


def _feed(block: Any, tokens: Tensor) -> Tensor:
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))


def _read_keys(block: Any, keys: list[Tensor]) -> RemovableHandle:
    return block.attn.k_norm.register_forward_hook(lambda _m, _inputs, output: keys.append(output))


def _attend_talking(block: Any, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """Its heads are mixed before the softmax, so what counts a key several times is added behind that."""
    handles = []
    if bias is not None:
        by_key = bias[:, None, :, None]  # (b, queries, keys, h)
        handles.append(block.attn.proj_l.register_forward_hook(lambda _m, _inputs, output: output + by_key))
    try:
        return tokens + block.drop_path(block.gamma_1 * block.attn(block.norm1(tokens)))
    finally:
        for handle in handles:
            handle.remove()


def _feed_talking(block: Any, tokens: Tensor) -> Tensor:
    return tokens + block.drop_path(block.gamma_2 * block.mlp(block.norm2(tokens)))


def _read_talking_keys(block: Any, keys: list[Tensor]) -> RemovableHandle:
    reader = FusedQKVReader(block.attn, 0)
    return block.attn.qkv.register_forward_hook(lambda _m, _inputs, output: keys.append(reader.split(output).k))


HALVES: dict[type, Halves] = {
    Block: Halves(_attend, _feed, _read_keys),
    LayerScaleBlock: Halves(_attend_talking, _feed_talking, _read_talking_keys),
}
