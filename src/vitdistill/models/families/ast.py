"""AST, the audio spectrogram transformer (Gong et al., 2021): a distilled DeiT over overlapping patches of sound.

The architectures are registered with timm, so that `timm.create_model("ast_small")` builds one once this package is
imported. A spectrogram is (1, mel bins, frames): frequency is the height and time the width of timm's image, so patches
are numbered frequency by frequency, each through all times.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import timm
from jaxtyping import Float
from timm.layers import PatchEmbed, trunc_normal_
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from vitdistill.errors import UserError, near
from vitdistill.models.families.narrow import add_waves, begin_narrow, is_narrow
from vitdistill.models.families.registry import registered
from vitdistill.models.families.vit import ViT
from vitdistill.models.macs import Macs, norm_macs
from vitdistill.models.names import AST_NAMES, AUDIO
from vitdistill.models.sizes import pair
from vitdistill.models.weights.spectrograms import fitted, grid_over
from vitdistill.types import NOTHING, Capture, InputSpec

STATISTICS_ARGUMENT = "statistics"  # of the architecture
# Mean and standard deviation of the log-mel energies of a data set, as AST's authors give them.
STATISTICS = {"esc50": (-6.6268077, 5.358466), "audioset": (-4.2677393, 4.5689974)}
AUDIOSET_CLASSES = 527
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "num_heads": 3},
    "small": {"embed_dim": 384, "num_heads": 6},
    "base": {"embed_dim": 768, "num_heads": 12},
    "base384": {"embed_dim": 768, "num_heads": 12},
}
# Of the arguments that ImageNet's weights fix.
FIXED: dict[str, Any] = {"depth": 12, "patch_size": 16, "mlp_ratio": 4.0, "in_chans": 1}


class OverlappingPatches(PatchEmbed):
    """timm's patch embedding with a stride of its own, and without padding: what no patch reaches is left out."""

    def __init__(self, *, stride: tuple[int, int], **options: Any) -> None:
        self.stride = stride  # before timm asks for the grid
        super().__init__(**options)
        self.proj.stride = stride

    def _init_img_size(self, img_size: Any) -> tuple[Any, Any, Any]:
        size = pair(img_size)
        grid = self.dynamic_feat_size(size)
        return size, grid, grid[0] * grid[1]

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        return grid_over(img_size, self.patch_size, self.stride)


class AST(VisionTransformerDistilled):
    """timm's distilled ViT over a spectrogram, with one classifier over the mean of class and distillation token.

    The classifier is `head_norm` (epsilon 1e-5) and `head`; without classes it has neither.

    Example:
        >>> timm.create_model("ast_small", num_classes=50)
        >>> timm.create_model("ast_tiny", img_size=(32, 64), embed_dim=48, depth=2, num_heads=3, num_classes=4)
    """

    def __init__(
        self,
        img_size: Sequence[int] = (128, 512),
        patch_size: int | Sequence[int] = 16,
        stride: int | Sequence[int] = 10,
        in_chans: int = 1,
        num_classes: int = AUDIOSET_CLASSES,
        statistics: str | Sequence[float] = "esc50",
        global_pool: str = "token",
        fc_norm: bool | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            img_size: mel bins and frames.
            patch_size: mel bins and frames of a patch; one number for both.
            stride: mel bins and frames from one patch to the next; one number for both.
            in_chans: channels of a spectrogram.
            num_classes: of the classifier; 0 for none.
            statistics: esc50, audioset, or mean and standard deviation of the data's log-mel energies. The input is
                normalised with the mean and twice the standard deviation.
            global_pool: token; AST has no other.
            fc_norm: a norm behind mean pooling, which it does not have.
            options: of timm's VisionTransformer: embed_dim, depth, num_heads, mlp_ratio, drop_path_rate, ...

        Raises:
            UserError: when the size is not two numbers, or no patch fits into it; for other pooling or statistics.
        """
        size, patch, step = _bins_and_frames(img_size), pair(patch_size), pair(stride)
        if any(whole < one for whole, one in zip(size, patch, strict=True)) or min(step) < 1:
            raise UserError(
                "A spectrogram must have room for a patch, and patches a stride of at least 1",
                f"{size[0]}x{size[1]} mel bins x frames, patches of {patch[0]}x{patch[1]} every {step[0]}x{step[1]}",
            )
        if global_pool != "token" or fc_norm:
            raise UserError("An AST reads the mean of class and distillation token", global_pool, "Leave --pool out")
        self.statistics = statistics_of(statistics)
        super().__init__(
            img_size=size,
            patch_size=patch,
            in_chans=in_chans,
            num_classes=0,
            embed_layer=partial(OverlappingPatches, stride=step),
            **options,
        )
        del self.head_dist
        self.reset_classifier(num_classes)
        if is_narrow(self.embed_dim):
            begin_narrow(self.blocks)
            assert self.pos_embed is not None
            add_waves(self.pos_embed, pair(self.patch_embed.grid_size), self.num_prefix_tokens)

    def forward_head(self, x: Float[Tensor, "b m d"], pre_logits: bool = False) -> Tensor:
        pooled = (x[:, 0] + x[:, 1]) / 2
        return pooled if pre_logits else self.head(self.head_drop(self.head_norm(pooled)))

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, its norm included, by one with random weights; 0 classes leave none.

        Raises:
            UserError: for other pooling.
        """
        if global_pool not in (None, "", "token"):
            raise UserError("An AST reads the mean of class and distillation token", global_pool, "Leave --pool out")
        self.num_classes = num_classes
        self.head_norm: nn.Module = nn.Identity()
        self.head = nn.Identity()
        if num_classes:
            like = self.patch_embed.proj.weight
            head = nn.Linear(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
            trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            self.head = head
            self.head_norm = nn.LayerNorm(self.embed_dim, eps=1e-5, device=like.device, dtype=like.dtype)
        self.head_norm.train(self.training)
        self.head.train(self.training)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Changes nothing: labels and teacher are learned by the one head, in training as well."""


def _bins_and_frames(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        raise UserError(
            "The size of a spectrogram is two numbers, mel bins and frames", size, f"img_size [128,{size}], say"
        )
    return pair(size)


def statistics_of(given: Any) -> tuple[float, float]:
    """Mean and standard deviation, from the name of a data set or two numbers.

    Raises:
        UserError: for anything else.
    """
    if isinstance(given, str) and given in STATISTICS:
        return STATISTICS[given]
    numbers = [] if isinstance(given, str | int | float) else list(given)
    if len(numbers) == 2 and all(isinstance(one, int | float) for one in numbers) and numbers[1] > 0:
        return float(numbers[0]), float(numbers[1])
    raise UserError(
        f"statistics must be {', '.join(STATISTICS)}, or mean and standard deviation of log-mel energies ([-5.1,4.2])",
        repr(given),
        near(str(given), STATISTICS),
    )


class SpectrogramViT(ViT):
    """Adapter of `AST`: that of a ViT, over sound."""

    @property
    def input(self) -> InputSpec:
        """Its statistics are of log-mel energies; `std` is twice their standard deviation, by which AST divides."""
        spec, embed = super().input, self.net.patch_embed
        return replace(spec, sound=True, patch=spec.patch if embed.stride == tuple(embed.patch_size) else None)

    @property
    def head_parameters(self) -> set[nn.Parameter]:
        return super().head_parameters | set(self.net.head_norm.parameters())

    def macs(
        self,
        kept: int | None = None,
        capture: Capture = NOTHING,
        *,
        layernorm: bool = True,
        size: tuple[int, int] | None = None,
    ) -> Macs:
        total = super().macs(kept, capture, layernorm=layernorm, size=size)
        return total + norm_macs(self.net.head_norm, 1, layernorm) if capture.head else total


def image_weights(name: str) -> dict[str, Tensor]:
    """timm's weights of a distilled DeiT, without its heads."""
    return timm.create_model(name, pretrained=True, num_classes=0).state_dict()


def _begin_as_deit(net: AST, size: str, options: dict[str, Any]) -> None:
    """Give a network the weights that DeiT learned on ImageNet.

    Raises:
        UserError: when it has other sizes than DeiT.
    """
    own = {**SIZES[size], **FIXED}
    changed = [name for name, value in own.items() if options.get(name, value) != value]
    if changed:
        given = ", ".join(f"{name} {options[name]}" for name in changed)
        raise UserError(f"ImageNet's weights are for an ast_{size} of DeiT's own sizes", given, "Leave it out")
    source = "deit_base_distilled_patch16_384" if size == "base384" else f"deit_{size}_distilled_patch16_224"
    found = net.load_state_dict(fitted(image_weights(source), net, {}), strict=False)
    fresh = all(key.startswith(("head.", "head_norm.")) for key in found.missing_keys)
    assert fresh and not found.unexpected_keys, found


def _register(size: str) -> None:
    @registered(f"{AUDIO}{size}")
    def make(pretrained: bool, **options: Any) -> tuple[AST, dict[str, Any]]:
        options = {name: value for name, value in options.items() if value is not None}
        if pretrained:  # of images, so there is no classifier of sounds
            options.setdefault("num_classes", 0)
        net = AST(**{**SIZES[size], **options})
        if pretrained:
            _begin_as_deit(net, size, options)
        mean, deviation = net.statistics
        channels = net.patch_embed.proj.in_channels
        return net, {
            "input_size": (channels, *net.patch_embed.img_size),
            "mean": (mean,) * channels,
            "std": (2 * deviation,) * channels,
            "first_conv": "patch_embed.proj",
            "classifier": ("head", "head_norm"),
        }


for _size in SIZES:
    _register(_size)
assert tuple(f"ast_{size}" for size in SIZES) == AST_NAMES
