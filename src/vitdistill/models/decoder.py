"""The decoder of masked modelling: from the encoder's visible tokens to a prediction at every masked patch."""

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.families.video_vit import QueryValueBias
from vitdistill.models.surgery.drop_path import rising
from vitdistill.tokens.gather import take
from vitdistill.tokens.positions import TABLES
from vitdistill.types import TokenGrid


class Decoder(nn.Module):
    """MAE's decoder (He et al., 2022, Sec. 3): embed, add mask tokens and fixed positions, blocks, norm, predict.

    Attention does not see the order of tokens, so they stand as [prefix, visible, masked] and nothing is unshuffled.
    Submodules have the names of the official MAE weights without their `decoder_`.
    """

    pos_embed: Tensor

    def __init__(
        self,
        grid: TokenGrid,
        prefix: int,
        encoder_width: int,
        channels: int,
        *,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        positions: Literal["sincos_2d", "sincos_3d", "sinusoid_1d"] = "sincos_2d",
        embed_bias: bool = True,
        key_bias: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        """
        Args:
            grid: patches of the input.
            prefix: prefix tokens of the encoder, decoded along with the patches.
            encoder_width: channels of the encoder's tokens.
            channels: values to predict per patch.
            width: channels of the decoder's tokens, a multiple of 4 and of `heads`.
            depth: blocks.
            heads: attention heads of each block.
            mlp_ratio: hidden channels of the MLPs, as a multiple of `width`.
            positions: MAE's table (sincos_2d), MVD's (sincos_3d) or VideoMAE's (sinusoid_1d).
            embed_bias: whether the map from the encoder has a bias (VideoMAE's has none).
            key_bias: whether keys have a bias (VideoMAE's and MVD's have none).
            drop_path: stochastic depth rate of the last block, rising from 0.

        Raises:
            UserError: when the sizes do not go together.
        """
        super().__init__()
        if width < 1 or depth < 1 or heads < 1 or width % heads:
            raise UserError(
                "The decoder needs at least one block, and a width that is a multiple of its heads",
                f"width {width}, depth {depth}, {heads} heads",
            )
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.prefix = prefix
        self.embed = nn.Linear(encoder_width, width, bias=embed_bias)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        table = TABLES[positions](width, grid)
        self.register_buffer("pos_embed", torch.cat((torch.zeros(1, prefix, width), table), dim=1))
        rates = rising(drop_path, depth)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=norm, drop_path=rate) for rate in rates
        )
        if not key_bias:
            QueryValueBias.replace_in(self.blocks)
        self.norm = norm(width)
        self.pred = nn.Linear(width, channels)
        nn.init.normal_(self.mask_token, std=0.02)
        xavier(self)

    def forward(
        self,
        tokens: Float[Tensor, "b pk d"],
        kept: Int[Tensor, "b k"],
        masked: Int[Tensor, "b r"],
        everywhere: bool = False,
    ) -> Float[Tensor, "b q c"]:
        """Predictions at the masked patches, or with `everywhere` at [kept, masked].

        Args:
            tokens: what the encoder made of its prefix tokens and the kept patches, in the order of `kept`.
            kept: patches that the encoder saw.
            masked: patches to predict.
            everywhere: predict the kept ones as well, for pictures.
        """
        positions = self.pos_embed[:, self.prefix :].expand(len(kept), -1, -1)
        hidden = self.embed(tokens)
        prefix, visible = hidden[:, : self.prefix], hidden[:, self.prefix :]
        hidden = torch.cat(
            (
                prefix + self.pos_embed[:, : self.prefix].to(prefix.dtype),
                visible + take(positions, kept).to(visible.dtype),
                (self.mask_token + take(positions, masked)).to(visible.dtype),
            ),
            dim=1,
        )
        for block in self.blocks:
            hidden = block(hidden)
        first = self.prefix + (0 if everywhere else kept.shape[1])
        return self.pred(self.norm(hidden[:, first:]))

    def official(self) -> dict[str, Tensor]:
        """The weights under the names of MAE's release."""
        return official_names(self.state_dict())

    def load_official(self, weights: dict[str, Tensor]) -> None:
        """Load the decoder part of an official MAE file.

        Raises:
            UserError: when it has no decoder (encoder-only files), or one of another shape.
        """
        own = self.official()
        wrong = [name for name, value in own.items() if name in weights and weights[name].shape != value.shape]
        missing = [name for name in own if name not in weights]
        extra = [name for name in weights if name not in own]
        if not weights:
            raise UserError(
                "Weights for the decoder must hold one, and this file is encoder-only",
                remedy="Use the full file (MAE's mae_pretrain_*_full.pth, or mae.safetensors of a run of `mae`)",
            )
        if wrong or missing or extra:
            first = (wrong or missing or extra)[0]
            raise UserError(
                "The decoder in the weights must have the width, depth and patches of this one",
                f"{len(wrong)} tensors of another shape, {len(missing)} missing, {len(extra)} unexpected ({first})",
                "Set the decoder's width, depth and heads as in the file",
            )
        self.load_state_dict({_short(name): value for name, value in weights.items()})


def official_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A decoder's state dict under the names of MAE's release."""
    return {name if name == "mask_token" else f"decoder_{name}": value for name, value in state.items()}


def _short(name: str) -> str:
    return name.removeprefix("decoder_")


def xavier(module: nn.Module) -> None:
    """MAE's initialisation: Xavier-uniform linear maps (a patch embedding counts as one), zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
        elif isinstance(part, nn.Conv2d | nn.Conv3d):
            nn.init.xavier_uniform_(part.weight.view(len(part.weight), -1))
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
