"""A masked autoencoder with its decoder as one network: a teacher whose decoder is looked into (G2SD)."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.decoder import Decoder, no_decoder
from vitdistill.models.families import as_network
from vitdistill.models.macs import Macs
from vitdistill.models.network import Network
from vitdistill.models.record import ModelRecord
from vitdistill.models.sizes import pair
from vitdistill.models.weights.folder import record_beside
from vitdistill.models.weights.positions import grid_of, resample
from vitdistill.models.weights.read import decoder_part, read_weights, to_timm
from vitdistill.tokens.gather import complement, take
from vitdistill.tokens.positions import sincos_2d
from vitdistill.types import NOTHING, Capture, InputSpec, Output, TokenGrid, Tokens

HEADS = 16  # of the decoders that MAE released


class MaskedAutoencoder(Network):
    """Encoder and decoder of masked modelling as one network over the patches that it is shown.

    Blocks of a `Capture` are those of the decoder. Its tokens are special ones, then all patches in the order of the
    grid; the prediction is the decoder's, at every patch.

    Example:
        >>> method = MAE(student)
        >>> network = MaskedAutoencoder(method.student, method.decoder)
        >>> network(images, keep=kept, capture=Capture.at(3, "output", head=False)).tokens(3).patches
    """

    maskable = True

    def __init__(self, encoder: Network | nn.Module, decoder: Decoder) -> None:
        """
        Args:
            encoder: whose patches can be left out.
            decoder: over the encoder's patches.

        Raises:
            UserError: when the encoder hands out no tokens, or the decoder is one for other patches.
        """
        backbone = with_tokens(as_network(encoder))
        super().__init__(backbone.net)
        tokens, decoded = backbone.final_specials + backbone.grid.count, decoder.pos_embed.shape[1]
        if (tokens, backbone.width) != (decoded, decoder.embed.in_features):
            raise UserError(
                f"The decoder must take the {tokens} tokens of {backbone.width} channels of {backbone.name}",
                f"one for {decoded} of {decoder.embed.in_features}",
            )
        self.encoder, self.decoder = backbone, decoder

    @property
    def input(self) -> InputSpec:
        return self.encoder.input

    @property
    def grid(self) -> TokenGrid:
        """Patches of one input."""
        return self.encoder.grid

    def forward(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        *,
        keep: Int[Tensor, "bm k"] | None = None,
        capture: Capture = NOTHING,
    ) -> Output:
        """
        Args:
            inputs: normalised with the statistics of `input`.
            keep: patches that the encoder sees, all if None; several selections of an input follow one another.
            capture: outputs of the decoder's blocks, counted from 0; without the head it stops behind the last.

        Raises:
            UserError: when something else than the output of a block of the decoder is asked for.
        """
        blocks = self._blocks(capture)
        count = self.grid.count
        kept = torch.arange(count, device=inputs.device).expand(len(inputs), -1) if keep is None else keep
        masked = complement(kept, count)
        seen = self.encoder(inputs, keep=keep).final
        assert seen is not None

        # The decoder's tokens stand as [special, kept, masked]; handed out are those of the grid's order.
        order = torch.cat((kept, masked), dim=1).argsort(dim=1)
        specials = self.decoder.prefix
        hidden = self.decoder.hidden(seen.all, kept, masked, 0)
        output = Output(grid=self.grid, kept=keep)
        for index in range(len(self.decoder.blocks) if capture.head else max(blocks.values(), default=-1) + 1):
            hidden = self.decoder.blocks[index](hidden)
            for asked in (asked for asked, block in blocks.items() if block == index):
                patches = take(hidden[:, specials:], order)
                output.captured[asked, "output"] = Tokens(torch.cat((hidden[:, :specials], patches), dim=1), specials)
        if capture.head:
            patches = self.decoder.pred(self.decoder.norm(hidden[:, specials:]))
            output.prediction = take(patches, order)
        return output

    def _blocks(self, capture: Capture) -> dict[int, int]:
        """The decoder's blocks that are asked for, by the numbers they are asked by."""
        depth = len(self.decoder.blocks)
        for block, point in capture.points:
            if point != "output" or not -depth <= block < depth:
                rule = f"The decoder of {self.name} hands out the outputs of its blocks 0 to {depth - 1}"
                raise UserError(rule, f"{point} of block {block}")
        return {block: block % depth for block, _ in capture.points}

    def macs(
        self,
        kept: int | None = None,
        capture: Capture = NOTHING,
        *,
        layernorm: bool = True,
        size: tuple[int, int] | None = None,
    ) -> Macs:
        blocks = None if capture.head else max(self._blocks(capture).values(), default=-1) + 1
        encoder = self.encoder.macs(kept, layernorm=layernorm)
        seen = self.grid.count if kept is None else kept
        return encoder + self.decoder.macs(seen, blocks, predict=capture.head, layernorm=layernorm)

    def compile_blocks(self) -> None:
        self.encoder.compile_blocks()
        for block in self.decoder.blocks:
            block.compile(dynamic=False)


def decoder_of(file: Path, encoder: Backbone, heads: int | None = None) -> Decoder:
    """The decoder in a full MAE file, with the sizes that its weights have.

    Args:
        file: weights, or a folder of transformers' `save_pretrained`.
        encoder: with the weights of the same file.
        heads: attention heads of its blocks, which no weight shows; None for MAE's 16.

    Raises:
        UserError: when the file is encoder-only, or the heads do not fit.
    """
    weights = decoder_part(to_timm(read_weights(file), encoder.net, file))
    if not weights:
        raise no_decoder()
    channels, width = weights["decoder_pred.weight"].shape
    depth = len({name.split(".")[1] for name in weights if name.startswith("decoder_blocks.")})
    heads = HEADS if heads is None else heads
    if heads < 1 or width % heads:
        counts = ", ".join(str(count) for count in range(1, width + 1) if width % count == 0)
        raise UserError(
            f"The decoder in {file} has {width} channels, which must be a multiple of its heads",
            f"{heads} heads",
            f"Say with --teacher_decoder_heads how many it was trained with; {counts} would do",
        )
    decoder = Decoder(
        encoder.grid,
        encoder.final_specials,
        encoder.width,
        channels,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=weights["decoder_blocks.0.mlp.fc1.weight"].shape[0] / width,
    )
    record = ModelRecord.of_file(file) or record_beside(file)
    decoder.load_official(on_own_grid(weights, decoder, encoder, record))
    return decoder


def on_own_grid(
    weights: dict[str, Tensor], decoder: Decoder, encoder: Backbone, record: ModelRecord | None
) -> dict[str, Tensor]:
    """A decoder's weights with positions of its own grid: its fixed table where the file has a fixed one.

    Args:
        weights: under the names of MAE's release.
        decoder: that they are for.
        encoder: in front of it.
        record: of the encoder that the file was trained with, if that is known.
    """
    table, own = weights.get("decoder_pos_embed"), decoder.pos_embed
    if table is None or table.shape[2] != own.shape[2]:
        return weights
    new, prefix, net = (encoder.grid.h, encoder.grid.w), decoder.prefix, encoder.net
    trained_at: Any = None if record is None else record.args.get("img_size")
    old = grid_of(table.shape[1] - prefix, new, pair(net.patch_embed.patch_size), trained_at)
    if old is None or old == new:
        return weights
    fixed = sincos_2d(table.shape[2], TokenGrid(1, *old), prefix)
    same = torch.allclose(table.float(), fixed, atol=1e-4)
    return {**weights, "decoder_pos_embed": own.detach() if same else resample(table, old, new, prefix)}
