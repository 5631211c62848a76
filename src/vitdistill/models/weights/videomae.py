"""Weights of video ViTs under the names of VideoMAE, MVD and Hugging Face, brought to ours (timm's)."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from vitdistill.errors import UserError

# Hugging Face's names of what lies in a block, and ours.
_HUGGING_FACE = (
    (r"^videomae\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)


def is_hugging_face(weights: dict[str, Tensor]) -> bool:
    """Whether names are those of `transformers`' VideoMAE classes."""
    return any("embeddings.patch_embeddings.projection" in name for name in weights)


def from_foreign(weights: dict[str, Tensor]) -> dict[str, Tensor]:
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


def _from_hugging_face(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in weights.items():
        if name.startswith(("decoder.", "encoder_to_decoder", "mask_token", "position_embeddings")):
            continue
        for pattern, ours in _HUGGING_FACE:
            name = re.sub(pattern, ours, name)
        renamed[name] = value
    for name in [name for name in renamed if name.endswith(".attn.query.weight")]:
        stem = name.removesuffix("query.weight")
        parts = [renamed.pop(f"{stem}{role}.weight") for role in ("query", "key", "value")]
        renamed[f"{stem}qkv.weight"] = torch.cat(parts)
        # Newer releases give the linear maps of q and v their biases; keys have none, or zeros.
        for role, short in (("query", "q_bias"), ("value", "v_bias")):
            bias = renamed.pop(f"{stem}{role}.bias", None)
            if bias is not None:
                renamed[f"{stem}{short}"] = bias
        renamed.pop(f"{stem}key.bias", None)
    return renamed


def is_foreign(weights: dict[str, Tensor]) -> bool:
    """Whether weights of a video ViT come from VideoMAE, MVD or Hugging Face."""
    return is_hugging_face(weights) or any(name.endswith(".attn.q_bias") for name in weights)


def arguments_for(weights: dict[str, Tensor], args: dict[str, Any]) -> dict[str, Any]:
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


def _positions_of(weights: dict[str, Tensor]) -> str | None:
    """The positions that a foreign file goes with; None where it cannot tell."""
    if "pos_embed" in weights:
        return "sincos_3d"
    tuned = any(name.startswith(("head.", "fc_norm.")) for name in weights)
    return None if tuned and not is_hugging_face(weights) else "sinusoid_1d"


def for_video(weights: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Weights for a video ViT: foreign names brought to ours, its own fixed positions where the file has none.

    Raises:
        UserError: when the file's position table is not the network's.
    """
    own: Any = net.pos_embed
    table = weights.get("pos_embed")
    if table is not None and table.shape == own.shape and not torch.allclose(table, own.detach(), atol=1e-4):
        raise UserError(
            "The position table in the weights must be the network's",
            "another one",
            "Set positions to sincos_3d (MVD) or sinusoid_1d (VideoMAE) among the architecture's arguments",
        )
    ours = from_foreign(weights) if is_foreign(weights) else dict(weights)
    # Positions are fixed functions of the grid, so another number of frames or pixels has its own table.
    ours["pos_embed"] = own.detach() if table is None or table.shape != own.shape else table
    return ours
