"""ViTs with rotary positions: DINOv3, EVA-02, Perception Encoder, RoPE-ViT, Lingbot, Sapiens; and EVA without them."""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers import apply_keep_indices_nlc
from timm.models.eva import EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from vitdistill.errors import UserError
from vitdistill.models.backbone import Captured, QKVReader
from vitdistill.models.families.vit import ViT
from vitdistill.models.macs import Macs, linears, mlp_macs, norm_macs
from vitdistill.tokens.gather import keep_patches
from vitdistill.types import QKV, Capture, Point, Tokens


class RotaryViT(ViT):
    """Adapter over `timm.models.eva.Eva`.

    Its blocks rotate queries and keys of patches by angles that say where they lie (special tokens are not rotated),
    so the angles are left out along with the patches: one set for all blocks, or, in mixed RoPE, one a block. Keeping
    every patch passes them on as they are.
    """

    def embed(self, inputs: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b m d"]:
        return self.net._pos_embed(self.net.patch_embed(inputs))[0]

    def run(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        keep: Int[Tensor, "bm k"] | None,
        capture: Capture,
        captured: Captured,
    ) -> Tensor:
        tokens, angles = self.net._pos_embed(self.net.patch_embed(inputs))
        if keep is not None and tokens.shape[1] != self.specials + self.grid.count:
            raise UserError(
                f"{self.name} drops patches at random (patch_drop_rate), so no others can be left out",
                remedy="Build it without patch_drop_rate",
            )
        mixed = self.net.rope_mixed
        if keep is not None:
            tokens = keep_patches(tokens, keep, prefix=self.specials)
            if angles is not None:
                # (n, 2d) -> (b, 1, k, 2d), or with angles of their own per block and head -> (depth, b, h, k, 2d).
                angles = apply_keep_indices_nlc(tokens, angles, keep)
                angles = angles.transpose(0, 1) if mixed else angles.unsqueeze(1)
        beside = [(angles[index] if angles is not None and mixed else angles,) for index in range(self.depth)]
        return self.run_each(self.net.norm_pre(tokens), beside, capture, captured)

    def project(self, block: Any, tokens: Float[Tensor, "b m d"], *beside: Any) -> None:
        # timm's attention has no module behind which queries and keys are rotated, so it runs whole.
        block.attn(tokens if is_post_norm(block) else block.norm1(tokens), *beside)

    def is_known(self, block: Any) -> bool:
        return isinstance(block, EvaBlock | EvaBlockPostNorm)

    # --- looking inside --------------------

    def read_qkv(self, block: int) -> QKVReader:
        return SoftmaxReader(self.blocks[block].attn, self.specials)

    def read_branch(self, block: int, point: Point, captured: Captured) -> RemovableHandle:
        module = self.blocks[block]

        def keep_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            captured[block, point] = Tokens(inputs[0], self.specials)

        # Drop path gets what the branch adds when it is not dropped, LayerScale included.
        behind_attention = module.mlp if is_post_norm(module) else module.norm2
        reads = {"attention": module.drop_path1, "attention_residual": behind_attention, "ffn": module.drop_path2}
        return reads[point].register_forward_pre_hook(keep_input)

    def reached(
        self,
        capture: Capture,
        roles: frozenset[str] = frozenset("qkv"),
        *,
        prediction: bool = True,
        special: bool = True,
    ) -> set[nn.Parameter]:
        reached = super().reached(capture, roles, prediction=prediction, special=special)
        rope = getattr(self.net, "rope", None)
        rotations = set() if rope is None else set(rope.parameters())  # learned in mixed RoPE
        rotates = any(self.block_index(block) > 0 or point != "qkv" for block, point in capture.points)
        rotates = rotates or capture.head or (bool(capture.points) and bool(roles & set("qk")))
        return reached if rotates else reached - rotations

    def reached_within(self, block: Any, points: set[Point], roles: frozenset[str]) -> set[nn.Parameter]:
        attention = block.attn
        parts: list[Any] = []
        if "qkv" in points:
            parts += [] if is_post_norm(block) else [block.norm1]
            parts += [attention.qkv] if attention.qkv is not None else []
            for role in sorted(roles):
                names = (f"{role}_proj", f"{role}_bias", f"{role}_norm")
                parts += [part for name in names if (part := getattr(attention, name, None)) is not None]
        if points & {"attention", "attention_residual"}:
            parts += [block.norm1, attention, getattr(block, "gamma_1", None)]
        return {
            parameter
            for part in parts
            for parameter in (part.parameters() if isinstance(part, nn.Module) else [part])
            if isinstance(parameter, nn.Parameter)
        }

    # --- counting --------------------

    def is_countable(self) -> bool:
        return all(map(self.is_known, self.blocks))

    def block_macs(self, block: Any, tokens: int, layernorm: bool) -> Macs:
        macs = Macs(mlp=mlp_macs(block) * tokens) + norm_macs(block.norm2, tokens, layernorm)
        for module in block.mlp.modules():
            macs += norm_macs(module, tokens, layernorm)
        macs += norm_macs(block.norm1, tokens, layernorm) if is_post_norm(block) else Macs()
        return macs + self.project_macs(block, tokens, layernorm)

    def project_macs(self, block: Any, tokens: int, layernorm: bool) -> Macs:
        attention = block.attn
        macs = Macs(
            projections=linears(attention) * tokens,
            attention=2 * tokens**2 * attention.proj.in_features,
        )
        macs += Macs() if is_post_norm(block) else norm_macs(block.norm1, tokens, layernorm)
        # Norms of q and k see every head as a row of its own.
        rows = {
            "q_norm": attention.num_heads,
            "k_norm": getattr(attention, "num_kv_heads", attention.num_heads),
            "norm": 1,
        }
        for name, count in rows.items():
            macs += norm_macs(getattr(attention, name, None), tokens * count, layernorm)
        return macs


def is_post_norm(block: Any) -> bool:
    """Whether a block normalises what its branches add, and not what they take."""
    return isinstance(block, EvaBlockPostNorm)


class SoftmaxReader(QKVReader):
    """Reads what an attention module hands to the softmax: q and k after their norms and rotation, and, where several
    heads share keys and values, these repeated for each.

    timm shows it nowhere but in the call of `scaled_dot_product_attention`, so this call is watched while the module
    runs; what it computes stays the same.
    """

    def __init__(self, attention: Any, specials: int) -> None:
        if not attention.fused_attn:
            raise UserError(
                "Token relations and saliency of rotary attention need timm's fused attention",
                remedy="Run without TIMM_FUSED_ATTN=0",
            )
        self.attention, self.specials = attention, specials

    def attach(self, index: int, captured: Captured) -> list[RemovableHandle]:
        watch = _Watch(index, captured, self.specials)

        def begin(_module: nn.Module, _inputs: object) -> None:
            watch.__enter__()

        def end(_module: nn.Module, _inputs: object, _output: object) -> None:
            watch.__exit__(None, None, None)

        return [
            self.attention.register_forward_pre_hook(begin),
            self.attention.register_forward_hook(end, always_call=True),  # also after an error
        ]


class _Watch(TorchFunctionMode):
    """Notes the arguments of `scaled_dot_product_attention`."""

    def __init__(self, index: int, captured: Captured, specials: int) -> None:
        super().__init__()
        self.index, self.captured, self.specials = index, captured, specials

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            self.captured[self.index, "qkv"] = QKV(args[0], args[1], args[2], self.specials)
        return function(*args, **(kwargs or {}))
