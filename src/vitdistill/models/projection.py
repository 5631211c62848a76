"""DINO's projection head: from a class token to scores of many prototypes."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """Three linear maps with GELU between them, unit length, and cosines with prototypes (Caron et al., 2021, App. C).

    Submodules and parameters have the names of DINO's release.

    Example:
        >>> head = ProjectionHead(384)
        >>> head(torch.randn(8, 384)).shape
        torch.Size([8, 65536])
    """

    def __init__(
        self,
        width: int,
        outputs: int = 65536,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        norm_last: bool = True,
    ) -> None:
        """
        Args:
            width: channels of the class token.
            outputs: prototypes.
            hidden: channels between the linear maps.
            bottleneck: channels in front of the prototypes.
            norm_last: keep the prototypes at length 1; False learns their lengths.
        """
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer = Prototypes(bottleneck, outputs)
        self.last_layer.weight_g.requires_grad_(not norm_last)

    @property
    def outputs(self) -> int:
        return len(self.last_layer.weight_v)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one class token."""
        return sum(p.numel() for p in self.parameters() if p.ndim == 2 and p.shape[1] > 1)

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        return self.last_layer(F.normalize(self.mlp(features), dim=-1))


class Prototypes(nn.Module):
    """A linear map without bias whose rows are g * v / ||v||.

    Not torch's `parametrizations.weight_norm`: a parametrised module cannot be pickled, which spawned processes need.

    Attributes:
        weight_g: lengths.
        weight_v: directions, initialised as `nn.Linear` does.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1))
        plain: Any = nn.Linear(channels, outputs, bias=False)
        self.weight_v = plain.weight

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        return F.linear(features, self.weight_g * F.normalize(self.weight_v, dim=1))
