"""ConvMAE's files, whose names are those of our ConvViT: fine-tuned ones only, at the size they were trained on."""

from typing import Any

from torch import nn

from vitdistill.errors import UserError
from vitdistill.models.families.convvit import ConvViT
from vitdistill.models.weights.layout import Layout, Weights, anchored, has


def convert(weights: Weights, net: nn.Module) -> Weights:
    """
    Raises:
        UserError: when the weights are for another network, of pre-training, or of another image size.
    """
    if not isinstance(net, ConvViT):
        raise UserError(
            f"The weights must be those of a {type(net).__name__}",
            "a file of ConvViT",
            "Name its architecture: convvit_base_patch16_224@FILE",
        )
    if has(weights, r"^(stage[12]_output_decode|decoder_\w+|mask_token)\b"):
        raise UserError(
            "A ConvViT needs a fine-tuned file, which has a classifier",
            "one of ConvMAE's pre-training, with a decoder and none",
            "Take the file whose name says that it was fine-tuned",
        )
    table: Any = weights.get("pos_embed")
    if table is not None and table.ndim == 3 and table.shape[1] != net.pos_embed.shape[1]:
        grid, pixels = ("x".join(map(str, size)) for size in (net.grid_size, net.img_size))
        raise UserError(
            f"The weights of a ConvViT are for images of one size, whose positions are {table.shape[1]} patches",
            f"a network of {grid} patches, at {pixels} pixels",
            "Leave the image size out: a teacher gets the images resized",
        )
    return weights


LAYOUT = Layout(
    name="ConvMAE",
    anchor=anchored(r"patch_embed4\.weight"),
    matches=lambda weights: has(weights, r"^patch_embed4\.weight$"),
    convert=convert,
)
