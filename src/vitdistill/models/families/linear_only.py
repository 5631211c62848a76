"""A linear classifier on a frozen ViT: the student of a linear-only training (MaskedKD, App. D, Table 8).

Nothing but the classifier learns, on the features of DINO's linear evaluation (Caron et al., 2021). The body is a guest
as a teacher is: frozen, in eval mode, without gradient, and in no state dict, so that optimizer, averages, checkpoints
and processes that train together deal with the classifier alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.errors import UserError, near
from vitdistill.models.backbone import Backbone, Captured, QKVReader, SaliencyKind
from vitdistill.models.families.ast import AST
from vitdistill.models.families.vit import ViT
from vitdistill.models.macs import Macs, linears, norm_macs
from vitdistill.models.names import LinearFeatures
from vitdistill.models.network import Network, check_names_inputs
from vitdistill.models.record import attach_record, record_of
from vitdistill.types import NOTHING, Capture, InputSpec, Output, TokenGrid, Tokens

BLOCKS = {"cls": 1, "cls4": 4, "cls+mean": 1}  # the last ones, whose tokens are read
BASE = 768  # channels from which DINO reads the last block alone
CLASSIFIERS = ("head", "head_dist")  # of a ViT of timm


class _Shared:
    """Holds a network out of the module tree. Copies of the holder share it, since nothing ever changes it."""

    def __init__(self, network: ViT) -> None:
        self.network = network

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Shared":
        return self


class LinearOnly(nn.Module):
    """The classifier, with the body that it reads beside it and not in it: `state_dict` has the classifier alone.

    Attributes:
        head: the classifier.
        features: cls, cls4 or cls+mean.
        num_classes: of the classifier.
        frozen: holds the body.
    """

    def __init__(self, body: ViT, classes: int, features: str) -> None:
        super().__init__()
        self.frozen, self.features, self.num_classes = _Shared(body), features, classes
        self.head = nn.Linear(body.width * (BLOCKS[features] + (features == "cls+mean")), classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b c"]:
        prediction = FrozenBody(self)(inputs).prediction
        assert prediction is not None
        return prediction

    def get_classifier(self) -> nn.Module:
        return self.head

    @property
    def body(self) -> ViT:
        """The frozen network."""
        return self.frozen.network

    # What timm's networks say of themselves, where anybody asks for it, is the body's.

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        return {**(getattr(self.body.net, "pretrained_cfg", None) or {}), "classifier": "head"}

    @pretrained_cfg.setter
    def pretrained_cfg(self, config: dict[str, Any]) -> None:
        self.body.net.pretrained_cfg = config

    @property
    def cls_token(self) -> Tensor:
        return self.body.net.cls_token

    @property
    def global_pool(self) -> str:
        return "token"


class FrozenBody(Backbone):
    """Adapter over `LinearOnly`: the body runs without gradient, and the classifier reads its features.

    With `cls4` these are the class tokens of the last four blocks, each behind the body's final norm; with `cls` that
    of the last block; with `cls+mean` that one and the mean of the last block's patches.
    """

    blocks_apart = False
    trains_body = False

    net: LinearOnly

    @property
    def body(self) -> ViT:
        """The frozen network."""
        return self.net.body

    # --- what the network is --------------------

    @property
    def grid(self) -> TokenGrid:
        return self.body.grid

    @property
    def specials(self) -> int:
        return self.body.specials

    @property
    def blocks(self) -> Sequence[Any]:
        return self.body.blocks

    @property
    def width(self) -> int:
        return self.body.width

    @property
    def input(self) -> InputSpec:
        return self.body.input

    @property
    def channels(self) -> int:
        return self.body.channels

    def fixed(self) -> dict[str, Tensor]:
        own = self.body.net.state_dict()
        return {name: value for name, value in own.items() if name.partition(".")[0] not in CLASSIFIERS}

    def load_fixed(self, weights: dict[str, Tensor], source: object) -> None:
        """Take up what `fixed` gave.

        Args:
            weights: by name.
            source: named in messages.

        Raises:
            UserError: when they are of another body.
        """
        own = self.fixed()
        if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
            raise UserError(f"The body in {source} must be that of {self.name}", remedy="Start anew with --overwrite")
        self.body.net.load_state_dict(weights, strict=False)

    # --- running it --------------------

    def forward(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        *,
        keep: Int[Tensor, "bm k"] | None = None,
        capture: Capture = NOTHING,
    ) -> Output:
        weight = self.net.head.weight
        if (own := next(self.body.parameters())).device != weight.device or own.dtype != weight.dtype:
            self.body.to(weight.device, weight.dtype)
        with torch.no_grad():
            output = self.body(inputs, keep=keep, capture=self._read(capture))
            if not capture.head:
                return output
            # The final norm is that of the last block; DINO puts it behind the earlier ones as well.
            norm = self.body.net.norm
            *earlier, last = (output.tokens(block) for block in self._blocks_read)
            output.final = Tokens(norm(last.all), last.specials)
            parts = [norm(tokens.all[:, 0]) for tokens in earlier] + [output.final.all[:, 0]]
            if self.net.features == "cls+mean":
                parts.append(output.final.patches.mean(dim=1))
            output.captured = {point: output.captured[point] for point in capture.points}
        output.prediction = self.net.head(torch.cat(parts, dim=-1))
        return output

    @property
    def _blocks_read(self) -> range:
        return range(self.depth - BLOCKS[self.net.features], self.depth)

    def _read(self, capture: Capture) -> Capture:
        """What the body's pass hands out: its own head is never run, and its classifier, where it has one, not read."""
        read = {(block, "output") for block in self._blocks_read} if capture.head else set()
        return Capture(capture.points | read, head=False)  # type: ignore[operator]

    def embed(self, inputs: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b m d"]:
        return self.body.embed(inputs)

    def run_blocks(self, tokens: Float[Tensor, "b m d"], capture: Capture, captured: Captured) -> Tensor:
        return self.body.run_blocks(tokens, capture, captured)

    def head(self, tokens: Tensor) -> tuple[Tokens, Tensor | tuple[Tensor, Tensor]]:
        raise NotImplementedError("the classifier reads several blocks; `forward` runs it")

    # --- looking inside --------------------

    def saliency(self, output: Output, block: int = -1, kind: SaliencyKind = "cls") -> Float[Tensor, "b n"]:
        return self.body.saliency(output, block, kind)

    def saliency_capture(self, block: int = -1, kind: SaliencyKind = "cls") -> Capture:
        return self.body.saliency_capture(block, kind)

    def read_qkv(self, block: int) -> QKVReader:
        return self.body.read_qkv(block)

    def reached(
        self,
        capture: Capture,
        roles: frozenset[str] = frozenset("qkv"),
        *,
        prediction: bool = True,
        special: bool = True,
    ) -> set[nn.Parameter]:
        return set(self.net.parameters()) if capture.head and prediction else set()

    @property
    def head_parameters(self) -> set[nn.Parameter]:
        return set(self.net.parameters())

    def macs(
        self,
        kept: int | None = None,
        capture: Capture = NOTHING,
        *,
        layernorm: bool = True,
        size: tuple[int, int] | None = None,
    ) -> Macs:
        total = self.body.macs(kept, self._read(capture), layernorm=layernorm, size=size)
        if not capture.head:
            return total
        tokens = self.specials + (self.grid.count if kept is None else kept) + len(self._blocks_read) - 1
        return total + norm_macs(self.body.net.norm, tokens, layernorm) + Macs(head=linears(self.net.head))


def linear_only(body: Network, classes: int, features: str = "auto") -> FrozenBody:
    """A network of which only a linear classifier trains, on a body that is frozen in place.

    Args:
        body: a trained ViT with a class token, as DINO's; a classifier of its own is not read.
        classes: of the data.
        features: what the classifier reads: the class tokens of the last four blocks (cls4), that of the last block
            (cls), or that and the mean of the patches (cls+mean); auto is cls4 for bodies narrower than ViT-B, and
            cls+mean from there on (DINO's linear evaluation), and for fewer than four blocks.

    Raises:
        UserError: when the body has no class token behind a final norm, or fewer blocks than are read.

    Example:
        >>> student = linear_only(build("vit_small_patch16_224.dino", pretrained=True), classes=1000)
        >>> method = MaskedKD(student, teacher, keep=0.5)
    """
    rule = "A linear-only student reads the class token of a ViT"
    check_names_inputs(body, rule)
    if not isinstance(body, ViT) or isinstance(body.net, AST) or body.net.cls_token is None:
        raise UserError(rule, body.name, "Choose a ViT with a class token")
    if isinstance(body.net.norm, nn.Identity):
        raise UserError(
            "A linear-only student reads tokens behind the final norm",
            f"{body.name}, which has none there",
            "Choose a ViT that was not fine-tuned with mean pooling",
        )
    known = get_args(LinearFeatures)
    if features not in known:
        raise UserError(f"linear_features must be one of {', '.join(known)}", repr(features), near(features, known))
    small = body.width < BASE and body.depth >= BLOCKS["cls4"]
    chosen = features if features != "auto" else "cls4" if small else "cls+mean"
    if body.depth < BLOCKS[chosen]:
        raise UserError(
            "The features cls4 need four blocks",
            f"{body.name} with {body.depth}",
            "Use --linear_features cls or cls+mean",
        )
    body.eval().requires_grad_(False)
    net = LinearOnly(body, classes, chosen)
    record = record_of(body.net)
    args = {**record.args, "num_classes": classes}
    attach_record(net, replace(record, args=args, classes=[], features=chosen))
    return FrozenBody(net)
