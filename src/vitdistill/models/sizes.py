"""The size and the channels of a network's inputs: what an architecture takes, and what it says when it does not."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import nn

from vitdistill.errors import UserError

STEPS = (32, 64, 14)  # multiples of these are tried when a size does not work


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width, from one number or two.

    Raises:
        UserError: for anything else, such as text.
    """
    sides = (size, size) if isinstance(size, int) else () if isinstance(size, str) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise UserError("An image size must be one number of pixels, or height and width ([224,160])", repr(size))
    height, width = sides
    return height, width


def feed(net: nn.Module, size: int | Sequence[int] | None = None, channels: int | None = None) -> None:
    """Let the configuration of a network of timm say what it is fed, where the network itself does not show it.

    Args:
        net: built.
        size: in pixels, of a network that takes any (a CNN); None leaves what timm says.
        channels: of its inputs; None leaves what timm says.
    """
    config = getattr(net, "pretrained_cfg", None)
    if isinstance(config, dict) and (size is not None or channels is not None):
        own, *pixels = config.get("input_size") or (3, 224, 224)
        shape = (channels or own, *(pixels if size is None else pair(size)))
        net.pretrained_cfg = {**config, "input_size": shape}  # type: ignore[assignment]


def fixed_size(net: nn.Module, name: str, args: dict[str, Any]) -> nn.Module:
    """A ViT that by itself takes any size (DINOv3), built for one, so that its patches are known; others as they are.

    Args:
        net: as timm builds it, with its weights.
        name: of timm.
        args: that it was built with; the size, by default the one it was trained on, is added.
    """
    if not getattr(net, "dynamic_img_size", False) or args.get("dynamic_img_size"):
        return net
    args["dynamic_img_size"] = False
    args["img_size"] = args["img_size"] or list(net.pretrained_cfg["input_size"][-2:])  # type: ignore[index]
    fixed = timm.create_model(name, **args)
    fixed.load_state_dict(net.state_dict())
    fixed.pretrained_cfg = net.pretrained_cfg
    return fixed


def check_patches(name: str, net: nn.Module) -> None:
    """Patches must fill the image, unless the architecture itself was trained on images which they do not fill
    (SigLIP's 384 pixels hold 27 patches of 14; timm's convolution leaves out the rest).

    Raises:
        UserError: with the sizes around it that would do.
    """
    embed = getattr(net, "patch_embed", None)
    if hasattr(embed, "stride"):  # patches that overlap (AST) fill what they fill
        return
    size, patches = getattr(embed, "img_size", None), getattr(embed, "patch_size", None)
    if size is None or patches is None:
        return
    own = (getattr(net, "pretrained_cfg", None) or {}).get("input_size", (0, 0))[-2:]
    for pixels, patch, trained_on in zip(pair(size), pair(patches), own, strict=True):
        if pixels % patch and pixels != trained_on:
            low, high = pixels // patch * patch, (pixels // patch + 1) * patch
            sizes = f"{low} or {high}" if low else str(high)
            raise UserError(
                f"The image size must be a multiple of the patch size {patch} of {name}", pixels, f"Use {sizes}"
            )


def check_size(name: str, args: dict[str, Any], size: int | Sequence[int]) -> None:
    """Refuse a size with which a network cannot compute: windows that do not divide it, nothing left to convolve.

    Tried on the meta device, so nothing is computed.

    Args:
        name: of timm.
        args: of the architecture; its `img_size` is not looked at.
        size: of the images.

    Raises:
        UserError: with the nearest sizes that work.
    """
    if name.startswith("hf-hub:"):
        return
    args = {key: value for key, value in args.items() if key != "img_size"}
    problem = _problem(name, args, pair(size))
    if problem is None or _problem(name, args, None) is not None:  # what does not run on meta is not judged by it
        return
    side = max(pair(size))
    around = {step * (side // step + up) for step in STEPS for up in (0, 1)}
    default = timm.get_pretrained_cfg(name, allow_unregistered=True)
    around |= {default.input_size[-1]} if default is not None else set()
    below = _first(name, args, sorted((s for s in around if 0 < s < side), reverse=True))
    above = _first(name, args, sorted(s for s in around if s > side))
    works = [str(s) for s in (below, above) if s is not None]
    shown = "x".join(map(str, pair(size))) if len(set(pair(size))) > 1 else side
    remedy = f"Use {' or '.join(works)}" if works else "Leave the size out"
    raise UserError(f"{name} cannot take images of this size ({problem})", shown, remedy)


def _first(name: str, args: dict[str, Any], sizes: list[int]) -> int | None:
    return next((size for size in sizes if _problem(name, args, (size, size)) is None), None)


def _problem(name: str, args: dict[str, Any], size: tuple[int, int] | None) -> str | None:
    """Why a network cannot take two images of a size, in a few words; None when it can."""
    try:
        with torch.device("meta"), torch.no_grad():
            try:
                net: Any = timm.create_model(name, **args, img_size=size)
            except TypeError:
                net = timm.create_model(name, **args)
            config: dict[str, Any] = net.pretrained_cfg or {}
            channels, *own = config.get("input_size", (3, 224, 224))
            net.eval()(torch.empty(2, args.get("in_chans", channels), *(size or own)))
    except Exception as error:  # whatever timm's modules raise
        lines = str(error).strip().splitlines()
        return lines[0][:80].rstrip(".") if lines else type(error).__name__
    return None
