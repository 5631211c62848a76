"""A ViT with a distillation token that has no position (G2SD, Huang et al., CVPR 2023, Sec. 3.3).

G2SD appends the token behind the patches: [class, patches, distillation]. Attention does not see the order of tokens
and this one has no position, so here it stands where all special tokens do, before the patches; weights are the same
under the same names: `dist_token`, `head_dist`, and a `pos_embed` without an entry for it.
"""

from typing import Any

import torch
from jaxtyping import Float

# Weights files are converted by the function of this name in the module of a network's class.
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn  # noqa: F401
from torch import Tensor, nn

from vitdistill.errors import UserError

ARGUMENT = "dist_token"  # of an architecture, beside timm's own


class DistTokenViT(VisionTransformer):
    """timm's VisionTransformer with two heads; made of one by `append_dist_token`.

    In evaluation it gives the mean of both heads, in distilled training both, as timm's distilled DeiT does. DeiT's
    own token has a position, learns as slowly as the patch embedding under layer decay, and has no weight decay.
    """

    dist_token: nn.Parameter
    head_dist: nn.Module
    distilled_training: bool

    def _pos_embed(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        tokens = super()._pos_embed(x)
        return torch.cat((tokens[:, :1], self.dist_token.expand(len(tokens), -1, -1), tokens[:, 1:]), dim=1)

    def forward_head(self, x: Float[Tensor, "b m d"], pre_logits: bool = False) -> Any:
        labelled, distilled = self.head_drop(x[:, 0]), self.head_drop(x[:, 1])
        if pre_logits:
            return (labelled + distilled) / 2
        scores = self.head(labelled), self.head_dist(distilled)
        return scores if self.distilled_training and self.training else (scores[0] + scores[1]) / 2

    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether both heads answer in training."""
        self.distilled_training = enable

    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        return self.head, self.head_dist

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool not in (None, "token"):
            raise _no_place(self, f"pooling {global_pool!r}")
        super().reset_classifier(num_classes)
        self.head_dist = _head(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer decay: the token, the final norm and the heads learn at the full rate, as G2SD has it."""
        return {"stem": r"^cls_token|pos_embed|patch_embed", "blocks": r"^blocks\.(\d+)"}

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token"}


def append_dist_token(net: nn.Module) -> None:
    """Give a ViT a distillation token and its head, in place; what it has stays as it is.

    Args:
        net: timm's VisionTransformer with a class token that the classifier reads.

    Raises:
        UserError: when there is no place for the token.
    """
    if type(net) is not VisionTransformer:
        has_one = getattr(net, "dist_token", None) is not None
        raise _no_place(net, "one with a distillation token" if has_one else type(net).__name__)
    if net.cls_token is None or net.global_pool != "token":
        raise _no_place(net, f"pooling {net.global_pool!r}")
    net.__class__ = DistTokenViT
    assert isinstance(net, DistTokenViT)
    token = net.cls_token
    net.num_prefix_tokens += 1
    net.dist_token = nn.Parameter(torch.empty_like(token))
    nn.init.trunc_normal_(net.dist_token, std=0.02)
    net.head_dist = _head(net)
    net.distilled_training = False
    config: Any = net.pretrained_cfg
    net.pretrained_cfg = {**(config or {}), "classifier": ("head", "head_dist")}  # type: ignore[assignment]


def _head(net: DistTokenViT) -> nn.Module:
    """A classifier like the class token's, with weights of its own."""
    if not isinstance(net.head, nn.Linear):
        return nn.Identity()
    like = net.cls_token
    assert like is not None
    head = nn.Linear(net.head.in_features, net.head.out_features, device=like.device, dtype=like.dtype)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head.train(net.training)


def _no_place(net: nn.Module, found: str) -> UserError:
    name = (getattr(net, "pretrained_cfg", None) or {}).get("architecture") or type(net).__name__
    return UserError(
        f"A distillation token stands beside a class token that the classifier reads, and {name} has no place for it",
        found,
        "Choose a ViT or DeiT without mean pooling (global_pool token), or train without --dist_token",
    )
