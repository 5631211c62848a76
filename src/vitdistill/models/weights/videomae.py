"""Weights of video ViTs under the names of VideoMAE, MVD and Hugging Face, brought to ours (timm's)."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vitdistill.errors import UserError
from vitdistill.models.sizes import pair
from vitdistill.models.weights.layout import (
    HUGGING_FACE,
    PATCHES,
    Arguments,
    Weights,
    anchored,
    fuse_qkv,
    has,
    renamed,
    size_name,
    vit_arguments,
    without,
)
from vitdistill.models.weights.unwrap import without_prefix

_PRETRAINING = r"(decoder\.|encoder_to_decoder|mask_token|position_embeddings)"
_ANCHORS = [anchored(PATCHES), anchored(r"(?:encoder\.)?patch_embed\.proj\.weight")]


def unwrapped(weights: Weights, source: object = "") -> Weights:
    """Weights of a video ViT without the prefixes of whoever saved them."""
    return without_prefix(weights, {}, _ANCHORS, source)


def is_hugging_face(weights: Weights) -> bool:
    """Whether names are those of `transformers`' VideoMAE classes."""
    return any("embeddings.patch_embeddings.projection" in name for name in weights)


def from_foreign(weights: Weights) -> Weights:
    """The encoder of a VideoMAE, MVD or Hugging Face file under our names; decoders and tables are left out.

    The separate biases of q and v become one of q, k and v with zeros for the keys, which have none.
    """
    if is_hugging_face(weights):
        weights = _from_hugging_face(weights)
    if any(name.startswith("encoder.") for name in weights):  # VideoMAE's pre-training files
        weights = {n.removeprefix("encoder."): v for n, v in weights.items() if n.startswith("encoder.")}
    result = {}
    for name, value in weights.items():
        if re.match(r"(decoder|down_|mask_token|pos_embed|encoder_to_decoder)", name) or name.endswith(".v_bias"):
            continue
        if name.endswith(".q_bias"):
            stem = name.removesuffix("q_bias")
            result[f"{stem}qkv.bias"] = torch.cat((value, torch.zeros_like(value), weights[f"{stem}v_bias"]))
        else:
            result[name] = value
    return result


def _from_hugging_face(weights: Weights) -> Weights:
    return fuse_qkv(renamed(without(weights, _PRETRAINING), HUGGING_FACE))


def is_foreign(weights: Weights) -> bool:
    """Whether weights of a video ViT come from VideoMAE, MVD or Hugging Face."""
    return is_hugging_face(weights) or any(name.endswith(".attn.q_bias") for name in weights)


def arguments_for(weights: Weights, args: dict[str, Any]) -> dict[str, Any]:
    """The architecture's arguments with what foreign weights of a video ViT decide: positions, and where it normalises.

    VideoMAE's files and Hugging Face's hold no position table and go with sinusoid_1d; MVD's pre-trained ones hold
    theirs, sincos_3d. Files of fine-tuned networks under the authors' names hold none and look alike, so they must be
    told apart by the user.

    Args:
        weights: as they come in the file.
        args: what the user asked for.

    Raises:
        UserError: when the user asked for other positions than the file goes with, or names none where it cannot tell.
    """
    if not is_foreign(weights):
        return args
    asked = args.get("positions")
    found = _positions_of(weights) or asked
    if found is None:
        raise UserError(
            "A fine-tuned video file does not say which positions it goes with",
            remedy="Set positions among the architecture's arguments: sincos_3d for MVD's, sinusoid_1d for VideoMAE's",
        )
    if asked not in (None, found):
        raise UserError(f"These weights were trained with the positions {found}", asked, "Leave positions out")
    return {"fc_norm": any(name.startswith("fc_norm.") for name in weights), **args, "positions": found}


def _positions_of(weights: Weights) -> str | None:
    """The positions that a foreign file goes with; None where it cannot tell."""
    if "pos_embed" in weights:
        return "sincos_3d"
    tuned = any(name.startswith(("head.", "fc_norm.")) for name in weights)
    return None if tuned and not is_hugging_face(weights) else "sinusoid_1d"


def for_video(weights: Weights, net: nn.Module, recorded: Mapping[str, Any] | None = None) -> Weights:
    """Weights for a video ViT: foreign names brought to ours, its own fixed positions where the file has none.

    Positions are fixed functions of the grid, so another number of frames or pixels has its own table.

    Args:
        weights: without prefix.
        net: with the positions that the weights go with.
        recorded: arguments of the network that the file was trained as, if that is known.

    Raises:
        UserError: when the file's position table is not the network's, though its grid is.
    """
    own: Any = net.pos_embed
    table = weights.get("pos_embed")
    same = table is not None and table.shape == own.shape and (recorded is None or _grid(recorded, net) == _own(net))
    if same and table is not None and not torch.allclose(table.to(own.dtype), own.detach(), atol=1e-4):
        raise UserError(
            "The position table in the weights must be the network's",
            "another one",
            "Set positions to sincos_3d (MVD's) or sinusoid_1d (VideoMAE's) among the architecture's arguments, and "
            "frames and img_size to those of the file",
        )
    ours = from_foreign(weights) if is_foreign(weights) else dict(weights)
    ours["pos_embed"] = table if same and table is not None else own.detach()
    return ours


def _own(net: Any) -> tuple[int, int, int]:
    embed = net.patch_embed
    return embed.frames // embed.tubelet, *embed.grid_size


def _grid(recorded: Mapping[str, Any], net: Any) -> tuple[int, int, int]:
    height, width = pair(recorded.get("img_size", 224))
    patch = pair(recorded.get("patch_size", 16))
    frames = recorded.get("frames", 16) // recorded.get("tubelet", 2)
    return frames, height // patch[0], width // patch[1]


# --- a folder of save_pretrained --------------------

MODEL_TYPES = ("videomae",)


def arguments(config: dict[str, Any], weights: Weights) -> Arguments:
    """Our video ViT of the sizes in config.json."""
    given = vit_arguments(config) | {
        "frames": config.get("num_frames", 16),
        "tubelet": config.get("tubelet_size", 2),
        "positions": "sinusoid_1d",
        "fc_norm": has(weights, r"^fc_norm\."),
    }
    if not has(weights, r"^(fc_norm|videomae\.layernorm|layernorm)\."):
        given["final_norm"] = False
    size = size_name(given["embed_dim"], ("small", "base", "large", "huge"))
    return f"video_vit_{size}_patch16_224", given
