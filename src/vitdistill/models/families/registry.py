"""How the architectures of this package come into timm's registry, from which `timm.create_model` builds them."""

from collections.abc import Callable, Sequence
from typing import Any

from timm.models import register_model
from torch import nn

# What timm passes to every architecture, and ours have no use for.
_OF_TIMM = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "checkpoint_path")

Maker = Callable[..., tuple[nn.Module, dict[str, Any]]]


def registered(
    name: str, *, img_size: int | Sequence[int] | None = None, module: str | None = None
) -> Callable[[Maker], None]:
    """Register an architecture with timm.

    Args:
        name: of the architecture.
        img_size: that it is built for where none is given; None leaves that to the network.
        module: whose architecture it is; None is the maker's own.

    Returns:
        A decorator of what makes the network: from `pretrained` and the options of `timm.create_model` to the network
        and what its `pretrained_cfg` says beside the architecture's name.

    Example:
        >>> @registered("yolos_tiny", img_size=(800, 1328))
        ... def make(pretrained, **options):
        ...     return Yolos(**options), {"classifier": "class_embed.layers.2"}
    """

    def decorate(make: Maker) -> None:
        def build(pretrained: bool = False, **options: Any) -> nn.Module:
            for key in _OF_TIMM:
                options.pop(key, None)
            if img_size is not None and options.get("img_size") is None:
                options["img_size"] = img_size
            net, config = make(pretrained, **options)
            net.pretrained_cfg = {"architecture": name, **config}  # type: ignore[assignment]
            return net

        build.__name__ = build.__qualname__ = name
        build.__module__ = module or make.__module__
        register_model(build)

    return decorate
