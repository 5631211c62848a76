"""Segmenter's files, whose names are those of our `Segmenter`: `{"model": encoder.*, decoder.*}`."""

from torch import nn

from vitdistill.errors import UserError
from vitdistill.models.families.segmenter import MaskTransformer, Segmenter
from vitdistill.models.weights.layout import Layout, Weights, anchored, has, without


def _matches(weights: Weights) -> bool:
    if not has(weights, r"^encoder\.patch_embed\."):
        return False
    # A decoder of nothing but a head is the linear one; that of a masked autoencoder has blocks as well.
    linear = has(weights, r"^decoder\.head\.weight$") and not has(weights, r"^decoder\.(?!head\.)")
    return linear or has(weights, r"^decoder\.cls_emb$")


def convert(weights: Weights, net: nn.Module) -> Weights:
    """The weights without the encoder's own classifier, which the authors build along and never train.

    Raises:
        UserError: when the weights are for another network, or for the other decoder.
    """
    if not isinstance(net, Segmenter):
        raise UserError(
            f"The weights must be those of a {type(net).__name__}",
            "a file of Segmenter",
            "Name its architecture: segmenter_{tiny,small,base}@FILE",
        )
    mask = has(weights, r"^decoder\.cls_emb$")
    if mask != isinstance(net.decoder, MaskTransformer):
        found, asked = ("mask", "linear") if mask else ("linear", "mask")
        raise UserError(
            "The decoder of a Segmenter must be that of its file",
            f"{found} in the file, {asked} asked for",
            f"Set decoder to {found} among the architecture's arguments",
        )
    return without(weights, r"encoder\.head(_dist)?\.")


LAYOUT = Layout(
    name="Segmenter",
    anchor=anchored(r"decoder\.cls_emb"),
    matches=_matches,
    convert=convert,
)
