"""The exponential moving average of a network: of the student that is trained, and of it as its own teacher."""

import torch
from timm.utils import ModelEmaV3
from torch import nn

from vitdistill.errors import UserError


def moving_average(network: nn.Module, decay: float) -> ModelEmaV3:
    """A copy of a network that follows it with `average.update(network)`, buffers included: d * old + (1 - d) * new.

    Without timm's stochastic rounding of bfloat16 weights: no checkpoint holds its random state, and a resumed run
    has to be the same.

    Args:
        network: to copy; on the device that it is trained on.
        decay: in (0, 1).

    Raises:
        UserError: when the decay is not in (0, 1).

    Example:
        >>> average = moving_average(student.net, 0.999)
        >>> average.update(student.net)  # after every optimizer step
        >>> accuracy_of(average.module)
    """
    if not 0 < decay < 1:
        raise UserError("The decay of a moving average must lie in (0, 1)", decay)
    return ModelEmaV3(network, decay=decay, stochastic_rounding=False)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the parameters of an average towards a network's: d * old + (1 - d) * new, with a decay that may change.

    Args:
        average: of the same architecture; changed in place. Buffers stay as they are.
        network: what it follows.
        decay: in [0, 1].
    """
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
