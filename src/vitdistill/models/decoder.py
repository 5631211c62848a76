"""The decoder of masked modelling: from the encoder's visible tokens to a prediction at every masked patch, or at all
tokens."""

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.families.video_vit import QueryValueBias
from vitdistill.models.macs import Macs, linears, norm_macs, self_attention_macs
from vitdistill.models.surgery.drop_path import rising
from vitdistill.tokens.gather import take
from vitdistill.tokens.positions import TABLES
from vitdistill.types import TokenGrid

# The tokens at which a decoder is asked: those of the masked patches, of all patches, or all, special tokens included.
Where = Literal["masked", "patches", "all"]
Predictor = Literal["linear", "mlp"]


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
        predictor: Predictor = "linear",
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
            predictor: what makes a prediction of the last block's tokens: a norm and a linear map (MAE), or an MLP of
                two linear maps without a norm (G2SD).

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
        self.prefix, self.width = prefix, width
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
        self.norm: nn.Module = norm(width) if predictor == "linear" else nn.Identity()
        self.pred: nn.Module = nn.Linear(width, channels) if predictor == "linear" else Mlp(width, channels, channels)
        nn.init.normal_(self.mask_token, std=0.02)
        xavier(self)

    def forward(
        self,
        tokens: Float[Tensor, "b pk d"],
        kept: Int[Tensor, "b k"],
        masked: Int[Tensor, "b r"],
        at: Where = "masked",
    ) -> Float[Tensor, "b q c"]:
        """Predictions at some of the tokens [prefix, kept, masked], in this order.

        Args:
            tokens: what the encoder made of its prefix tokens and the kept patches, in the order of `kept`.
            kept: patches that the encoder saw.
            masked: patches to predict.
            at: the tokens at which to predict.
        """
        hidden = self.hidden(tokens, kept, masked)
        first = {"masked": self.prefix + kept.shape[1], "patches": self.prefix, "all": 0}[at]
        return self.pred(self.norm(hidden[:, first:]))

    def hidden(
        self,
        tokens: Float[Tensor, "b pk d"],
        kept: Int[Tensor, "b k"],
        masked: Int[Tensor, "b r"],
        blocks: int | None = None,
    ) -> Float[Tensor, "b m d2"]:
        """The tokens [prefix, kept, masked] that leave the first so many blocks, or all of them.

        Args:
            tokens: as of `forward`.
            kept: patches that the encoder saw.
            masked: the others.
            blocks: that run; None for all.
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
        for block in self.blocks[:blocks]:
            hidden = block(hidden)
        return hidden

    def macs(self, kept: int, blocks: int | None = None, *, predict: bool = True, layernorm: bool = True) -> Macs:
        """Multiply-accumulates for one input of which the encoder saw so many patches.

        Args:
            kept: patches that the encoder saw; all of them are decoded.
            blocks: that run; None for all.
            predict: whether the norm and the predictor run, at every patch.
            layernorm: whether LayerNorm counts.
        """
        tokens = self.pos_embed.shape[1]
        total = Macs(projections=linears(self.embed) * (self.prefix + kept))
        for block in self.blocks[:blocks]:
            total += self_attention_macs(block, tokens, layernorm)
        if not predict:
            return total
        patches = tokens - self.prefix
        return total + norm_macs(self.norm, patches, layernorm) + Macs(head=linears(self.pred) * patches)

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
            raise no_decoder()
        if wrong or missing or extra:
            first = (wrong or missing or extra)[0]
            raise UserError(
                "The decoder in the weights must have the width, depth and patches of this one",
                f"{len(wrong)} tensors of another shape, {len(missing)} missing, {len(extra)} unexpected ({first})",
                "Set the decoder's width, depth and heads as in the file",
            )
        self.load_state_dict({_short(name): value for name, value in weights.items()})


def no_decoder() -> UserError:
    """What to raise where a decoder is needed and weights hold none."""
    return UserError(
        "Weights for the decoder must hold one, and this file is encoder-only",
        remedy="Use the full file (MAE's mae_pretrain_*_full.pth, or mae.safetensors of a run of `mae`)",
    )


def official_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A decoder's state dict under the names of MAE's release."""
    return {name if name == "mask_token" else f"decoder_{name}": value for name, value in state.items()}


def _short(name: str) -> str:
    return name.removeprefix("decoder_")


def tokens_at(
    values: Float[Tensor, "b m c"], kept: Int[Tensor, "bm k"], masked: Int[Tensor, "bm r"], at: Where
) -> Float[Tensor, "bm q c"]:
    """Of values at all tokens, those at which a decoder predicts, in its order.

    Args:
        values: of the patches in the order of the grid, with special tokens before them or without; of every mask, or
            of every input, whose masks follow one another and pick from one copy.
        kept: patches that the encoder saw.
        masked: the others.
        at: the tokens at which the decoder is asked.
    """
    special = values.shape[1] - kept.shape[1] - masked.shape[1]
    index = special + (masked if at == "masked" else torch.cat((kept, masked), dim=1))
    if at == "all" and special:
        first = torch.arange(special, device=index.device).expand(len(index), -1)
        index = torch.cat((first, index), dim=1)
    # Row i * r + j of the masks is mask j of input i.
    return take(values, index.reshape(len(values), -1)).reshape(*index.shape, -1)


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
