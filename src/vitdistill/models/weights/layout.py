"""What a foreign layout of weights is: how it is recognised, and how its tensors come under timm's names."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitdistill.errors import UserError

Weights = dict[str, Tensor]
Arguments = tuple[str, dict[str, Any]]  # timm's architecture, and its arguments


@dataclass(frozen=True)
class Layout:
    """One foreign layout.

    Attributes:
        name: said in messages.
        anchor: a name that every such file has; what stands before it is a prefix of whoever saved the file.
        matches: whether weights, without such a prefix, are of this layout.
        convert: weights under timm's names, for a network of timm; what timm's network has not is left out.
        model_types: `model_type` of the config.json that go with it.
        arguments: from config.json and the tensors to timm's architecture and its arguments.
        prepared: further arguments, from preprocessor_config.json; None where it says no more than mean and standard
            deviation of images.
    """

    name: str
    anchor: re.Pattern[str]
    matches: Callable[[Weights], bool]
    convert: Callable[[Weights, nn.Module], Weights]
    model_types: tuple[str, ...] = ()
    arguments: Callable[[dict[str, Any], Weights], Arguments] | None = None
    prepared: Callable[[dict[str, Any]], dict[str, Any]] | None = None


def anchored(pattern: str) -> re.Pattern[str]:
    """A pattern of a whole name, before which only a dotted prefix may stand."""
    return re.compile(rf"(?:^|(?<=\.))(?:{pattern})$")


def renamed(weights: Weights, renames: tuple[tuple[str, str], ...]) -> Weights:
    """Every name with every pattern replaced, in their order."""
    result = {}
    for name, value in weights.items():
        for pattern, ours in renames:
            name = re.sub(pattern, ours, name)
        result[name] = value
    return result


# Hugging Face's names of what lies in a ViT, on disk and in the memory of transformers 5, and timm's.
HUGGING_FACE = (
    (r"^(vit|deit|dinov2|dinov2_with_registers|videomae)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
    (r"^(cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
PATCHES = r"(?:(?:vit|deit|dinov2|dinov2_with_registers|videomae)\.)?embeddings\.patch_embeddings\.projection\.weight"


# The way back, of what YOLOS and AST have in common; `split_qkv` comes before.
TO_HUGGING_FACE = (
    (r"^(cls_token)$", r"embeddings.\1"),
    (r"^dist_token$", "embeddings.distillation_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
    (r"\.attn\.(query|key|value)\.", r".attention.attention.\1."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
)


def without(weights: Weights, pattern: str) -> Weights:
    """Weights whose names do not begin with a pattern."""
    return {name: value for name, value in weights.items() if not re.match(pattern, name)}


def has(weights: Weights, pattern: str) -> bool:
    """Whether some name contains a pattern."""
    return any(re.search(pattern, name) for name in weights)


def fuse_qkv(weights: Weights) -> Weights:
    """The projections `query`, `key`, `value` of each block made one, `qkv`; a bias that is not there is zero."""
    result = dict(weights)
    for name in [name for name in weights if name.endswith(".query.weight")]:
        stem = name.removesuffix("query.weight")
        parts = [result.pop(f"{stem}{role}.weight", None) for role in ("query", "key", "value")]
        whole = [part for part in parts if part is not None]
        if len(whole) < 3:  # a damaged file: what is left says which is missing
            result |= {k: v for k, v in weights.items() if k.startswith(stem)}
            continue
        result[f"{stem}qkv.weight"] = torch.cat(whole)
        # VideoMAE's files call the biases q_bias and v_bias, and keys have none.
        shorts = (f"{stem}q_bias", f"{stem}k_bias", f"{stem}v_bias")
        biases = [
            result.pop(f"{stem}{role}.bias", result.pop(short, None))
            for role, short in zip(("query", "key", "value"), shorts, strict=True)
        ]
        if any(bias is not None for bias in biases):
            zeros = torch.zeros_like(next(bias for bias in biases if bias is not None))
            result[f"{stem}qkv.bias"] = torch.cat([zeros if bias is None else bias for bias in biases])
    return result


def split_qkv(weights: Weights) -> Weights:
    """The projection `qkv` of each block as three, `query`, `key` and `value`."""
    result: Weights = {}
    for name, value in weights.items():
        if ".attn.qkv." not in name:
            result[name] = value
            continue
        parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
        result |= {name.replace(".qkv.", f".{role}."): part for role, part in parts}
    return result


# --- from config.json to timm's arguments --------------------

# Widths of timm's architectures. Every argument is given, so another width is the next one's with other arguments.
_WIDTHS = {"tiny": 192, "small": 384, "base": 768, "large": 1024, "huge": 1280}


def size_name(width: int, known: tuple[str, ...]) -> str:
    """What timm calls networks of a width, among the sizes that an architecture has, smallest first."""
    return next((name for name in known if width <= _WIDTHS[name]), known[-1])


def vit_arguments(config: dict[str, Any], *, patch: int = 16) -> dict[str, Any]:
    """The arguments of a timm ViT that a config.json of any of the families gives.

    Args:
        config: the content of config.json; what it leaves out has transformers' default.
        patch: default of the family.
    """
    width, depth = config.get("hidden_size", 768), config.get("num_hidden_layers", 12)
    hidden = config.get("intermediate_size") or int(width * config.get("mlp_ratio", 4))
    arguments: dict[str, Any] = {
        "img_size": config.get("image_size", 224),
        "patch_size": config.get("patch_size", patch),
        "embed_dim": width,
        "depth": depth,
        "num_heads": config.get("num_attention_heads", 12),
        "mlp_ratio": ratio(hidden, width),
    }
    if config.get("num_channels", 3) != 3:
        arguments["in_chans"] = config["num_channels"]
    if not config.get("qkv_bias", True):
        arguments["qkv_bias"] = False
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        known = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}
        arguments["act_layer"] = known.get(activation, activation)
    return arguments


def ratio(hidden: int, width: int) -> float:
    """The `mlp_ratio` from which timm computes a number of hidden channels, which it rounds down."""
    value = hidden / width
    return value if int(width * value) == hidden else (hidden + 0.5) / width


def check_epsilon(config: dict[str, Any], expected: float, default: float) -> None:
    """Refuse another epsilon of LayerNorm than the architecture has, where it could be seen in the output.

    Raises:
        UserError: naming both.
    """
    found = float(config.get("layer_norm_eps", default))
    if max(found, expected) > 2e-6 and found != expected:
        raise UserError(
            "The epsilon of LayerNorm in config.json must be that of timm's architecture", f"{found} and {expected}"
        )
