"""A pre-trained encoder becomes a student with two heads: one for the labels, one for the teacher (G2SD)."""

from torch import nn

from vitdistill.models.families.dist_token import ARGUMENT, append_dist_token
from vitdistill.models.network import Network
from vitdistill.models.record import record_of

HEAD_STD = 2e-5  # of a fresh class head: the student begins without an opinion (MAE's fine-tuning and G2SD's)


def with_dist_token(network: Network, *, fresh_head: bool) -> Network:
    """The network with a distillation token and its head, in place; its record says so.

    Args:
        network: a ViT whose classifier reads the class token.
        fresh_head: whether its classifier has random weights, which then begin near 0.

    Raises:
        UserError: when there is no place for the token.

    Example:
        >>> student = with_dist_token(build("runs/g2sd", num_classes=1000), fresh_head=True)
    """
    append_dist_token(network.net)
    if fresh_head and isinstance(network.net.head, nn.Linear):
        nn.init.trunc_normal_(network.net.head.weight, std=HEAD_STD)
    record = record_of(network.net)
    if record.architecture is not None:
        record.args = {**record.args, ARGUMENT: True}
    return network
